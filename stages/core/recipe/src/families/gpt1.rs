//! GPT-1 (Radford et al. 2018): norms behind the residual sums, learned positions.

use serde_json::{Value, json};

use super::config::{Config, activation_name};
use super::names::{MlpNames, Names, QkvNames};
use super::{Definition, Sizes, gpt};
use crate::error::ShapeError;
use crate::shape::{Activation, BlockOrder, Family, ModelShape};

pub(super) const DEFINITION: Definition = Definition {
    model_type: "openai-gpt",
    causal: "OpenAIGPTLMHeadModel",
    classifier: "OpenAIGPTForSequenceClassification",
    shape,
    read,
    write,
    names,
    grouped: false,
    free_head_dim: false,
};

fn shape(sizes: &Sizes) -> ModelShape {
    ModelShape {
        order: BlockOrder::PostNorm,
        ..gpt(Family::Gpt1, sizes)
    }
}

fn read(config: &Config<'_>) -> Result<ModelShape, ShapeError> {
    let sizes = Sizes {
        vocab_size: config.count("vocab_size")?,
        max_positions: config.count("n_positions")?,
        layers: config.count("n_layer")?,
        width: config.count("n_embd")?,
        heads: config.count("n_head")?,
    }
    .checked()?;
    let activation = match config.activation("afn", Activation::GeluTanh)? {
        // In this family the word "gelu" means the tanh approximation.
        Activation::Gelu => Activation::GeluTanh,
        other => other,
    };
    Ok(ModelShape {
        norm_eps: config.number("layer_norm_epsilon", 1e-5)?,
        positions: config.added_positions(0)?,
        activation,
        tie_embeddings: config.flag("tie_word_embeddings", true)?,
        ..shape(&sizes)
    })
}

fn write(shape: &ModelShape) -> Value {
    json!({
        "n_positions": shape.max_positions,
        "n_layer": shape.layers,
        "n_embd": shape.width,
        "n_head": shape.heads,
        "layer_norm_epsilon": shape.norm_eps,
        "afn": match shape.activation {
            Activation::GeluTanh => "gelu",
            other => activation_name(other),
        },
    })
}

fn names(_: &ModelShape) -> Names {
    Names {
        trunk: "transformer.",
        embedding: "transformer.tokens_embed",
        positions: "transformer.positions_embed",
        block: "transformer.h",
        norms: ["ln_1", "ln_2"],
        qkv: QkvNames::Thirds("attn.c_attn"),
        output: "attn.c_proj",
        mlp: MlpNames::Plain(["mlp.c_fc", "mlp.c_proj"]),
        in_out: true,
        buffers: &[".attn.bias", "position_ids"],
        ..Names::LLAMA
    }
}
