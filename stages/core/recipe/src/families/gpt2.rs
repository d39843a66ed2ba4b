//! GPT-2 (Radford et al. 2019): learned positions, `LayerNorm`, GELU; matrices are `[in, out]`.

use serde_json::{Value, json};

use super::config::{Config, activation_name};
use super::names::{MlpNames, Names, QkvNames};
use super::{Definition, Sizes, gpt};
use crate::error::ShapeError;
use crate::shape::{Activation, Family, ModelShape};

pub(super) const DEFINITION: Definition = Definition {
    model_type: "gpt2",
    causal: "GPT2LMHeadModel",
    classifier: "GPT2ForSequenceClassification",
    shape,
    read,
    write,
    names,
    grouped: false,
    free_head_dim: false,
};

fn shape(sizes: &Sizes) -> ModelShape {
    gpt(Family::Gpt2, sizes)
}

fn read(config: &Config<'_>) -> Result<ModelShape, ShapeError> {
    config.only("scale_attn_weights", &[json!(true)], "true")?;
    config.only("scale_attn_by_inverse_layer_idx", &[json!(false)], "false")?;
    config.only("add_cross_attention", &[json!(false)], "false")?;
    let sizes = Sizes {
        vocab_size: config.count("vocab_size")?,
        max_positions: match config.count_opt("n_positions")? {
            Some(positions) => positions,
            None => config.count("n_ctx")?,
        },
        layers: config.count("n_layer")?,
        width: config.count("n_embd")?,
        heads: config.count("n_head")?,
    }
    .checked()?;
    Ok(ModelShape {
        mlp_width: config.count_opt("n_inner")?.unwrap_or(4 * sizes.width),
        norm_eps: config.number("layer_norm_epsilon", 1e-5)?,
        positions: config.added_positions(0)?,
        activation: config.activation("activation_function", Activation::GeluTanh)?,
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
        "n_inner": shape.mlp_width,
        "layer_norm_epsilon": shape.norm_eps,
        "activation_function": activation_name(shape.activation),
    })
}

fn names(_: &ModelShape) -> Names {
    Names {
        trunk: "transformer.",
        embedding: "transformer.wte",
        positions: "transformer.wpe",
        block: "transformer.h",
        norms: ["ln_1", "ln_2"],
        qkv: QkvNames::Thirds("attn.c_attn"),
        output: "attn.c_proj",
        mlp: MlpNames::Plain(["mlp.c_fc", "mlp.c_proj"]),
        final_norm: "transformer.ln_f",
        in_out: true,
        buffers: &[".attn.bias", ".attn.masked_bias"],
        ..Names::LLAMA
    }
}
