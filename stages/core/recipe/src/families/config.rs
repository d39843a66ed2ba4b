//! Reading the keys of a `config.json`.

use serde_json::{Value, json};

use crate::error::ShapeError;
use crate::shape::{Activation, LocalAttention, ModelShape, Positions};

/// The key and value that say sinusoidal positions, in families with learned ones. The word is ours:
/// the table is stored as if it had been learned, so that other programs need not know it.
pub(super) const SINUSOIDAL: (&str, &str) = ("position_embedding_type", "sinusoidal");

/// The sliding window that transformers takes where Mistral's or Qwen's config has no word for one.
pub(super) const USUAL_WINDOW: usize = 4096;

/// The key that says a table of places within spans, in families with learned positions. The word is
/// ours; a program that knows neither it nor the table computes the same for a causal text.
pub(super) const PLACES: &str = "span_positions";

/// A `config.json` and the model type that it states.
pub(super) struct Config<'a> {
    value: &'a Value,
    pub(super) model_type: &'static str,
}

impl<'a> Config<'a> {
    pub(super) fn new(value: &'a Value, model_type: &'static str) -> Self {
        Self { value, model_type }
    }

    /// The value at `key`; `null` counts as absent.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn count_opt(&self, key: &'static str) -> Result<Option<usize>, ShapeError> {
        let expected = "a whole number of at least 1";
        let convert = |value: &Value| {
            let number = value.as_u64().filter(|&number| number > 0);
            number
                .map(|number| number as usize)
                .ok_or_else(|| wrong_type(key, expected, value))
        };
        self.get(key).map(convert).transpose()
    }

    pub(super) fn count(&self, key: &'static str) -> Result<usize, ShapeError> {
        self.count_opt(key)?.ok_or_else(|| self.missing(key))
    }

    /// The count at `key`, `usual` where it is absent; none where it is `null`.
    pub(super) fn count_or_null(
        &self,
        key: &'static str,
        usual: usize,
    ) -> Result<Option<usize>, ShapeError> {
        match self.value.get(key) {
            None => Ok(Some(usual)),
            Some(_) => self.count_opt(key),
        }
    }

    pub(super) fn missing(&self, key: &'static str) -> ShapeError {
        let model_type = self.model_type;
        ShapeError::Missing { key, model_type }
    }

    pub(super) fn number_opt(&self, key: &'static str) -> Result<Option<f64>, ShapeError> {
        let convert = |value: &Value| {
            value
                .as_f64()
                .ok_or_else(|| wrong_type(key, "a number", value))
        };
        self.get(key).map(convert).transpose()
    }

    pub(super) fn number(&self, key: &'static str, default: f64) -> Result<f64, ShapeError> {
        Ok(self.number_opt(key)?.unwrap_or(default))
    }

    pub(super) fn flag(&self, key: &'static str, default: bool) -> Result<bool, ShapeError> {
        let convert = |value: &Value| {
            value
                .as_bool()
                .ok_or_else(|| wrong_type(key, "true or false", value))
        };
        self.get(key).map_or(Ok(default), convert)
    }

    /// Refuses a key whose value is none of `supported`.
    pub(super) fn only(
        &self,
        key: &'static str,
        supported: &[Value],
        words: &'static str,
    ) -> Result<(), ShapeError> {
        match self.get(key) {
            Some(value) if !supported.contains(value) => Err(unsupported(key, value, words)),
            _ => Ok(()),
        }
    }

    pub(super) fn absent(&self, key: &'static str) -> Result<(), ShapeError> {
        self.only(key, &[], "none")
    }

    /// The activation at `key`, by transformers' names.
    pub(super) fn activation(
        &self,
        key: &'static str,
        default: Activation,
    ) -> Result<Activation, ShapeError> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        match value.as_str() {
            Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Ok(Activation::GeluTanh),
            Some("gelu") => Ok(Activation::Gelu),
            Some("relu") => Ok(Activation::Relu),
            Some("silu" | "swish") => Ok(Activation::Silu),
            _ => Err(unsupported(key, value, "gelu, gelu_new, relu, silu")),
        }
    }

    /// Learned positions, or the sinusoidal ones of [`SINUSOIDAL`] in families without unused rows.
    pub(super) fn added_positions(&self, unused: usize) -> Result<Positions, ShapeError> {
        let (key, word) = SINUSOIDAL;
        let learned = json!("absolute");
        if unused > 0 {
            self.only(key, &[learned], "absolute")?;
        } else {
            self.only(key, &[json!(word), learned], "sinusoidal, absolute")?;
        }
        if self.get(key).is_some_and(|value| value == word) {
            return Ok(Positions::Sinusoidal);
        }
        let places = self.count_opt(PLACES)?.unwrap_or(0);
        Ok(Positions::Learned { unused, places })
    }

    /// The width of a head of the Llama lineage: stated, or the model's over the heads.
    pub(super) fn head_dim(&self, width: usize, heads: usize) -> Result<usize, ShapeError> {
        match self.count_opt("head_dim")? {
            Some(head_dim) => Ok(head_dim),
            None if width.is_multiple_of(heads) => Ok(width / heads),
            None => Err(ShapeError::Inconsistent {
                what: format!("num_attention_heads {heads} must divide hidden_size {width}"),
                hint: "state head_dim where it does not",
            }),
        }
    }

    /// The sliding window of Qwen's configs: of the layers that `layer_types` names, or from
    /// `max_window_layers` on.
    pub(super) fn sliding_window(
        &self,
        layers: usize,
    ) -> Result<Option<LocalAttention>, ShapeError> {
        let window = self.count_or_null("sliding_window", USUAL_WINDOW)?;
        let (Some(window), true) = (window, self.flag("use_sliding_window", false)?) else {
            return Ok(None);
        };
        let local: Vec<usize> = match self.get("layer_types") {
            Some(types) => {
                let types = types.as_array().filter(|types| types.len() == layers);
                let words = "a list with full_attention or sliding_attention for each layer";
                let types = types
                    .ok_or_else(|| wrong_type("layer_types", words, &self.value["layer_types"]))?;
                let known = [json!("full_attention"), json!("sliding_attention")];
                if let Some(other) = types.iter().find(|kind| !known.contains(kind)) {
                    return Err(unsupported(
                        "layer_types",
                        other,
                        "full_attention, sliding_attention",
                    ));
                }
                (0..layers)
                    .filter(|&layer| types[layer] == known[1])
                    .collect()
            }
            None => (self.number("max_window_layers", 28.0)? as usize..layers).collect(),
        };
        Ok((!local.is_empty()).then_some(LocalAttention {
            window,
            layers: local,
        }))
    }
}

