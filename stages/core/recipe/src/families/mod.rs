//! The families of models: one file each, with its usual parts, its `config.json` and the names of
//! its tensors. What is computed from the parts is the model crate's, and knows no family.
//!
//! A new family is a new file with a `DEFINITION`, a variant of [`Family`], and a line in
//! `Family::definition` (CONTRIBUTING.md, "A new family").

use serde_json::{Value, json};

use crate::shape::{
    Activation, Biases, BlockOrder, Family, LocalAttention, ModelShape, NormKind, Positions,
    RopeScaling, Rotary,
};

mod chatglm;
pub(crate) mod config;
mod falcon;
mod glm;
mod gpt1;
mod gpt2;
mod gpt_neo;
mod gpt_neox;
mod llama;
mod mistral;
mod names;
mod opt;
mod qwen2;
mod qwen3;
pub(crate) mod rope;

pub use chatglm::Target;
use config::Config;
pub use names::{MlpNames, Names, QkvNames};

use crate::error::ShapeError;

/// The sizes of a model, to which a family adds its usual parts.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence, tokens.
    pub max_positions: usize,
    /// Blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Query heads.
    pub heads: usize,
}

impl Sizes {
    /// These sizes, where each is one that a model can have: a family's parts are then made of them.
    ///
    /// # Errors
    /// [`ShapeError::Inconsistent`] for a size beyond its bound.
    pub(crate) fn checked(self) -> Result<Self, ShapeError> {
        self.excess().map_or(Ok(self), |excess| Err(excess.into()))
    }
}

/// Reads a `config.json`.
type Read = fn(&Config<'_>) -> Result<ModelShape, ShapeError>;

/// What a family is.
pub(crate) struct Definition {
    /// `model_type` in `config.json`.
    model_type: &'static str,
    /// The class of a language model.
    causal: &'static str,
    /// The class of a scalar head.
    classifier: &'static str,
    /// A model of these sizes with the family's usual parts.
    shape: fn(&Sizes) -> ModelShape,
    /// Reads a `config.json`.
    read: Read,
    /// The keys of `config.json` that say a shape.
    write: fn(&ModelShape) -> Value,
    /// The names of the tensors.
    names: fn(&ModelShape) -> Names,
    /// Key heads may be fewer than query heads.
    grouped: bool,
    /// A head's width may be another than `width / heads`.
    free_head_dim: bool,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 11] = [
        Self::Gpt1,
        Self::Gpt2,
        Self::GptNeo,
        Self::GptNeox,
        Self::Opt,
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::Falcon,
        Self::Glm,
    ];

    fn definition(self) -> &'static Definition {
        match self {
            Self::Gpt1 => &gpt1::DEFINITION,
            Self::Gpt2 => &gpt2::DEFINITION,
            Self::GptNeo => &gpt_neo::DEFINITION,
            Self::GptNeox => &gpt_neox::DEFINITION,
            Self::Opt => &opt::DEFINITION,
            Self::Llama => &llama::DEFINITION,
            Self::Mistral => &mistral::DEFINITION,
            Self::Qwen2 => &qwen2::DEFINITION,
            Self::Qwen3 => &qwen3::DEFINITION,
            Self::Falcon => &falcon::DEFINITION,
            Self::Glm => &glm::DEFINITION,
        }
    }

    /// The family's `model_type`.
    pub fn model_type(self) -> &'static str {
        self.definition().model_type
    }

    /// The class that `transformers` opens a folder with, for a language model or a scalar head.
    pub fn architecture(self, scalar: bool) -> &'static str {
        let definition = self.definition();
        if scalar {
            definition.classifier
        } else {
            definition.causal
        }
    }

    /// A model of these sizes with the family's usual parts.
    pub fn shape(self, sizes: &Sizes) -> ModelShape {
        (self.definition().shape)(sizes)
    }

    /// Whether key heads may be fewer than query heads.
    pub fn grouped(self) -> bool {
        self.definition().grouped
    }

    pub(crate) fn free_head_dim(self) -> bool {
        self.definition().free_head_dim
    }
}

impl ModelShape {
    /// Reads the shape out of a `config.json`.
    ///
    /// # Errors
    /// [`ShapeError`] for an unknown `model_type`, a missing or malformed key, numbers that do not
    /// fit together, and every feature that is not computed here.
    pub fn from_hf(config: &Value) -> Result<Self, ShapeError> {
        let known = || Family::ALL.map(Family::model_type).join(", ") + ", " + chatglm::MODEL_TYPE;
        let Some(model_type) = config.get("model_type").filter(|value| !value.is_null()) else {
            return Err(ShapeError::NoFamily { known: known() });
        };
        let (model_type, read) = if model_type == chatglm::MODEL_TYPE {
            (chatglm::MODEL_TYPE, chatglm::read as Read)
        } else {
            let family = Family::ALL
                .into_iter()
                .find(|family| model_type == family.model_type());
            let Some(family) = family else {
                let (found, known) = (model_type.to_string(), known());
                return Err(ShapeError::Family { found, known });
            };
            (family.model_type(), family.definition().read)
        };
        let config = Config::new(config, model_type);
        config.absent("quantization_config")?;
        let mut shape = read(&config)?;
        rope::stretch(&mut shape);
        shape.check()?;
        Ok(shape)
    }

