//! `config.json` of a Hugging Face folder, to and from [`ModelShape`].
//!
//! Reading refuses by name every feature that would change the computation and that the model
//! crate does not compute; what concerns training alone (dropout, initialisation) is passed over.

use serde_json::{Map, Value, json};

use crate::error::ShapeError;
use crate::shape::{Family, ModelShape};

impl Family {
    /// The family's `model_type`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Llama => "llama",
        }
    }

    /// The class that `transformers` opens a folder with, for a language model or a scalar head.
    pub fn architecture(self, scalar: bool) -> &'static str {
        match (self, scalar) {
            (Self::Gpt2, false) => "GPT2LMHeadModel",
            (Self::Gpt2, true) => "GPT2ForSequenceClassification",
            (Self::Llama, false) => "LlamaForCausalLM",
            (Self::Llama, true) => "LlamaForSequenceClassification",
        }
    }
}

impl ModelShape {
    /// Reads the shape out of a `config.json`.
    ///
    /// # Errors
    /// [`ShapeError`] for an unknown `model_type`, a missing or malformed key, numbers that do not
    /// fit together, and every feature that is not computed here.
    pub fn from_hf(config: &Value) -> Result<Self, ShapeError> {
        let model_type = config.get("model_type").and_then(Value::as_str);
        let shape = match model_type {
            Some("gpt2") => gpt2(&Config {
                config,
                model_type: "gpt2",
            })?,
            Some("llama") => llama(&Config {
                config,
                model_type: "llama",
            })?,
            Some(other) => {
                return Err(ShapeError::Family {
                    found: format!("{other:?}"),
                });
            }
            None => {
                return Err(ShapeError::Missing {
                    key: "model_type",
                    model_type: "gpt2 or llama",
                });
            }
        };
        shape.check()?;
        Ok(shape)
    }

    /// The keys of `config.json` that say this shape, `model_type` included; heads, token ids and
    /// `architectures` are the caller's to add.
    pub fn to_hf(&self) -> Map<String, Value> {
        let config = match self.family {
            Family::Gpt2 => json!({
                "model_type": "gpt2",
                "vocab_size": self.vocab_size,
                "n_positions": self.max_positions,
                "n_layer": self.layers,
                "n_embd": self.width,
                "n_head": self.heads,
                "n_inner": self.mlp_width,
                "layer_norm_epsilon": self.norm_eps,
                "activation_function": "gelu_new",
                "tie_word_embeddings": self.tie_embeddings,
            }),
            Family::Llama => json!({
                "model_type": "llama",
                "vocab_size": self.vocab_size,
                "max_position_embeddings": self.max_positions,
                "num_hidden_layers": self.layers,
                "hidden_size": self.width,
                "num_attention_heads": self.heads,
                "num_key_value_heads": self.kv_heads,
                "head_dim": self.head_dim,
                "intermediate_size": self.mlp_width,
                "rms_norm_eps": self.norm_eps,
                "rope_theta": self.rope_theta,
                "rope_parameters": { "rope_type": "default", "rope_theta": self.rope_theta },
                "hidden_act": "silu",
                "attention_bias": false,
                "mlp_bias": false,
                "tie_word_embeddings": self.tie_embeddings,
            }),
        };
        match config {
            Value::Object(map) => map,
            _ => unreachable!("both families write objects"),
        }
    }

