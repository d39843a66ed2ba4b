//! Qwen2 and Qwen2.5 (Yang et al. 2024): Llama with biases of query, key and value.

use serde_json::Value;

use super::config::{Config, write_sliding_window};
use super::names::Names;
use super::{Definition, Sizes, llama, llama_like, rope};
use crate::error::ShapeError;
use crate::shape::{Biases, Family, ModelShape};

pub(super) const DEFINITION: Definition = Definition {
    model_type: "qwen2",
    causal: "Qwen2ForCausalLM",
    classifier: "Qwen2ForSequenceClassification",
    shape,
    read,
    write,
    names: |_| Names::LLAMA,
    grouped: true,
    free_head_dim: true,
};

fn shape(sizes: &Sizes) -> ModelShape {
    ModelShape {
        biases: Biases {
            qkv: true,
            ..Biases::NONE
        },
        ..llama_like(Family::Qwen2, sizes)
    }
}

fn read(config: &Config<'_>) -> Result<ModelShape, ShapeError> {
    let shape = llama::read_common(config, Family::Qwen2, &rope::Keys::USUAL)?;
    Ok(ModelShape {
        local: config.sliding_window(shape.layers)?,
        ..shape
    })
}

fn write(shape: &ModelShape) -> Value {
    let mut config = llama::write_common(shape);
    write_sliding_window(shape, &mut config);
    config
}
