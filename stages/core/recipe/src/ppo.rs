//! Reads the table of a ppo stage.

use datasets::DatasetKind;

use crate::artefacts;
use crate::data_stages::{GOLD_RULES, sampling};
use crate::lora::{ppo_lora, under_adapters};
use crate::objective::check_continues_text;
use crate::plan::{
    Dtype, EosRule, Execution, KlPlan, PpoPlan, Quantization, RewardSource, SamplingPlan, Source,
};
use crate::pretraining::ptx;
use crate::reader::{Outcome, Range, Reader};
use crate::references::{Resolver, Wanted};
use crate::shape::ModelShape;
use crate::training::{DTYPES, QUANTIZATIONS, execution, optimizer};
use crate::tree::Value;

/// Whether the value model shares the policy's trunk.
const VALUE_MODELS: &[(&str, bool)] = &[("separate", false), ("shared", true)];

pub(crate) fn ppo(reader: &Reader<'_>, resolver: &Resolver<'_>) -> Outcome<(PpoPlan, Execution)> {
    let model = resolver.source(reader, "model", Wanted::Policy)?;
    check_continues_text(reader, resolver, &model)?;
    let shape = resolver.shape(reader, "model", &model)?;
    let under_policy = under_adapters(reader)?;
    let reward = rewards(reader, resolver, (&model, &shape), under_policy)?;
    let vf_coef = vf_coef(reader)?;
    let value_start = reward.iter().find(|reward| !reward.own_tokenizer);
    let value_start = value_start.filter(|_| vf_coef.is_none());
    let value_shape = value_start.map_or(&shape, |reward| &reward.shape).clone();
    let prompts = resolver.source(reader, "prompts", Wanted::Data(DatasetKind::Prompts))?;
    let sampling = sampling(reader, &shape)?;
    reward_positions(reader, &reward, &sampling)?;
    let tokens = sampling.max_prompt_tokens + sampling.max_new_tokens;
    fixed_angles(reader, "model", &shape, tokens)?;
    fixed_angles(reader, "reward", &value_shape, tokens)?;
    let batch = reader.count("batch", 1)?;
    let minibatch = minibatch(reader, batch)?;
    let policy_optimizer = optimizer(reader, "optimizer", None)?;
    let value_optimizer = match vf_coef {
        Some(_) => None,
        None => Some(optimizer(
            reader,
            "value_optimizer",
            Some(&policy_optimizer),
        )?),
    };
    let lora = ppo_lora(reader, resolver, (&model, &shape), (&reward, &value_shape))?;
    let plan = PpoPlan {
        lora: lora.map(|lora| lora.with_value_head(vf_coef.is_some())),
        ptx: ptx(reader, resolver, &shape)?,
        model,
        shape,
        reference_quantize: reference_quantize(reader, under_policy)?,
        reward,
        value_shape,
        vf_coef,
        prompts,
        sampling,
        iterations: reader.count("iterations", 1)? as u64,
        batch,
        minibatch,
        inner_epochs: reader.count("inner_epochs", 1)?,
        kl: kl(reader)?,
        gamma: reader.number("gamma", Range::UNIT)?,
        lambda: reader.number("lambda", Range::UNIT)?,
        clip: reader.number("clip", Range::SHARE)?,
        value_clip: reader.switch("value_clip", Range::POSITIVE)?,
        whiten_advantages: reader.flag("whiten_advantages")?,
        eos_rule: eos_rule(reader)?,
        ema: reader.switch("ema", Range::SHARE)?,
        policy_optimizer,
        value_optimizer,
        eval_every: reader.count("eval_every", 1)? as u64,
        eval_prompts: reader.count("eval_prompts", 1)?,
        gold: reader.choice_or_off("gold", GOLD_RULES)?,
        max_logprob_gap: max_logprob_gap(reader)?,
        nonfinite_skip: reader.count("nonfinite.skip", 0)? as u64,
    };
    let execution = Execution {
        sample_batch: reader.count("sample_batch", 1)?,
        ..execution(reader, "minibatch", minibatch)?
    };
    Ok((plan, execution))
}

