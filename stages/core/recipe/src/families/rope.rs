//! Rotary positions in `config.json`: `rope_theta` beside `rope_scaling`, or `rope_parameters`
//! (transformers 5).

use serde_json::{Value, json};

use super::config::{Config, unsupported, wrong_type};
use crate::error::ShapeError;
use crate::shape::{ModelShape, Positions, RopeScaling, Rotary, Yarn};

/// Where a family states the base and the share of a head outside the tables.
pub(super) struct Keys {
    pub(super) theta: &'static str,
    /// The key, and the share where nothing states it; `None` in families that rotate whole heads.
    pub(super) share: Option<(&'static str, f64)>,
}

impl Keys {
    pub(super) const USUAL: Self = Self {
        theta: "rope_theta",
        share: None,
    };
}

/// All keys that a table may hold.
const KNOWN: [&str; 14] = [
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
    "truncate",
];

pub(super) fn read(
    config: &Config<'_>,
    keys: &Keys,
    head_dim: usize,
    max_positions: usize,
) -> Result<Positions, ShapeError> {
    let tables: Vec<(&'static str, &Value)> = ["rope_scaling", "rope_parameters"]
        .into_iter()
        .filter_map(|key| config.get(key).map(|table| (key, table)))
        .collect();
    let (share_key, usual_share) = keys.share.unwrap_or((SHARE, 1.0));
    let original = config.count_opt(ORIGINAL)?;
    let mut thetas = numbers(config, keys.theta)?;
    let mut shares = numbers(config, share_key)?;
    let mut scalings = Vec::new();
    for (key, table) in &tables {
        let Some(map) = table.as_object() else {
            return Err(wrong_type(key, "an object", table));
        };
        let unknown = |(name, _): &(&String, &Value)| !KNOWN.contains(&name.as_str());
        if let Some((name, value)) = map.iter().find(unknown) {
            return Err(unsupported(
                format!("{key}.{name}"),
                value,
                KNOWN.join(", "),
            ));
        }
        let nested = Config::new(table, config.model_type);
        thetas.extend(numbers(&nested, "rope_theta")?);
        shares.extend(numbers(&nested, SHARE)?);
        // As in transformers: the key outside the table wins.
        let original = original.or(nested.count_opt(ORIGINAL)?);
        let original = original.unwrap_or(max_positions);
        scalings.push(scaling(&nested, key, table, (original, max_positions))?);
    }
    let theta = agreed(keys.theta, &thetas)?.unwrap_or(ModelShape::DEFAULT_ROPE_THETA);
    let share = agreed(share_key, &shares)?.unwrap_or(usual_share);
    if keys.share.is_none() && share.to_bits() != 1_f64.to_bits() {
        return Err(unsupported(SHARE, &json!(share), "1 in this family"));
    }
    if scalings.windows(2).any(|pair| pair[0] != pair[1]) {
        return Err(ShapeError::Inconsistent {
            what: "rope_scaling and rope_parameters differ".to_owned(),
            hint: "remove one of them",
        });
    }
    Ok(Positions::Rotary(Rotary {
        width: (head_dim as f64 * share) as usize,
        interleaved: false,
        theta,
        scaling: scalings.first().copied().unwrap_or(RopeScaling::None),
    }))
}

/// The key of a head's share in a table.
const SHARE: &str = "partial_rotary_factor";
/// The key of the positions trained on.
const ORIGINAL: &str = "original_max_position_embeddings";
const SUPPORTED: &str = "rope_type default, linear, dynamic, yarn, llama3";

fn numbers(config: &Config<'_>, key: &'static str) -> Result<Vec<f64>, ShapeError> {
    Ok(config.number_opt(key)?.into_iter().collect())
}

/// One number where it is stated, however often.
fn agreed(key: &'static str, stated: &[f64]) -> Result<Option<f64>, ShapeError> {
    if stated
        .windows(2)
        .any(|pair| pair[0].to_bits() != pair[1].to_bits())
    {
        return Err(ShapeError::Inconsistent {
            what: format!("{key} is stated twice, as {} and {}", stated[0], stated[1]),
            hint: "make the key and that in rope_parameters or rope_scaling agree",
        });
    }
    Ok(stated.first().copied())
}

fn scaling(
    table: &Config<'_>,
    key: &'static str,
    value: &Value,
    (original, max_positions): (usize, usize),
) -> Result<RopeScaling, ShapeError> {
    let required = |key: &'static str| table.number_opt(key)?.ok_or_else(|| table.missing(key));
    let kind = table.get("rope_type").or_else(|| table.get("type"));
    match kind.map_or(Some("default"), Value::as_str) {
        Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear {
            factor: required("factor")?,
        }),
        Some("dynamic") => Ok(RopeScaling::Dynamic {
            factor: required("factor")?,
            original: max_positions,
        }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: required("factor")?,
            low_frequency: required("low_freq_factor")?,
            high_frequency: required("high_freq_factor")?,
            original,
        }),
        Some("yarn") => {
            let stretch = max_positions as f64 / original as f64;
            let factor = table.number("factor", stretch)?;
            Ok(RopeScaling::Yarn(Yarn {
                factor,
                original,
                beta_fast: table.number("beta_fast", 32.0)?,
                beta_slow: table.number("beta_slow", 1.0)?,
                attention_factor: attention_factor(table, factor)?,
                truncate: table.flag("truncate", true)?,
            }))
        }
        _ => Err(unsupported(key, value, SUPPORTED)),
    }
}

