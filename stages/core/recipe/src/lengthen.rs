//! Reads the table `rope`: a model that a stage continues at a longer context.

use crate::families::rope::{times, yarn_attention_factor};
use crate::reader::{Outcome, Range, Reader};
use crate::shape::{ModelShape, Positions, RopeScaling, Rotary, Yarn};

/// The methods that stretch frequencies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Linear,
    Dynamic,
    Yarn,
    Llama3,
}

const METHODS: &[(&str, Method)] = &[
    ("linear", Method::Linear),
    ("dynamic", Method::Dynamic),
    ("yarn", Method::Yarn),
    ("llama3", Method::Llama3),
];

/// The shape of the model that `key` names, `shape`, with what the table `rope` makes of its positions:
/// `factor` times as many of them, another base, or another scaling. A model that is scaled already keeps its
/// method, and the factors multiply.
pub(crate) fn lengthened(reader: &Reader<'_>, shape: ModelShape) -> Outcome<ModelShape> {
    let method = reader.choice_opt("rope.scaling", METHODS)?;
    let factor = reader.number_opt("rope.factor", Range::FROM_ONE)?;
    let theta = reader.number_opt("rope.theta", Range::POSITIVE)?;
    if method.is_none() && factor.is_none() && theta.is_none() {
        return Ok(shape);
    }
    let Some(&rotary) = shape.rotary() else {
        let message = format!(
            "has no meaning for this model of family {:?}, whose positions are {}",
            shape.family.model_type(),
            shape.positions.word()
        );
        let hint =
            "leave it out, or continue a model with rotary positions, like one of family \"llama\"";
        return Err(reader.problem("rope", message, hint));
    };
    if method.is_some() && factor.is_none() {
        let hint = "write factor = how many times longer the context becomes";
        return Err(reader.missing("rope.factor", hint));
    }
    let factor = factor.unwrap_or(1.0);
    let Some(scaling) = scaled(rotary.scaling, method, factor, shape.max_positions) else {
        let old = rotary.scaling.word();
        let message = format!("must be that of the model, which is scaled as {old:?} already");
        let hint = "leave it out: the model keeps its method, and the factors multiply";
        return Err(reader.problem("rope.scaling", message, hint));
    };
    let shape = ModelShape {
        max_positions: match scaling {
            RopeScaling::Dynamic { factor, original } => times(original, factor),
            _ => times(shape.max_positions, factor),
        },
        positions: Positions::Rotary(Rotary {
            theta: theta.unwrap_or(rotary.theta),
            scaling,
            ..rotary
        }),
        ..shape
    };
    match shape.check() {
        Ok(()) => Ok(shape),
        Err(error) => Err(reader.problem("rope", error.to_string(), "choose another scaling")),
    }
}

/// A scaling made `factor` times longer; `None` where the model has another method already.
fn scaled(
    old: RopeScaling,
    method: Option<Method>,
    factor: f64,
    trained: usize,
) -> Option<RopeScaling> {
    use RopeScaling::{Dynamic, Linear, Llama3, None as Plain, Yarn as Yarned};
    let (method, old_factor, original) = match (old, method) {
        (Plain, None) => return Some(Plain),
        (Plain, Some(method)) => (method, 1.0, trained),
        (Linear { factor }, None | Some(Method::Linear)) => (Method::Linear, factor, trained),
        (Dynamic { factor, original }, None | Some(Method::Dynamic)) => {
            (Method::Dynamic, factor, original)
        }
        (Yarned(yarn), None | Some(Method::Yarn)) => (Method::Yarn, yarn.factor, yarn.original),
        (
            Llama3 {
                factor, original, ..
            },
            None | Some(Method::Llama3),
        ) => (Method::Llama3, factor, original),
        _ => return None,
    };
    let factor = old_factor * factor;
    Some(match method {
        Method::Linear => Linear { factor },
        Method::Dynamic => Dynamic { factor, original },
        Method::Yarn => Yarned(Yarn {
            factor,
            original,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: yarn_attention_factor(factor),
            truncate: true,
        }),
        Method::Llama3 => Llama3 {
            factor,
            low_frequency: 1.0,
            high_frequency: 4.0,
            original,
        },
    })
}