    /// Where a tensor goes that a folder with this `config.json` stores, in folders whose names are not those
    /// of [`Self::names`]: `None` for a name that such a folder does not have, nowhere for a constant.
    pub fn imported(&self, config: &Value, stored: &str) -> Option<Vec<Target>> {
        if config["model_type"] == chatglm::MODEL_TYPE {
            return chatglm::targets(stored, self);
        }
        let name = stored.to_owned();
        Some(vec![Target { name, rows: None }])
    }

    /// The keys of `config.json` that say this shape, `model_type` included; heads, token ids and
    /// `architectures` are the caller's to add.
    pub fn to_hf(&self) -> serde_json::Map<String, Value> {
        let mut config = (self.family.definition().write)(self);
        config["model_type"] = json!(self.family.model_type());
        config["vocab_size"] = json!(self.vocab_size);
        config["tie_word_embeddings"] = json!(self.tie_embeddings);
        rope::unstretch(self, &mut config);
        if self.positions == Positions::Sinusoidal {
            config[config::SINUSOIDAL.0] = json!(config::SINUSOIDAL.1);
        }
        if let Positions::Learned { places, .. } = self.positions
            && places > 0
        {
            config[config::PLACES] = json!(places);
        }
        match config {
            Value::Object(map) => map,
            _ => unreachable!("every family writes an object"),
        }
    }

    /// This model with other sizes: the same parts; the widths of MLP, embedding and what is rotated of a
    /// head, and the groups of key heads, in proportion; the pattern of local layers repeated.
    #[must_use]
    pub fn resized(&self, sizes: &Sizes) -> Self {
        let &Sizes {
            vocab_size,
            max_positions,
            layers,
            width,
            heads,
        } = sizes;
        let plain = self.head_dim * self.heads == self.width;
        let head_dim = if plain { width / heads } else { self.head_dim };
        let positions = match self.positions {
            Positions::Rotary(rotary) => Positions::Rotary(Rotary {
                width: rotary.width * head_dim / self.head_dim,
                ..rotary
            }),
            other => other,
        };
        let local = self.local.as_ref().map(|local| LocalAttention {
            window: local.window,
            layers: (0..layers)
                .filter(|layer| local.layers.contains(&(layer % self.layers)))
                .collect(),
        });
        let in_proportion = |part: usize| (part * width).div_ceil(self.width);
        Self {
            vocab_size,
            max_positions,
            layers,
            width,
            embedding_width: in_proportion(self.embedding_width),
            heads,
            kv_heads: self.kv_heads_of(heads),
            head_dim,
            mlp_width: in_proportion(self.mlp_width),
            positions,
            local,
            ..self.clone()
        }
    }

    /// Key heads beside `heads` query heads: as many where this model has as many, one where it has one,
    /// else in proportion, down to a divisor.
    fn kv_heads_of(&self, heads: usize) -> usize {
        match self.kv_heads {
            same if same == self.heads => heads,
            1 => 1,
            groups => {
                let most = heads * groups / self.heads;
                let divides = |kv_heads: &usize| heads.is_multiple_of(*kv_heads);
                (1..=most).rev().find(divides).unwrap_or(1)
            }
        }
    }

    /// The names of this model's tensors.
    pub fn names(&self) -> Names {
        (self.family.definition().names)(self)
    }
}

/// The parts of the GPT lineage: norms with mean and bias, learned positions, biases everywhere, an
/// MLP four times as wide as the model, a tied output projection.
fn gpt(family: Family, sizes: &Sizes) -> ModelShape {
    let &Sizes {
        vocab_size,
        max_positions,
        layers,
        width,
        heads,
    } = sizes;
    ModelShape {
        family,
        vocab_size,
        max_positions,
        layers,
        width,
        embedding_width: width,
        heads,
        kv_heads: heads,
        head_dim: width / heads,
        mlp_width: 4 * width,
        norm: NormKind::Layer,
        norm_eps: 1e-5,
        qk_norm: false,
        order: BlockOrder::PreNorm,
        positions: Positions::Learned {
            unused: 0,
            places: 0,
        },
        local: None,
        scaled_attention: true,
        biases: Biases::ALL,
        activation: Activation::GeluTanh,
        gated: false,
        tie_embeddings: true,
    }
}

/// The parts of the Llama lineage: `RMSNorm`, rotary positions, a gated MLP of 8/3 the width, up to a
/// multiple of 32 (Shazeer 2020: as many parameters in three matrices as GPT-2 has in two), no biases.
fn llama_like(family: Family, sizes: &Sizes) -> ModelShape {
    ModelShape {
        mlp_width: (8 * sizes.width).div_ceil(3).next_multiple_of(32),
        norm: NormKind::Rms,
        positions: rotary(sizes.width / sizes.heads),
        biases: Biases::NONE,
        activation: Activation::Silu,
        gated: true,
        tie_embeddings: false,
        ..gpt(family, sizes)
    }
}

/// Plain rotary positions that rotate `width` numbers of a head, as halves.
fn rotary(width: usize) -> Positions {
    Positions::Rotary(Rotary {
        width,
        interleaved: false,
        theta: ModelShape::DEFAULT_ROPE_THETA,
        scaling: RopeScaling::None,
    })
}
