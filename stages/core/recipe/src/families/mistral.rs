//! Mistral (Jiang et al. 2023): Llama with a sliding window in every layer.

use serde_json::{Value, json};

use super::Definition;
use super::config::{Config, USUAL_WINDOW};
use super::names::Names;
use super::{Sizes, llama, llama_like, rope};
use crate::error::ShapeError;
use crate::shape::{Family, LocalAttention, ModelShape};

pub(super) const DEFINITION: Definition = Definition {
    model_type: "mistral",
    causal: "MistralForCausalLM",
    classifier: "MistralForSequenceClassification",
    shape,
    read,
    write,
    names: |_| Names::LLAMA,
    grouped: true,
    free_head_dim: true,
};

fn shape(sizes: &Sizes) -> ModelShape {
    llama_like(Family::Mistral, sizes)
}

fn read(config: &Config<'_>) -> Result<ModelShape, ShapeError> {
    config.absent("layer_types")?;
    let shape = llama::read_common(config, Family::Mistral, &rope::Keys::USUAL)?;
    let window = config.count_or_null("sliding_window", USUAL_WINDOW)?;
    let layers = (0..shape.layers).collect();
    Ok(ModelShape {
        local: window.map(|window| LocalAttention { window, layers }),
        ..shape
    })
}

fn write(shape: &ModelShape) -> Value {
    let mut config = llama::write_common(shape);
    config["sliding_window"] = json!(shape.local.as_ref().map(|local| local.window));
    config
}