    /// Checks that the numbers fit together.
    ///
    /// # Errors
    /// [`ShapeError::Inconsistent`], naming the numbers and the rule.
    pub fn check(&self) -> Result<(), ShapeError> {
        let Self {
            family,
            width,
            heads,
            kv_heads,
            head_dim,
            ..
        } = *self;
        let wrong = |what: String, hint| Err(ShapeError::Inconsistent { what, hint });
        let sizes = [
            self.vocab_size,
            self.max_positions,
            self.layers,
            width,
            heads,
            kv_heads,
        ];
        if sizes.contains(&0) || head_dim == 0 || self.mlp_width == 0 {
            return wrong(
                format!("a size is 0 in {self:?}"),
                "every size must be at least 1",
            );
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            let what = format!("norm_eps must be above 0 and below 1, is {}", self.norm_eps);
            return wrong(what, "1e-5 is usual");
        }
        if heads % kv_heads != 0 {
            let what = format!("kv_heads {kv_heads} must divide heads {heads}");
            return wrong(
                what,
                "give as many key heads as query heads, or a divisor of them",
            );
        }
        match family {
            Family::Gpt2 if heads * head_dim != width => wrong(
                format!("heads {heads} times head_dim {head_dim} must be width {width}"),
                "choose a number of heads that divides the width",
            ),
            Family::Gpt2 if kv_heads != heads => wrong(
                format!("kv_heads {kv_heads} must be heads {heads}"),
                "GPT-2 has no grouped-query attention",
            ),
            Family::Llama if head_dim % 2 != 0 => wrong(
                format!("head_dim {head_dim} must be even"),
                "rotary positions turn pairs of numbers",
            ),
            Family::Llama if !(self.rope_theta > 0.0 && self.rope_theta.is_finite()) => wrong(
                format!("rope_theta must be above 0, is {}", self.rope_theta),
                "10000 is usual",
            ),
            _ => Ok(()),
        }
    }
}

/// A `config.json` and the model type that it states.
struct Config<'a> {
    config: &'a Value,
    model_type: &'static str,
}

impl Config<'_> {
    /// The value at `key`; `null` counts as absent.
    fn get(&self, key: &str) -> Option<&Value> {
        self.config.get(key).filter(|value| !value.is_null())
    }

    fn count_opt(&self, key: &'static str) -> Result<Option<usize>, ShapeError> {
        let expected = "a whole number of at least 1";
        let convert = |value: &Value| {
            let number = value.as_u64().filter(|&number| number > 0);
            number
                .map(|number| number as usize)
                .ok_or_else(|| wrong_type(key, expected, value))
        };
        self.get(key).map(convert).transpose()
    }

    fn count(&self, key: &'static str) -> Result<usize, ShapeError> {
        let missing = ShapeError::Missing {
            key,
            model_type: self.model_type,
        };
        self.count_opt(key)?.ok_or(missing)
    }

    fn number(&self, key: &'static str, default: f64) -> Result<f64, ShapeError> {
        let convert = |value: &Value| {
            value
                .as_f64()
                .ok_or_else(|| wrong_type(key, "a number", value))
        };
        self.get(key).map_or(Ok(default), convert)
    }

    fn flag(&self, key: &'static str, default: bool) -> Result<bool, ShapeError> {
        let convert = |value: &Value| {
            value
                .as_bool()
                .ok_or_else(|| wrong_type(key, "true or false", value))
        };
        self.get(key).map_or(Ok(default), convert)
    }

    /// Refuses a key whose value is none of `supported`.
    fn only(
        &self,
        key: &'static str,
        supported: &[Value],
        words: &'static str,
    ) -> Result<(), ShapeError> {
        match self.get(key) {
            Some(value) if !supported.contains(value) => Err(ShapeError::Unsupported {
                key,
                found: value.to_string(),
                supported: words,
            }),
            _ => Ok(()),
        }
    }

    fn absent(&self, key: &'static str) -> Result<(), ShapeError> {
        self.only(key, &[], "none")
    }
}

fn wrong_type(key: &'static str, expected: &'static str, value: &Value) -> ShapeError {
    ShapeError::Type {
        key,
        expected,
        found: value.to_string(),
    }
}

