//! Reads the tables of stages that train on fixed data: pretrain, sft, reward.

use datasets::DatasetKind;

use crate::lengthen::lengthened;
use crate::lora::{lora, under_adapters};
use crate::model_table::{base_shape, fits, model_shape};
use crate::objective::objective;
use crate::plan::{
    Dtype, Duration, Execution, OptimizerPlan, Overlong, PretrainPlan, Quantization, RewardPlan,
    Schedule, SftPlan, Sharding, Source, TrainPlan,
};
use crate::pretraining::mix;
use crate::reader::{Outcome, Range, Reader};
use crate::references::{Resolver, Wanted};
use crate::tree::{Origin, Value};

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

pub(crate) const QUANTIZATIONS: &[(&str, Quantization)] =
    &[("int8", Quantization::Int8), ("int4", Quantization::Int4)];

const SCHEDULES: &[(&str, Schedule)] = &[
    ("constant", Schedule::Constant),
    ("linear", Schedule::Linear),
    ("cosine", Schedule::Cosine),
];

/// Sequences per forward pass where nothing says more: the largest divisor up to this.
const USUAL_MICRO_BATCH: usize = 16;

pub(crate) fn pretrain(reader: &Reader<'_>, resolver: &Resolver<'_>) -> Outcome<PretrainPlan> {
    let data = resolver.source(reader, "data", Wanted::Data(DatasetKind::Text))?;
    let written = reader.written("model").map(|node| &node.value);
    if matches!(written, Some(Value::Text(_))) {
        return continued(reader, resolver, data);
    }
    let hint = "choose the new model's context and model.rope_theta; rope lengthens model = \"stage:NAME\"";
    for key in ["rope.scaling", "rope.factor", "rope.theta"] {
        reader.refuse(key, "has no meaning for a model that is made anew", hint)?;
    }
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
    let (objective, model) = objective(reader, &tokenizer.source, model)?;
    fits(reader, "context", context, &model)?;
    Ok(PretrainPlan {
        data,
        start: None,
        tokenizer: tokenizer.source.clone(),
        model,
        objective,
        context,
        train: train(reader)?,
    })
}

/// Pretraining that goes on from a model, perhaps at a longer context.
fn continued(reader: &Reader<'_>, resolver: &Resolver<'_>, data: Source) -> Outcome<PretrainPlan> {
    let start = resolver.source(reader, "model", Wanted::Policy)?;
    let model = lengthened(reader, resolver.shape(reader, "model", &start)?)?;
    let (objective, model) = objective(reader, &resolver.tokenizer_of(&start), model)?;
    let context = reader
        .count_opt("context", 2)?
        .unwrap_or(model.max_positions);
    fits(reader, "context", context, &model)?;
    Ok(PretrainPlan {
        data,
        tokenizer: start.clone(),
        start: Some(start),
        model,
        objective,
        context,
        train: train(reader)?,
    })
}

pub(crate) fn sft(reader: &Reader<'_>, resolver: &Resolver<'_>) -> Outcome<SftPlan> {
    let model = resolver.source(reader, "model", Wanted::Policy)?;
    let shape = lengthened(reader, resolver.shape(reader, "model", &model)?)?;
    let data = resolver.source(reader, "data", Wanted::Data(DatasetKind::Demonstrations))?;
    let context = reader
        .count_opt("context", 2)?
        .unwrap_or(shape.max_positions);
    fits(reader, "context", context, &shape)?;
    let overlong = reader.choice("overlong", OVERLONG)?;
    let train = train(reader)?;
    Ok(SftPlan {
        lora: lora(reader, &shape)?,
        quantize: under_adapters(reader)?,
        model,
        shape,
        data,
        context,
        overlong,
        pretrain: mix(reader, resolver, train.batch)?,
        train,
    })
}

pub(crate) fn reward(reader: &Reader<'_>, resolver: &Resolver<'_>) -> Outcome<RewardPlan> {
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
        lora: lora(reader, &shape)?,
        quantize: under_adapters(reader)?,
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
    let shardings = Sharding::ALL.map(|sharding| (sharding.word(), sharding));
    Ok(Execution {
        dtype: reader.choice("dtype", DTYPES)?,
        micro_batch: micro_batch(reader, batch_key, batch)?,
        sample_batch: 1,
        checkpointing: reader.flag("checkpointing")?,
        sharding: reader.choice("sharding", &shardings)?,
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
