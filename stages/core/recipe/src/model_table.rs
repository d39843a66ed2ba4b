//! Reads the table `model` of a pretraining stage.

use serde_json::Value;

use crate::check::Excess;
use crate::families::Sizes;
use crate::nearest;
use crate::reader::{Outcome, Range, Reader};
use crate::shape::{Family, LocalAttention, ModelShape, Positions, Rotary};
use crate::sizes;

pub(crate) const FAMILIES: &[(&str, Family)] = &[
    ("gpt1", Family::Gpt1),
    ("gpt2", Family::Gpt2),
    ("gpt_neo", Family::GptNeo),
    ("gpt_neox", Family::GptNeox),
    ("opt", Family::Opt),
    ("llama", Family::Llama),
    ("mistral", Family::Mistral),
    ("qwen2", Family::Qwen2),
    ("qwen3", Family::Qwen3),
    ("falcon", Family::Falcon),
    ("glm", Family::Glm),
];

/// The shape of `model.size`, if it is written.
pub(crate) fn base_shape(reader: &Reader<'_>) -> Outcome<Option<ModelShape>> {
    let Some(size) = reader.text_opt("model.size")? else {
        return Ok(None);
    };
    let Some(base) = sizes::named(&size) else {
        let nearest = nearest::nearest(&size, &sizes::names());
        let guess = nearest.map_or(String::new(), |name| format!("did you mean `{name}`? "));
        let hint = guess + "`rlhf model sizes` lists all";
        return Err(reader.problem(
            "model.size",
            format!("there is no size called {size:?}"),
            hint,
        ));
    };
    if let Some(family) = reader.choice_opt("model.family", FAMILIES)?
        && family != base.family
    {
        let message = format!("{size} is of family {:?}", base.family.model_type());
        return Err(reader.problem(
            "model.family",
            message,
            "leave family out: the size says it",
        ));
    }
    Ok(Some(base))
}

pub(crate) fn model_shape(
    reader: &Reader<'_>,
    base: Option<&ModelShape>,
    vocab_size: usize,
    context: usize,
) -> Outcome<ModelShape> {
    let hint = || "write model = { family = \"llama\", layers = 4, width = 192, heads = 3 } or { size = \"gpt2-124m\" }";
    let count = |key: &str, published: Option<usize>| match reader.count_opt(key, 1)?.or(published)
    {
        Some(count) => Ok(count),
        None => Err(reader.missing(key, hint())),
    };
    let family = match base {
        Some(base) => base.family,
        None => reader
            .choice_opt("model.family", FAMILIES)?
            .ok_or_else(|| reader.missing("model.family", hint()))?,
    };
    let (width, heads) = (
        count("model.width", base.map(|base| base.width))?,
        count("model.heads", base.map(|base| base.heads))?,
    );
    if !width.is_multiple_of(heads) {
        let message = format!("must divide the width {width}, is {heads}");
        return Err(reader.problem("model.heads", message, "choose a divisor of the width"));
    }
    let sizes = Sizes {
        vocab_size: reader
            .count_opt("model.vocab_size", 1)?
            .unwrap_or(vocab_size),
        max_positions: reader
            .count_opt("model.max_positions", 1)?
            .unwrap_or(base.map_or(context, |base| base.max_positions)),
        layers: count("model.layers", base.map(|base| base.layers))?,
        width,
        heads,
    };
    within_bounds(reader, sizes.excess())?;
    let usual = base.map_or_else(|| family.shape(&sizes), |base| base.resized(&sizes));
    let shape = ModelShape {
        kv_heads: reader
            .count_opt("model.kv_heads", 1)?
            .unwrap_or(usual.kv_heads),
        mlp_width: reader
            .count_opt("model.mlp_width", 1)?
            .unwrap_or(usual.mlp_width),
        norm_eps: reader
            .number_opt("model.norm_eps", Range::SHARE)?
            .unwrap_or(usual.norm_eps),
        positions: positions(reader, &usual)?,
        local: local(reader, &usual)?,
        tie_embeddings: reader
            .flag_opt("model.tie_embeddings")?
            .unwrap_or(usual.tie_embeddings),
        ..usual.clone()
    };
    within_bounds(reader, shape.excess())?;
    check_shape(reader, &shape, vocab_size)?;
    check_stored(reader, &shape, &family.shape(&sizes))?;
    Ok(shape)
}

fn within_bounds(reader: &Reader<'_>, excess: Option<Excess>) -> Outcome<()> {
    excess.map_or(Ok(()), |Excess { name, found, most }| {
        let message = format!("must be at most {most}, is {found}");
        Err(reader.problem(&format!("model.{name}"), message, Excess::HINT))
    })
}

