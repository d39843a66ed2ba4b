//! GPT-NeoX and Pythia (Black et al. 2022; Biderman et al. 2023): attention and MLP in parallel, a
//! quarter of each head rotated.

use serde_json::{Value, json};

use super::config::{Config, activation_name};
use super::names::{MlpNames, Names, QkvNames};
use super::{Definition, Sizes, gpt, rope, rotary};
use crate::error::ShapeError;
use crate::shape::{Activation, Biases, BlockOrder, Family, ModelShape};

pub(super) const DEFINITION: Definition = Definition {
    model_type: "gpt_neox",
    causal: "GPTNeoXForCausalLM",
    classifier: "GPTNeoXForSequenceClassification",
    shape,
    read,
    write,
    names,
    grouped: false,
    free_head_dim: false,
};

const KEYS: rope::Keys = rope::Keys {
    theta: "rotary_emb_base",
    share: Some(("rotary_pct", 0.25)),
};

fn shape(sizes: &Sizes) -> ModelShape {
    ModelShape {
        order: BlockOrder::ParallelTwoNorms,
        // An even part of a head.
        positions: rotary((sizes.width / sizes.heads / 8 * 2).max(2)),
        activation: Activation::Gelu,
        tie_embeddings: false,
        ..gpt(Family::GptNeox, sizes)
    }
}

fn read(config: &Config<'_>) -> Result<ModelShape, ShapeError> {
    let sizes = Sizes {
        vocab_size: config.count("vocab_size")?,
        max_positions: config.count("max_position_embeddings")?,
        layers: config.count("num_hidden_layers")?,
        width: config.count("hidden_size")?,
        heads: config.count("num_attention_heads")?,
    }
    .checked()?;
    let parallel = config.flag("use_parallel_residual", true)?;
    let attention = config.flag("attention_bias", true)?;
    Ok(ModelShape {
        mlp_width: config.count("intermediate_size")?,
        norm_eps: config.number("layer_norm_eps", 1e-5)?,
        order: if parallel {
            BlockOrder::ParallelTwoNorms
        } else {
            BlockOrder::PreNorm
        },
        positions: rope::read(
            config,
            &KEYS,
            sizes.width / sizes.heads,
            sizes.max_positions,
        )?,
        biases: Biases {
            qkv: attention,
            output: attention,
            mlp: true,
        },
        activation: config.activation("hidden_act", Activation::Gelu)?,
        tie_embeddings: config.flag("tie_word_embeddings", false)?,
        ..shape(&sizes)
    })
}

fn write(shape: &ModelShape) -> Value {
    let mut config = json!({
        "max_position_embeddings": shape.max_positions,
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.width,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.mlp_width,
        "layer_norm_eps": shape.norm_eps,
        "use_parallel_residual": shape.order == BlockOrder::ParallelTwoNorms,
        "attention_bias": shape.biases.qkv,
        "hidden_act": activation_name(shape.activation),
    });
    rope::write(shape, &KEYS, &mut config);
    // transformers before version 5 reads these two.
    config["rotary_emb_base"] = config["rope_parameters"]["rope_theta"].clone();
    config["rotary_pct"] = config["rope_parameters"]["partial_rotary_factor"].clone();
    config
}

fn names(_: &ModelShape) -> Names {
    Names {
        trunk: "gpt_neox.",
        embedding: "gpt_neox.embed_in",
        block: "gpt_neox.layers",
        qkv: QkvNames::Groups("attention.query_key_value"),
        output: "attention.dense",
        mlp: MlpNames::Plain(["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"]),
        final_norm: "gpt_neox.final_layer_norm",
        head: "embed_out",
        buffers: &[
            ".attention.bias",
            ".attention.masked_bias",
            ".rotary_emb.inv_freq",
        ],
        ..Names::LLAMA
    }
}
