//! Reads the tables of stages that train on fixed data: pretrain, sft, reward.

use datasets::DatasetKind;

use crate::nearest;
use crate::plan::{
    Dtype, Duration, Execution, OptimizerPlan, Overlong, PretrainPlan, RewardPlan, Schedule,
    SftPlan, TrainPlan,
};
use crate::pretraining::mix;
use crate::reader::{Outcome, Range, Reader};
use crate::references::{Resolver, Wanted};
use crate::shape::{Family, ModelShape};
use crate::sizes;
use crate::tree::Origin;

pub(crate) const OVERLONG: &[(&str, Overlong)] = &[
    ("error", Overlong::Error),
    ("drop", Overlong::Drop),
    ("left", Overlong::Left),
];

pub(crate) const DTYPES: &[(&str, Dtype)] = &[
    ("f32", Dtype::F32),
    ("bf16", Dtype::Bf16),
    ("f64", Dtype::F64),
];

const SCHEDULES: &[(&str, Schedule)] = &[
    ("constant", Schedule::Constant),
    ("linear", Schedule::Linear),
    ("cosine", Schedule::Cosine),
];

pub(crate) const FAMILIES: &[(&str, Family)] = &[("gpt2", Family::Gpt2), ("llama", Family::Llama)];

/// Sequences per forward pass where nothing says more: the largest divisor up to this.
const USUAL_MICRO_BATCH: usize = 16;

pub(crate) fn pretrain(reader: &Reader<'_>, resolver: &Resolver) -> Outcome<PretrainPlan> {
    let data = resolver.source(reader, "data", Wanted::Data(DatasetKind::Text))?;
    let Some(tokenizer) = &resolver.tokenizer else {
        let hint =
            "add [tokenizer] with kind = \"bpe\", vocab_size and data, or kind = \"path\" and path";
        return Err(reader.problem("", "a pretrain stage needs the table [tokenizer]", hint));
    };
    let base = base_shape(reader)?;
    let context = match (reader.count_opt("context", 2)?, &base) {
        (Some(context), _) => context,
        (None, Some(base)) => base.max_positions,
        (None, None) => return Err(reader.missing("context", "write context = tokens per row")),
    };
    let model = model_shape(reader, base.as_ref(), tokenizer.vocab_size, context)?;
    fits(reader, "context", context, &model)?;
    Ok(PretrainPlan {
        data,
        tokenizer: tokenizer.source.clone(),
        model,
        context,
        train: train(reader)?,
    })
}