/// The scale of a published `YaRN` model (Peng et al. 2023, section 3.4).
pub(crate) fn yarn_attention_factor(factor: f64) -> f64 {
    yarn_scale(factor, 1.0)
}

fn yarn_scale(factor: f64, weight: f64) -> f64 {
    if factor <= 1.0 {
        1.0
    } else {
        0.1 * weight * factor.ln() + 1.0
    }
}

/// `0.1 ln(factor) + 1` (Peng et al. 2023, section 3.4), unless the table says otherwise.
fn attention_factor(table: &Config<'_>, factor: f64) -> Result<f64, ShapeError> {
    if let Some(stated) = table.number_opt("attention_factor")? {
        return Ok(stated);
    }
    let scale = |weight: f64| yarn_scale(factor, weight);
    let (one, all) = (
        table.number("mscale", 0.0)?,
        table.number("mscale_all_dim", 0.0)?,
    );
    Ok(if one != 0.0 && all != 0.0 {
        scale(one) / scale(all)
    } else {
        scale(1.0)
    })
}

/// The keys of a shape's rotary positions; none where it has others.
pub(super) fn write(shape: &ModelShape, keys: &Keys, config: &mut Value) {
    let Some(rotary) = shape.rotary() else {
        return;
    };
    let mut table = match rotary.scaling {
        RopeScaling::None => json!({ "rope_type": "default" }),
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Dynamic { factor, .. } => json!({ "rope_type": "dynamic", "factor": factor }),
        RopeScaling::Llama3 {
            factor,
            low_frequency,
            high_frequency,
            original,
        } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_frequency,
            "high_freq_factor": high_frequency,
            "original_max_position_embeddings": original,
        }),
        RopeScaling::Yarn(yarn) => json!({
            "rope_type": "yarn",
            "factor": yarn.factor,
            "original_max_position_embeddings": yarn.original,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
            "attention_factor": yarn.attention_factor,
            "truncate": yarn.truncate,
        }),
    };
    // transformers before version 5 reads these.
    if rotary.scaling != RopeScaling::None {
        config["rope_scaling"] = table.clone();
    }
    table["rope_theta"] = json!(rotary.theta);
    config["rope_theta"] = json!(rotary.theta);
    if keys.share.is_some() {
        let share = share(rotary.width, shape.head_dim);
        table[SHARE] = json!(share);
        config[SHARE] = json!(share);
    }
    config["rope_parameters"] = table;
}

/// `max_position_embeddings` of a model with dynamic scaling is the trained length, which transformers
/// computes the base from; rows may be `factor` times longer.
pub(super) fn stretch(shape: &mut ModelShape) {
    if let Some(&Rotary {
        scaling: RopeScaling::Dynamic { factor, original },
        ..
    }) = shape.rotary()
    {
        shape.max_positions = times(original, factor);
    }
}

/// [`stretch`], the other way.
pub(super) fn unstretch(shape: &ModelShape, config: &mut Value) {
    if shape.fixed_positions() != shape.max_positions {
        config["max_position_embeddings"] = json!(shape.fixed_positions());
    }
}

/// Positions, `factor` times as many.
pub(crate) fn times(positions: usize, factor: f64) -> usize {
    (positions as f64 * factor) as usize
}

/// A share of `whole` that is `part` again once it is multiplied and rounded down.
fn share(part: usize, whole: usize) -> f64 {
    let share = part as f64 / whole as f64;
    if ((whole as f64 * share) as usize) < part {
        share.next_up()
    } else {
        share
    }
}