/// A checkpoint's config.json must say the whole shape: GPT-1's has no word for the MLP's width, OPT's none for
/// the norms' epsilon. `usual` is the family's own shape of this size.
fn check_stored(reader: &Reader<'_>, shape: &ModelShape, usual: &ModelShape) -> Outcome<()> {
    let stored = Value::Object(shape.to_hf());
    if ModelShape::from_hf(&stored).as_ref() == Ok(shape) {
        return Ok(());
    }
    let message = format!(
        "the config.json of family {:?} cannot say a model with these numbers",
        shape.family.model_type()
    );
    let hint = format!(
        "the family's own: mlp_width = {}, norm_eps = {:e}, kv_heads = {}",
        usual.mlp_width, usual.norm_eps, usual.kv_heads
    );
    Err(reader.problem("model", message, hint))
}

/// How positions are known: as the family does, or sinusoidal ones in place of learned ones, or `ALiBi`
/// in place of Falcon's rotary ones.
fn positions(reader: &Reader<'_>, usual: &ModelShape) -> Outcome<Positions> {
    let mut choices = vec![(usual.positions.word(), usual.positions)];
    match usual.positions {
        // A stored table has no rows for unused positions (OPT's) where it is computed.
        Positions::Learned { unused: 0, .. } => choices.push(("sinusoidal", Positions::Sinusoidal)),
        Positions::Rotary(_) if usual.family == Family::Falcon => {
            choices.push(("alibi", Positions::Alibi));
        }
        _ => {}
    }
    let positions = reader
        .choice_opt("model.positions", &choices)?
        .unwrap_or(usual.positions);
    let theta = reader.number_opt("model.rope_theta", Range::POSITIVE)?;
    match (positions, theta) {
        (Positions::Rotary(rotary), Some(theta)) => {
            Ok(Positions::Rotary(Rotary { theta, ..rotary }))
        }
        (_, None) => Ok(positions),
        (other, Some(_)) => {
            let message = format!(
                "has no meaning in this model of family {:?}, whose positions are {}",
                usual.family.model_type(),
                other.word()
            );
            let hint = "leave it out, or take a family with rotary positions, like \"llama\"";
            Err(reader.problem("model.rope_theta", message, hint))
        }
    }
}

/// The layers with a sliding window: the family's, with the window that is written; all layers of a
/// family that stores a window and usually has none.
fn local(reader: &Reader<'_>, usual: &ModelShape) -> Outcome<Option<LocalAttention>> {
    let Some(window) = reader.count_opt("model.window", 1)? else {
        return Ok(usual.local.clone());
    };
    let family = usual.family;
    let layers = match (&usual.local, family) {
        (Some(local), _) => local.layers.clone(),
        (None, Family::Mistral | Family::Qwen2 | Family::Qwen3) => (0..usual.layers).collect(),
        _ => {
            let message = format!("has no meaning in family {:?}", family.model_type());
            let hint =
                "take family \"mistral\", \"gpt_neo\", \"qwen2\" or \"qwen3\" for a sliding window";
            return Err(reader.problem("model.window", message, hint));
        }
    };
    Ok(Some(LocalAttention { window, layers }))
}

/// The rules of [`ModelShape::check`], at the keys that break them.
fn check_shape(reader: &Reader<'_>, shape: &ModelShape, vocab_size: usize) -> Outcome<()> {
    let &ModelShape {
        family,
        heads,
        kv_heads,
        head_dim,
        ..
    } = shape;
    let wrong = |key: &str, message: String, hint: &str| Err(reader.problem(key, message, hint));
    if !heads.is_multiple_of(kv_heads) {
        let message = format!("must divide the {heads} heads, is {kv_heads}");
        return wrong("model.kv_heads", message, "choose a divisor of heads");
    }
    if shape.vocab_size < vocab_size {
        let message = format!(
            "must be at least the tokenizer's {vocab_size}, is {}",
            shape.vocab_size
        );
        let hint = "leave it out: the tokenizer says it";
        return wrong("model.vocab_size", message, hint);
    }
    if kv_heads != heads && !family.grouped() {
        let message = format!(
            "must be the {heads} heads in family {:?}, is {kv_heads}",
            family.model_type()
        );
        let hint = "take family \"llama\" for grouped-query attention";
        return wrong("model.kv_heads", message, hint);
    }
    match shape.rotary() {
        Some(rotary) if !rotary.width.is_multiple_of(2) => {
            let message = format!(
                "must leave an even number of a head's {head_dim} numbers to be rotated, {heads} leaves {}",
                rotary.width
            );
            wrong(
                "model.heads",
                message,
                "rotary positions rotate pairs of numbers",
            )
        }
        _ => Ok(()),
    }
}

/// Checks that sequences of `tokens` fit a model.
pub(crate) fn fits(
    reader: &Reader<'_>,
    key: &str,
    tokens: usize,
    shape: &ModelShape,
) -> Outcome<()> {
    if tokens <= shape.max_positions {
        return Ok(());
    }
    let message = format!(
        "must be at most the model's max_positions {}, is {tokens}",
        shape.max_positions
    );
    let hint = "shorten it, or give the model more max_positions when it is pretrained";
    Err(reader.problem(key, message, hint))
}