/// The shape of `model.size`, if it is written.
fn base_shape(reader: &Reader<'_>) -> Outcome<Option<ModelShape>> {
    let Some(size) = reader.text_opt("model.size")? else {
        return Ok(None);
    };
    let Some(base) = sizes::named(&size) else {
        let hint = nearest::hint(&size, &sizes::names(), "sizes");
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

fn model_shape(
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
    let layers = count("model.layers", base.map(|base| base.layers))?;
    let width = count("model.width", base.map(|base| base.width))?;
    let heads = count("model.heads", base.map(|base| base.heads))?;
    let kv_heads = count(
        "model.kv_heads",
        Some(base.map_or(heads, |base| base.kv_heads)),
    )?;
    let mlp_width = base.map_or_else(|| usual_mlp_width(family, width), |base| base.mlp_width);
    let max_positions = base.map_or(context, |base| base.max_positions);
    let theta = reader.number_opt("model.rope_theta", Range::POSITIVE)?;
    let eps = reader.number_opt("model.norm_eps", Range::SHARE)?;
    let tied = reader.flag_opt("model.tie_embeddings")?;
    let shape = ModelShape {
        family,
        vocab_size: reader
            .count_opt("model.vocab_size", 1)?
            .unwrap_or(vocab_size),
        max_positions: reader
            .count_opt("model.max_positions", 1)?
            .unwrap_or(max_positions),
        layers,
        width,
        heads,
        kv_heads,
        head_dim: width / heads,
        mlp_width: reader.count_opt("model.mlp_width", 1)?.unwrap_or(mlp_width),
        norm_eps: eps.unwrap_or_else(|| base.map_or(1e-5, |base| base.norm_eps)),
        rope_theta: theta
            .unwrap_or_else(|| base.map_or(ModelShape::DEFAULT_ROPE_THETA, |base| base.rope_theta)),
        tie_embeddings: tied
            .unwrap_or_else(|| base.map_or(family == Family::Gpt2, |base| base.tie_embeddings)),
    };
    check_shape(reader, &shape, vocab_size)?;
    Ok(shape)
}

/// GPT-2: four times the width. Llama: 8/3 of it, up to a multiple of 32 (Shazeer 2020: as many
/// parameters in three matrices as GPT-2 has in two).
fn usual_mlp_width(family: Family, width: usize) -> usize {
    match family {
        Family::Gpt2 => 4 * width,
        Family::Llama => (8 * width).div_ceil(3).next_multiple_of(32),
    }
}

/// The rules of [`ModelShape::check`], at the keys that break them.
fn check_shape(reader: &Reader<'_>, shape: &ModelShape, vocab_size: usize) -> Outcome<()> {
    let &ModelShape {
        family,
        width,
        heads,
        kv_heads,
        head_dim,
        ..
    } = shape;
    let wrong = |key: &str, message: String, hint: &str| Err(reader.problem(key, message, hint));
    if !width.is_multiple_of(heads) {
        let message = format!("must divide the width {width}, is {heads}");
        return wrong("model.heads", message, "choose a divisor of the width");
    }
    if !heads.is_multiple_of(kv_heads) {
        let message = format!("must divide the {heads} heads, is {kv_heads}");
        return wrong("model.kv_heads", message, "choose a divisor of heads");
    }
    if shape.vocab_size < vocab_size {
        let message = format!(
            "must be at least the tokenizer's {vocab_size}, is {}",
            shape.vocab_size
        );
        return wrong(
            "model.vocab_size",
            message,
            "leave it out: the tokenizer says it",
        );
    }
    match family {
        Family::Llama if !head_dim.is_multiple_of(2) => {
            let message =
                format!("must leave an even width to each head, {width} / {heads} is {head_dim}");
            wrong(
                "model.heads",
                message,
                "rotary positions turn pairs of numbers",
            )
        }
        Family::Gpt2 if kv_heads != heads => {
            let message = format!("must be the {heads} heads in family \"gpt2\", is {kv_heads}");
            wrong(
                "model.kv_heads",
                message,
                "take family \"llama\" for grouped-query attention",
            )
        }
        Family::Gpt2 => reader.refuse(
            "model.rope_theta",
            "has no meaning in family \"gpt2\", whose positions are learned",
            "leave it out, or take family \"llama\"",
        ),
        Family::Llama => Ok(()),
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

pub(crate) fn sft(reader: &Reader<'_>, resolver: &Resolver) -> Outcome<SftPlan> {
    let model = resolver.source(reader, "model", Wanted::Policy)?;
    let shape = resolver.shape(reader, "model", &model)?;
    let data = resolver.source(reader, "data", Wanted::Data(DatasetKind::Demonstrations))?;
    let context = reader
        .count_opt("context", 2)?
        .unwrap_or(shape.max_positions);
    fits(reader, "context", context, &shape)?;
    let overlong = reader.choice("overlong", OVERLONG)?;
    let train = train(reader)?;
    Ok(SftPlan {
        model,
        shape,
        data,
        context,
        overlong,
        pretrain: mix(reader, resolver, train.batch)?,
        train,
    })
}

pub(crate) fn reward(reader: &Reader<'_>, resolver: &Resolver) -> Outcome<RewardPlan> {
    let model = resolver.source(reader, "model", Wanted::Policy)?;
    let shape = resolver.shape(reader, "model", &model)?;
    let data = resolver.source(reader, "data", Wanted::Data(DatasetKind::Comparisons))?;
    let wanted = Wanted::Data(DatasetKind::Demonstrations);
    let demonstrations = resolver.source_opt(reader, "demonstrations", wanted)?;
    let context = reader
        .count_opt("context", 2)?
        .unwrap_or(shape.max_positions);
    fits(reader, "context", context, &shape)?;
    let overlong = reader.choice("overlong", OVERLONG)?;
    Ok(RewardPlan {
        model,
        shape,
        data,
        demonstrations,
        context,
        overlong,
        train: train(reader)?,
    })
}

fn train(reader: &Reader<'_>) -> Outcome<TrainPlan> {
    Ok(TrainPlan {
        batch: reader.count("batch", 1)?,
        duration: duration(reader)?,
        optimizer: optimizer(reader, "optimizer", None)?,
        eval_every: reader.count("eval_every", 1)? as u64,
        eval_examples: reader.count("eval_examples", 1)?,
        dropout: reader.number("dropout", Range::RATE)?,
        nonfinite_skip: reader.count("nonfinite.skip", 0)? as u64,
    })
}

/// Steps or epochs: the command line wins over the file, the file over the preset.
fn duration(reader: &Reader<'_>) -> Outcome<Duration> {
    let level = |key: &str| match reader.written(key).map(|node| &node.origin) {
        Some(Origin::Set { .. }) => 3,
        Some(_) => 2,
        None => usize::from(reader.preset_constant(key).is_some()),
    };
    let (steps, epochs) = (level("steps"), level("epochs"));
    if steps == 0 && epochs == 0 {
        return Err(reader.missing(
            "steps",
            "write steps = updates, or epochs = passes over the data",
        ));
    }
    if steps == epochs {
        return Err(reader.problem(
            "steps",
            "steps and epochs are both set",
            "keep one of the two",
        ));
    }
    if steps > epochs {
        return Ok(Duration::Steps(reader.count("steps", 1)? as u64));
    }
    Ok(Duration::Epochs(reader.number("epochs", Range::POSITIVE)?))
}

/// The optimizer in the table `name`; what it does not say is `base`'s, where there is one.
pub(crate) fn optimizer(
    reader: &Reader<'_>,
    name: &str,
    base: Option<&OptimizerPlan>,
) -> Outcome<OptimizerPlan> {
    let number = |key: &str, range, inherited: Option<f64>| {
        let key = format!("{name}.{key}");
        match reader.number_opt(&key, range)?.or(inherited) {
            Some(number) => Ok(number),
            None => Err(reader.missing(&key, format!("write {key} = {range}"))),
        }
    };
    let betas = reader.pair_opt(&format!("{name}.betas"), Range::RATE)?;
    let schedule = reader.choice_opt(&format!("{name}.schedule"), SCHEDULES)?;
    let warmup = reader.count_opt(&format!("{name}.warmup"), 0)?;
    let missing = |key: &str| reader.missing(&format!("{name}.{key}"), "write it");
    Ok(OptimizerPlan {
        lr: number("lr", Range::POSITIVE, base.map(|base| base.lr))?,
        betas: betas
            .or(base.map(|base| base.betas))
            .ok_or_else(|| missing("betas"))?,
        eps: number("eps", Range::POSITIVE, base.map(|base| base.eps))?,
        weight_decay: number(
            "weight_decay",
            Range::NOT_NEGATIVE,
            base.map(|base| base.weight_decay),
        )?,
        schedule: schedule
            .or(base.map(|base| base.schedule))
            .ok_or_else(|| missing("schedule"))?,
        floor: number("floor", Range::UNIT, base.map(|base| base.floor))?,
        warmup: warmup
            .map(|warmup| warmup as u64)
            .or(base.map(|base| base.warmup))
            .ok_or_else(|| missing("warmup"))?,
        warmup_from: number(
            "warmup_from",
            Range::UNIT,
            base.map(|base| base.warmup_from),
        )?,
        clip: number("clip", Range::POSITIVE, base.map(|base| base.clip))?,
    })
}

/// How a stage is computed here; `batch` (the value of `batch_key`) is made of micro-batches.
pub(crate) fn execution(reader: &Reader<'_>, batch_key: &str, batch: usize) -> Outcome<Execution> {
    Ok(Execution {
        dtype: reader.choice("dtype", DTYPES)?,
        micro_batch: micro_batch(reader, batch_key, batch)?,
        checkpointing: reader.flag("checkpointing")?,
        save_every: reader.count("save_every", 1)? as u64,
        keep: reader.count("keep", 1)?,
    })
}

fn micro_batch(reader: &Reader<'_>, batch_key: &str, batch: usize) -> Outcome<usize> {
    let Some(micro_batch) = reader.count_opt("micro_batch", 1)? else {
        let divisor = |size: &usize| batch.is_multiple_of(*size);
        return Ok((1..=USUAL_MICRO_BATCH.min(batch))
            .rev()
            .find(divisor)
            .unwrap_or(1));
    };
    if batch.is_multiple_of(micro_batch) {
        return Ok(micro_batch);
    }
    let message = format!("must divide {batch_key} {batch}, is {micro_batch}");
    let hint = format!("choose a divisor of {batch}, or change {batch_key}");
    Err(reader.problem("micro_batch", message, hint))
}
