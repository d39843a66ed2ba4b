//! GLM-4 (Zeng et al. 2024), the open lineage of `ChatGLM`: grouped-query attention, the first half of
//! each head rotated in neighbouring pairs, gate and up in one matrix.

use serde_json::{Value, json};

use super::config::Config;
use super::names::{MlpNames, Names};
use super::{Definition, Sizes, llama, llama_like, rope};
use crate::error::ShapeError;
use crate::shape::{Biases, Family, ModelShape, Positions, RopeScaling, Rotary};

pub(super) const DEFINITION: Definition = Definition {
    model_type: "glm",
    causal: "GlmForCausalLM",
    classifier: "GlmForSequenceClassification",
    shape,
    read,
    write,
    names,
    grouped: true,
    free_head_dim: true,
};

const KEYS: rope::Keys = rope::Keys {
    share: Some(("partial_rotary_factor", 0.5)),
    ..rope::Keys::USUAL
};

fn shape(sizes: &Sizes) -> ModelShape {
    let rotary = Rotary {
        // An even part of a head.
        width: (sizes.width / sizes.heads / 4 * 2).max(2),
        interleaved: true,
        theta: ModelShape::DEFAULT_ROPE_THETA,
        scaling: RopeScaling::None,
    };
    ModelShape {
        positions: Positions::Rotary(rotary),
        biases: Biases {
            qkv: true,
            ..Biases::NONE
        },
        ..llama_like(Family::Glm, sizes)
    }
}

fn read(config: &Config<'_>) -> Result<ModelShape, ShapeError> {
    let shape = llama::read_common(config, Family::Glm, &KEYS)?;
    let positions = match shape.positions {
        Positions::Rotary(rotary) => Positions::Rotary(Rotary {
            interleaved: true,
            ..rotary
        }),
        other => other,
    };
    let qkv = config.flag("attention_bias", true)?;
    Ok(ModelShape {
        norm_eps: config.number("rms_norm_eps", 1.5625e-7)?,
        positions,
        biases: Biases {
            qkv,
            ..Biases::NONE
        },
        ..shape
    })
}

fn write(shape: &ModelShape) -> Value {
    let mut config = llama::write_common(shape);
    rope::write(shape, &KEYS, &mut config);
    config["attention_bias"] = json!(shape.biases.qkv);
    config
}

fn names(_: &ModelShape) -> Names {
    Names {
        mlp: MlpNames::FusedGate(["mlp.gate_up_proj", "mlp.down_proj"]),
        ..Names::LLAMA
    }
}
