//! Qwen3 (Yang et al. 2025): Llama with norms of each head's queries and keys.

use serde_json::{Value, json};

use super::config::{Config, write_sliding_window};
use super::names::Names;
use super::{Definition, Sizes, llama, llama_like, rope};
use crate::error::ShapeError;
use crate::shape::{Biases, Family, ModelShape};

pub(super) const DEFINITION: Definition = Definition {
    model_type: "qwen3",
    causal: "Qwen3ForCausalLM",
    classifier: "Qwen3ForSequenceClassification",
    shape,
    read,
    write,
    names: |_| Names::LLAMA,
    grouped: true,
    free_head_dim: true,
};

fn shape(sizes: &Sizes) -> ModelShape {
    ModelShape {
        qk_norm: true,
        ..llama_like(Family::Qwen3, sizes)
    }
}

fn read(config: &Config<'_>) -> Result<ModelShape, ShapeError> {
    let shape = llama::read_common(config, Family::Qwen3, &rope::Keys::USUAL)?;
    let attention = config.flag("attention_bias", false)?;
    Ok(ModelShape {
        local: config.sliding_window(shape.layers)?,
        biases: Biases {
            qkv: attention,
            output: attention,
            mlp: false,
        },
        ..shape
    })
}

fn write(shape: &ModelShape) -> Value {
    let mut config = llama::write_common(shape);
    config["attention_bias"] = json!(shape.biases.qkv);
    write_sliding_window(shape, &mut config);
    config
}