/// PPO compares log-probabilities that were sampled with a cache with those of a full pass, and values with
/// each other: a token's must not change with what follows it.
fn fixed_angles(reader: &Reader<'_>, key: &str, shape: &ModelShape, tokens: usize) -> Outcome<()> {
    let trained = shape.fixed_positions();
    if tokens <= trained {
        return Ok(());
    }
    let message = format!(
        "prompt and response take {tokens} tokens, the model has dynamic rotary scaling and was trained on \
         {trained}: beyond them a token's angles change with the tokens that follow it"
    );
    let hint = "lengthen it with scaling \"yarn\" or \"linear\", or shorten max_prompt_tokens or max_new_tokens";
    Err(reader.problem(key, message, hint))
}

/// Whether values come from a head on the policy's trunk (`Some`: with this weight of their loss), and not from a model
/// of their own.
fn vf_coef(reader: &Reader<'_>) -> Outcome<Option<f64>> {
    if !reader.choice("value_model", VALUE_MODELS)? {
        let why = "has no meaning without value_model = \"shared\": a value model of its own has a loss of its own";
        let hint = "add value_model = \"shared\", or write value_optimizer = { lr = ... }";
        reader.refuse("vf_coef", why, hint)?;
        return Ok(None);
    }
    if reader.table.get("value_optimizer").is_some() {
        let message = "has no meaning beside value_model = \"shared\": the policy's optimizer trains the value head";
        let hint = "leave it out, and weigh the value loss with vf_coef";
        return Err(reader.problem("value_optimizer", message, hint));
    }
    Ok(Some(reader.number("vf_coef", Range::POSITIVE)?))
}

fn minibatch(reader: &Reader<'_>, batch: usize) -> Outcome<usize> {
    let minibatch = reader.count("minibatch", 1)?;
    if batch.is_multiple_of(minibatch) {
        return Ok(minibatch);
    }
    let message = format!("must divide batch {batch}, is {minibatch}");
    let hint = format!("choose a divisor of {batch}, or change batch");
    Err(reader.problem("minibatch", message, hint))
}

fn rewards(
    reader: &Reader<'_>,
    resolver: &Resolver<'_>,
    (policy, shape): (&Source, &ModelShape),
    under_policy: Option<Quantization>,
) -> Outcome<Vec<RewardSource>> {
    let hint = "write reward = [{ model = \"stage:NAME\", weight = 1.0 }]";
    let written = reader.table.get("reward").map(|entry| &entry.node.value);
    let Some(Value::List(items)) = written else {
        return Err(reader.missing("reward", hint));
    };
    if items.is_empty() {
        return Err(reader.problem("reward", "must name at least one reward model, is []", hint));
    }
    let mut rewards = Vec::with_capacity(items.len());
    let shared = reader.flag("lora.share_backbone")?;
    for (index, item) in items.iter().enumerate() {
        let reader = Reader {
            table: item,
            path: format!("{}.reward[{index}]", reader.path),
            prefix: "reward[].",
            origin: item.origin.clone(),
            ..reader.clone()
        };
        let model = resolver.source(&reader, "model", Wanted::Reward)?;
        let found = resolver.shape(&reader, "model", &model)?;
        let same = same_tokenizer(&reader, resolver, policy, &model)?;
        rewards.push(RewardSource {
            // The policy samples any row of its embedding, so the reward model must have as many.
            own_tokenizer: !same || found.vocab_size < shape.vocab_size,
            model,
            shape: found,
            quantize: reward_quantize(&reader, shared, under_policy)?,
            weight: reader.number_opt("weight", Range::FINITE)?.unwrap_or(1.0),
        });
    }
    Ok(rewards)
}

/// How a reward model's matrices are kept: as those under the policy's adapters, where it says nothing else. On
/// a shared backbone it has none of its own.
fn reward_quantize(
    reader: &Reader<'_>,
    shared: bool,
    under_policy: Option<Quantization>,
) -> Outcome<Option<Quantization>> {
    if shared {
        let why = "has no meaning beside share_backbone: the policy's weights are under the reward model's adapters";
        reader.refuse("quantize", why, "write quantize in the stage's own table")?;
        return Ok(None);
    }
    match reader.written("quantize") {
        Some(_) => reader.choice_or_off("quantize", QUANTIZATIONS),
        None => Ok(under_policy),
    }
}

