//! Falcon (Almazrouei et al. 2023): attention and MLP in parallel; one key head (7b) or groups with two
//! norms (40b, `new_decoder_architecture`); rotary positions or `ALiBi`.

use serde_json::{Value, json};

use super::config::{Config, activation_name, unsupported};
use super::names::{MlpNames, Names, QkvNames};
use super::{Definition, Sizes, gpt, rope, rotary};
use crate::error::ShapeError;
use crate::shape::{Activation, Biases, BlockOrder, Family, ModelShape, Positions};

pub(super) const DEFINITION: Definition = Definition {
    model_type: "falcon",
    causal: "FalconForCausalLM",
    classifier: "FalconForSequenceClassification",
    shape,
    read,
    write,
    names,
    grouped: true,
    free_head_dim: false,
};

fn shape(sizes: &Sizes) -> ModelShape {
    ModelShape {
        kv_heads: 1,
        order: BlockOrder::ParallelOneNorm,
        positions: rotary(sizes.width / sizes.heads),
        biases: Biases::NONE,
        activation: Activation::Gelu,
        ..gpt(Family::Falcon, sizes)
    }
}

fn read(config: &Config<'_>) -> Result<ModelShape, ShapeError> {
    let sizes = Sizes {
        vocab_size: config.count("vocab_size")?,
        max_positions: config.count_opt("max_position_embeddings")?.unwrap_or(2048),
        layers: config.count("num_hidden_layers")?,
        width: config.count("hidden_size")?,
        heads: config.count("num_attention_heads")?,
    }
    .checked()?;
    let positions = if config.flag("alibi", false)? {
        Positions::Alibi
    } else {
        let head_dim = sizes.width / sizes.heads;
        rope::read(config, &rope::Keys::USUAL, head_dim, sizes.max_positions)?
    };
    let grouped = config.flag("new_decoder_architecture", false)?;
    let kv_heads = match (grouped, config.flag("multi_query", true)?) {
        (true, _) => config.count_opt("num_kv_heads")?.unwrap_or(sizes.heads),
        (false, true) => 1,
        (false, false) => sizes.heads,
    };
    let biases = config.flag("bias", false)?;
    Ok(ModelShape {
        kv_heads,
        mlp_width: config
            .count_opt("ffn_hidden_size")?
            .unwrap_or(4 * sizes.width),
        norm_eps: config.number("layer_norm_epsilon", 1e-5)?,
        order: order(config, grouped)?,
        positions,
        biases: if biases { Biases::ALL } else { Biases::NONE },
        activation: config.activation("activation", Activation::Gelu)?,
        tie_embeddings: config.flag("tie_word_embeddings", true)?,
        ..shape(&sizes)
    })
}

fn order(config: &Config<'_>, grouped: bool) -> Result<BlockOrder, ShapeError> {
    let parallel = config.flag("parallel_attn", true)?;
    let norms = config.count_opt("num_ln_in_parallel_attn")?;
    match (grouped, parallel, norms) {
        (true, true, None | Some(2)) => Ok(BlockOrder::ParallelTwoNorms),
        (_, true, Some(1)) | (false, true, None) => Ok(BlockOrder::ParallelOneNorm),
        (false, false, _) => Ok(BlockOrder::PreNorm),
        (true, false, _) => {
            let value = json!(false);
            Err(unsupported(
                "parallel_attn",
                &value,
                "true with new_decoder_architecture",
            ))
        }
        (_, true, Some(_)) => {
            let value = json!(norms);
            let words = "2 with new_decoder_architecture, else 1";
            Err(unsupported("num_ln_in_parallel_attn", &value, words))
        }
    }
}

/// Groups of queries, and two norms, are the new architecture's.
fn is_new(shape: &ModelShape) -> bool {
    let plain = shape.kv_heads == 1 || shape.kv_heads == shape.heads;
    shape.order == BlockOrder::ParallelTwoNorms || !plain
}

fn write(shape: &ModelShape) -> Value {
    let mut config = json!({
        "max_position_embeddings": shape.max_positions,
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.width,
        "num_attention_heads": shape.heads,
        "num_kv_heads": shape.kv_heads,
        "ffn_hidden_size": shape.mlp_width,
        "layer_norm_epsilon": shape.norm_eps,
        "activation": activation_name(shape.activation),
        "alibi": shape.positions == Positions::Alibi,
        "new_decoder_architecture": is_new(shape),
        "multi_query": shape.kv_heads == 1,
        "parallel_attn": shape.order != BlockOrder::PreNorm,
        "num_ln_in_parallel_attn": match shape.order {
            BlockOrder::ParallelTwoNorms => json!(2),
            BlockOrder::ParallelOneNorm => json!(1),
            _ => Value::Null,
        },
        "bias": shape.biases.mlp,
    });
    rope::write(shape, &rope::Keys::USUAL, &mut config);
    config
}

fn names(shape: &ModelShape) -> Names {
    let norms = match shape.order {
        BlockOrder::ParallelTwoNorms => ["ln_attn", "ln_mlp"],
        _ => ["input_layernorm", "post_attention_layernorm"],
    };
    Names {
        trunk: "transformer.",
        embedding: "transformer.word_embeddings",
        block: "transformer.h",
        norms,
        qkv: QkvNames::Groups("self_attention.query_key_value"),
        output: "self_attention.dense",
        mlp: MlpNames::Plain(["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"]),
        final_norm: "transformer.ln_f",
        buffers: &[".rotary_emb.inv_freq"],
        ..Names::LLAMA
    }
}