fn gpt2(config: &Config<'_>) -> Result<ModelShape, ShapeError> {
    let gelu = [json!("gelu_new"), json!("gelu_pytorch_tanh")];
    config.only("activation_function", &gelu, "gelu_new")?;
    config.only("scale_attn_weights", &[json!(true)], "true")?;
    config.only("scale_attn_by_inverse_layer_idx", &[json!(false)], "false")?;
    config.only("add_cross_attention", &[json!(false)], "false")?;
    config.absent("quantization_config")?;
    let width = config.count("n_embd")?;
    let heads = config.count("n_head")?;
    Ok(ModelShape {
        family: Family::Gpt2,
        vocab_size: config.count("vocab_size")?,
        max_positions: match config.count_opt("n_positions")? {
            Some(positions) => positions,
            None => config.count("n_ctx")?,
        },
        layers: config.count("n_layer")?,
        width,
        heads,
        kv_heads: heads,
        head_dim: width / heads,
        mlp_width: config.count_opt("n_inner")?.unwrap_or(4 * width),
        norm_eps: config.number("layer_norm_epsilon", 1e-5)?,
        rope_theta: ModelShape::DEFAULT_ROPE_THETA,
        tie_embeddings: config.flag("tie_word_embeddings", true)?,
    })
}

fn llama(config: &Config<'_>) -> Result<ModelShape, ShapeError> {
    config.only("hidden_act", &[json!("silu"), json!("swish")], "silu")?;
    config.only("attention_bias", &[json!(false)], "false")?;
    config.only("mlp_bias", &[json!(false)], "false")?;
    config.only("partial_rotary_factor", &[json!(1), json!(1.0)], "1")?;
    config.absent("sliding_window")?;
    config.absent("quantization_config")?;
    let width = config.count("hidden_size")?;
    let heads = config.count("num_attention_heads")?;
    let head_dim = match config.count_opt("head_dim")? {
        Some(head_dim) => head_dim,
        None if width % heads == 0 => width / heads,
        None => {
            return Err(ShapeError::Inconsistent {
                what: format!("num_attention_heads {heads} must divide hidden_size {width}"),
                hint: "state head_dim where it does not",
            });
        }
    };
    Ok(ModelShape {
        family: Family::Llama,
        vocab_size: config.count("vocab_size")?,
        max_positions: config.count("max_position_embeddings")?,
        layers: config.count("num_hidden_layers")?,
        width,
        heads,
        kv_heads: config.count_opt("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        mlp_width: config.count("intermediate_size")?,
        norm_eps: config.number("rms_norm_eps", 1e-6)?,
        rope_theta: rope_theta(config)?,
        tie_embeddings: config.flag("tie_word_embeddings", false)?,
    })
}

/// The rotary base, of either layout: `rope_theta` beside `rope_scaling`, or `rope_parameters`.
fn rope_theta(config: &Config<'_>) -> Result<f64, ShapeError> {
    let unsupported = |key, value: &Value| ShapeError::Unsupported {
        key,
        found: value.to_string(),
        supported: "rope_type \"default\"",
    };
    let mut thetas = Vec::new();
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(table) = config.get(key) else {
            continue;
        };
        let kind = table.get("rope_type").or_else(|| table.get("type"));
        if !kind.is_none_or(|kind| kind == "default") || !table.is_object() {
            return Err(unsupported(key, table));
        }
        let known = ["rope_type", "type", "rope_theta"];
        let extra = |(name, value): (&String, &Value)| {
            !(known.contains(&name.as_str())
                || (name == "partial_rotary_factor" && *value == json!(1.0)))
        };
        if table
            .as_object()
            .is_some_and(|table| table.iter().any(extra))
        {
            return Err(unsupported(key, table));
        }
        let nested = Config {
            config: table,
            model_type: config.model_type,
        };
        if nested.get("rope_theta").is_some() {
            thetas.push(nested.number("rope_theta", 0.0)?);
        }
    }
    if config.get("rope_theta").is_some() {
        thetas.push(config.number("rope_theta", 0.0)?);
    }
    if thetas
        .windows(2)
        .any(|pair| pair[0].to_bits() != pair[1].to_bits())
    {
        return Err(ShapeError::Inconsistent {
            what: format!(
                "rope_theta is stated twice, as {} and {}",
                thetas[0], thetas[1]
            ),
            hint: "make rope_theta and rope_parameters.rope_theta agree",
        });
    }
    Ok(thetas
        .first()
        .copied()
        .unwrap_or(ModelShape::DEFAULT_ROPE_THETA))
}
