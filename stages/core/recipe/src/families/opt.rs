//! OPT (Zhang et al. 2022): learned positions of which the first two are unused, `ReLU`; the 350m model
//! has its norms behind the sums, and an embedding narrower than the model.

use serde_json::{Value, json};

use super::config::{Config, activation_name};
use super::names::{MlpNames, Names, QkvNames};
use super::{Definition, Sizes, gpt};
use crate::error::ShapeError;
use crate::shape::{Activation, Biases, BlockOrder, Family, ModelShape, Positions};

pub(super) const DEFINITION: Definition = Definition {
    model_type: "opt",
    causal: "OPTForCausalLM",
    classifier: "OPTForSequenceClassification",
    shape,
    read,
    write,
    names,
    grouped: false,
    free_head_dim: false,
};

/// Rows of the table of positions before the first position's.
const UNUSED: usize = 2;

fn shape(sizes: &Sizes) -> ModelShape {
    ModelShape {
        positions: Positions::Learned {
            unused: UNUSED,
            places: 0,
        },
        activation: Activation::Relu,
        ..gpt(Family::Opt, sizes)
    }
}

fn read(config: &Config<'_>) -> Result<ModelShape, ShapeError> {
    config.only("layer_norm_elementwise_affine", &[json!(true)], "true")?;
    config.only("_remove_final_layer_norm", &[json!(false)], "false")?;
    let sizes = Sizes {
        vocab_size: config.count("vocab_size")?,
        max_positions: config.count("max_position_embeddings")?,
        layers: config.count("num_hidden_layers")?,
        width: config.count("hidden_size")?,
        heads: config.count("num_attention_heads")?,
    }
    .checked()?;
    let before = config.flag("do_layer_norm_before", true)?;
    let biases = config.flag("enable_bias", true)?;
    Ok(ModelShape {
        embedding_width: config
            .count_opt("word_embed_proj_dim")?
            .unwrap_or(sizes.width),
        mlp_width: config.count("ffn_dim")?,
        order: if before {
            BlockOrder::PreNorm
        } else {
            BlockOrder::PostNorm
        },
        positions: config.added_positions(UNUSED)?,
        biases: if biases { Biases::ALL } else { Biases::NONE },
        activation: config.activation("activation_function", Activation::Relu)?,
        tie_embeddings: config.flag("tie_word_embeddings", true)?,
        ..shape(&sizes)
    })
}

fn write(shape: &ModelShape) -> Value {
    json!({
        "max_position_embeddings": shape.max_positions,
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.width,
        "word_embed_proj_dim": shape.embedding_width,
        "num_attention_heads": shape.heads,
        "ffn_dim": shape.mlp_width,
        "do_layer_norm_before": shape.order == BlockOrder::PreNorm,
        "enable_bias": shape.biases.mlp,
        "activation_function": activation_name(shape.activation),
    })
}

fn names(_: &ModelShape) -> Names {
    Names {
        embedding: "model.decoder.embed_tokens",
        positions: "model.decoder.embed_positions",
        project: ["model.decoder.project_in", "model.decoder.project_out"],
        block: "model.decoder.layers",
        norms: ["self_attn_layer_norm", "final_layer_norm"],
        qkv: QkvNames::Split(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        output: "self_attn.out_proj",
        mlp: MlpNames::Plain(["fc1", "fc2"]),
        final_norm: "model.decoder.final_layer_norm",
        buffers: &[],
        ..Names::LLAMA
    }
}