/// The keys that [`Config::sliding_window`] reads.
pub(super) fn write_sliding_window(shape: &ModelShape, config: &mut Value) {
    let kind = |layer| match &shape.local {
        Some(local) if local.layers.contains(&layer) => "sliding_attention",
        _ => "full_attention",
    };
    config["use_sliding_window"] = json!(shape.local.is_some());
    config["sliding_window"] = json!(shape.local.as_ref().map(|local| local.window));
    config["layer_types"] = (0..shape.layers).map(kind).collect();
    // transformers' default would be 28, and is not read beside `layer_types`.
    config["max_window_layers"] = json!(shape.layers);
}

/// transformers' name of an activation.
pub(super) fn activation_name(activation: Activation) -> &'static str {
    match activation {
        Activation::GeluTanh => "gelu_new",
        Activation::Gelu => "gelu",
        Activation::Relu => "relu",
        Activation::Silu => "silu",
    }
}

pub(super) fn unsupported(
    key: impl Into<String>,
    value: &Value,
    supported: impl Into<String>,
) -> ShapeError {
    ShapeError::Unsupported {
        key: key.into(),
        found: value.to_string(),
        supported: supported.into(),
    }
}

pub(super) fn wrong_type(key: &'static str, expected: &'static str, value: &Value) -> ShapeError {
    let found = value.to_string();
    ShapeError::Type {
        key,
        expected,
        found,
    }
}
