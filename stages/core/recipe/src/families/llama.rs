//! `LLaMA`, Llama 2 and Llama 3 (Touvron et al. 2023; Grattafiori et al. 2024).

use serde_json::{Value, json};

use super::config::{Config, activation_name};
use super::names::Names;
use super::{Definition, Sizes, llama_like, rope};
use crate::error::ShapeError;
use crate::shape::{Activation, Biases, Family, ModelShape};

pub(super) const DEFINITION: Definition = Definition {
    model_type: "llama",
    causal: "LlamaForCausalLM",
    classifier: "LlamaForSequenceClassification",
    shape,
    read,
    write,
    names,
    grouped: true,
    free_head_dim: true,
};

fn shape(sizes: &Sizes) -> ModelShape {
    llama_like(Family::Llama, sizes)
}

fn read(config: &Config<'_>) -> Result<ModelShape, ShapeError> {
    config.absent("sliding_window")?;
    let attention = config.flag("attention_bias", false)?;
    let mlp = config.flag("mlp_bias", false)?;
    Ok(ModelShape {
        biases: Biases {
            qkv: attention,
            output: attention,
            mlp,
        },
        ..read_common(config, Family::Llama, &rope::Keys::USUAL)?
    })
}

fn write(shape: &ModelShape) -> Value {
    let mut config = write_common(shape);
    config["attention_bias"] = json!(shape.biases.qkv);
    config["mlp_bias"] = json!(shape.biases.mlp);
    config
}

/// What all of the Llama lineage states.
pub(super) fn read_common(
    config: &Config<'_>,
    family: Family,
    keys: &rope::Keys,
) -> Result<ModelShape, ShapeError> {
    let sizes = Sizes {
        vocab_size: config.count("vocab_size")?,
        max_positions: config.count("max_position_embeddings")?,
        layers: config.count("num_hidden_layers")?,
        width: config.count("hidden_size")?,
        heads: config.count("num_attention_heads")?,
    }
    .checked()?;
    let head_dim = config.head_dim(sizes.width, sizes.heads)?;
    Ok(ModelShape {
        kv_heads: config
            .count_opt("num_key_value_heads")?
            .unwrap_or(sizes.heads),
        head_dim,
        mlp_width: config.count("intermediate_size")?,
        norm_eps: config.number("rms_norm_eps", 1e-6)?,
        positions: rope::read(config, keys, head_dim, sizes.max_positions)?,
        activation: config.activation("hidden_act", Activation::Silu)?,
        tie_embeddings: config.flag("tie_word_embeddings", false)?,
        ..family.shape(&sizes)
    })
}

/// The keys that [`read_common`] reads.
pub(super) fn write_common(shape: &ModelShape) -> Value {
    let mut config = json!({
        "max_position_embeddings": shape.max_positions,
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.width,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.mlp_width,
        "rms_norm_eps": shape.norm_eps,
        "hidden_act": activation_name(shape.activation),
    });
    rope::write(shape, &rope::Keys::USUAL, &mut config);
    config
}

fn names(_: &ModelShape) -> Names {
    Names::LLAMA
}
