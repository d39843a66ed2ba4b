//! GPT-Neo (Black et al. 2021), which stores GPT-3's alternating dense and locally banded attention
//! (Brown et al. 2020, section 2.1); its products are not divided by the root of the head's width.

use serde_json::{Value, json};

use super::config::{Config, activation_name, wrong_type};
use super::names::{MlpNames, Names, QkvNames};
use super::{Definition, Sizes, gpt};
use crate::error::ShapeError;
use crate::shape::{Activation, Biases, Family, LocalAttention, ModelShape};

pub(super) const DEFINITION: Definition = Definition {
    model_type: "gpt_neo",
    causal: "GPTNeoForCausalLM",
    classifier: "GPTNeoForSequenceClassification",
    shape,
    read,
    write,
    names,
    grouped: false,
    free_head_dim: false,
};

/// The window of GPT-Neo's own models.
const USUAL_WINDOW: usize = 256;

fn shape(sizes: &Sizes) -> ModelShape {
    ModelShape {
        local: alternating(USUAL_WINDOW, sizes.layers),
        scaled_attention: false,
        biases: Biases {
            qkv: false,
            ..Biases::ALL
        },
        ..gpt(Family::GptNeo, sizes)
    }
}

/// Every second layer is local, beginning with the second.
fn alternating(window: usize, layers: usize) -> Option<LocalAttention> {
    let layers: Vec<usize> = (1..layers).step_by(2).collect();
    (!layers.is_empty()).then_some(LocalAttention { window, layers })
}

fn read(config: &Config<'_>) -> Result<ModelShape, ShapeError> {
    let sizes = Sizes {
        vocab_size: config.count("vocab_size")?,
        max_positions: config.count("max_position_embeddings")?,
        layers: config.count("num_layers")?,
        width: config.count("hidden_size")?,
        heads: config.count("num_heads")?,
    }
    .checked()?;
    let window = config.count_opt("window_size")?.unwrap_or(USUAL_WINDOW);
    let layers = local_layers(config, sizes.layers)?;
    Ok(ModelShape {
        mlp_width: config
            .count_opt("intermediate_size")?
            .unwrap_or(4 * sizes.width),
        norm_eps: config.number("layer_norm_epsilon", 1e-5)?,
        positions: config.added_positions(0)?,
        activation: config.activation("activation_function", Activation::GeluTanh)?,
        tie_embeddings: config.flag("tie_word_embeddings", true)?,
        local: (!layers.is_empty()).then_some(LocalAttention { window, layers }),
        ..shape(&sizes)
    })
}

/// `attention_types`: `[[["global", "local"], 12]]`, twelve times a global and a local layer.
fn local_layers(config: &Config<'_>, layers: usize) -> Result<Vec<usize>, ShapeError> {
    let Some(types) = config.get("attention_types") else {
        return Ok((1..layers).step_by(2).collect());
    };
    let words = "[[[\"global\", \"local\"], n]], as many words as layers";
    let wrong = || wrong_type("attention_types", words, types);
    let mut local = Vec::new();
    for item in types.as_array().ok_or_else(wrong)? {
        let (kinds, times) = (item[0].as_array(), item[1].as_u64());
        let (kinds, times) = kinds.zip(times).ok_or_else(wrong)?;
        let most = layers as u64;
        if times > most || times * kinds.len() as u64 > most - local.len() as u64 {
            return Err(wrong());
        }
        for kind in (0..times).flat_map(|_| kinds) {
            local.push(match kind.as_str() {
                Some("local") => true,
                Some("global") => false,
                _ => return Err(wrong()),
            });
        }
    }
    if local.len() != layers {
        return Err(wrong());
    }
    Ok((0..layers).filter(|&layer| local[layer]).collect())
}

fn write(shape: &ModelShape) -> Value {
    let kind = |layer| match &shape.local {
        Some(local) if local.layers.contains(&layer) => "local",
        _ => "global",
    };
    let kinds: Vec<&str> = (0..shape.layers).map(kind).collect();
    json!({
        "max_position_embeddings": shape.max_positions,
        "num_layers": shape.layers,
        "hidden_size": shape.width,
        "num_heads": shape.heads,
        "intermediate_size": shape.mlp_width,
        "layer_norm_epsilon": shape.norm_eps,
        "activation_function": activation_name(shape.activation),
        "attention_types": [[kinds, 1]],
        "window_size": shape.local.as_ref().map_or(USUAL_WINDOW, |local| local.window),
    })
}

fn names(_: &ModelShape) -> Names {
    Names {
        trunk: "transformer.",
        embedding: "transformer.wte",
        positions: "transformer.wpe",
        block: "transformer.h",
        norms: ["ln_1", "ln_2"],
        qkv: QkvNames::Split([
            "attn.attention.q_proj",
            "attn.attention.k_proj",
            "attn.attention.v_proj",
        ]),
        output: "attn.attention.out_proj",
        mlp: MlpNames::Plain(["mlp.c_fc", "mlp.c_proj"]),
        final_norm: "transformer.ln_f",
        buffers: &[".attention.bias", ".attention.masked_bias"],
        ..Names::LLAMA
    }
}