/// How the reference's matrices are kept. With adapters they are those under the policy's.
fn reference_quantize(
    reader: &Reader<'_>,
    under_policy: Option<Quantization>,
) -> Outcome<Option<Quantization>> {
    if reader.table.get("lora").is_none() {
        return reader.choice_or_off("reference.quantize", QUANTIZATIONS);
    }
    let why = "has no meaning beside lora: the reference is the policy without its adapters";
    reader.refuse(
        "reference.quantize",
        why,
        "write quantize in the stage's own table",
    )?;
    Ok(under_policy)
}

/// Whether two models are known to have one tokenizer: a stage's and a folder's cannot be compared
/// before the stage has run.
fn same_tokenizer(
    reader: &Reader<'_>,
    resolver: &Resolver<'_>,
    policy: &Source,
    reward: &Source,
) -> Outcome<bool> {
    let (policy, reward) = (resolver.tokenizer_of(policy), resolver.tokenizer_of(reward));
    match (policy.outside(), reward.outside()) {
        (Some(policy), Some(reward)) => artefacts::same_tokenizer(policy, reward)
            .map_err(|(message, hint)| reader.problem("model", message, hint)),
        _ => Ok(policy == reward),
    }
}

/// Refuses episodes that a reward model which reads the policy's ids cannot hold.
fn reward_positions(
    reader: &Reader<'_>,
    rewards: &[RewardSource],
    sampling: &SamplingPlan,
) -> Outcome<()> {
    // A response that was cut off is scored with EOS behind it.
    let tokens = sampling.max_prompt_tokens + sampling.max_new_tokens + 1;
    for (index, reward) in rewards.iter().enumerate() {
        let positions = reward.shape.max_positions;
        if !reward.own_tokenizer && tokens > positions {
            let message = format!(
                "prompt, response and EOS take {tokens} tokens, the max_positions of reward[{index}] are {positions}"
            );
            let hint = "shorten max_prompt_tokens or max_new_tokens";
            return Err(reader.problem("reward", message, hint));
        }
    }
    Ok(())
}

fn kl(reader: &Reader<'_>) -> Outcome<KlPlan> {
    let coef = reader.number("kl.coef", Range::NOT_NEGATIVE)?;
    let Some(target) = reader.number_opt("kl.target", Range::POSITIVE)? else {
        let hint = "add kl.target, or leave kl.horizon out";
        reader.refuse("kl.horizon", "has no meaning without kl.target", hint)?;
        return Ok(KlPlan::Fixed { coef });
    };
    if coef == 0.0 {
        let message = "must be above 0 where kl.target moves it, is 0";
        return Err(reader.problem("kl.coef", message, "start from 0.1, or leave kl.target out"));
    }
    Ok(KlPlan::Adaptive {
        coef,
        target,
        horizon: reader.number("kl.horizon", Range::POSITIVE)?,
    })
}

/// One rule at most: a penalty takes the place of the replacing score.
fn eos_rule(reader: &Reader<'_>) -> Outcome<EosRule> {
    if let Some(penalty) = reader.switch("no_eos_penalty", Range::POSITIVE)? {
        let hint = "keep one of the two";
        reader.refuse("no_eos_score", "has no meaning beside no_eos_penalty", hint)?;
        return Ok(EosRule::Subtract { penalty });
    }
    let score = reader.switch("no_eos_score", Range::FINITE)?;
    Ok(score.map_or(EosRule::Off, |score| EosRule::Replace { score }))
}

/// What rounding alone may do to a log-probability: 1e-3 nats, half a nat in bfloat16.
fn max_logprob_gap(reader: &Reader<'_>) -> Outcome<f64> {
    let usual = match reader.choice("dtype", DTYPES)? {
        Dtype::F32 | Dtype::F64 => 1e-3,
        Dtype::Bf16 => 0.5,
    };
    Ok(reader
        .number_opt("max_logprob_gap", Range::POSITIVE)?
        .unwrap_or(usual))
}
