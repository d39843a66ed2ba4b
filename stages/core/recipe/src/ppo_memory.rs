//! What a PPO stage has in memory at its peak.

use crate::arithmetic::{state_bytes, weight_bytes};
use crate::memory::{Held, Loss, Passes, Site};
use crate::numbers::merged_bytes;
use crate::plan::{Execution, PpoPlan, Quantization, RewardSource};
use crate::ppo_numbers::value_head;
use crate::tensors::Head;

/// What adapters are merged into at the end, one after the other: policy and value model, each with its
/// parameters and how its weights are kept until then.
pub(crate) fn ppo_merged(task: &PpoPlan) -> impl Iterator<Item = (u64, Option<Quantization>)> {
    let models = [
        (task.shape.num_parameters(), task.reference_quantize),
        (
            task.value_shape.num_parameters_scalar(),
            value_quantize(task),
        ),
    ];
    models.into_iter().filter(|_| task.lora.is_some())
}

/// How the weights are kept on which the value model's adapters stand.
fn value_quantize(task: &PpoPlan) -> Option<Quantization> {
    let lora = task.lora.as_ref()?;
    let start = task.value_start().filter(|_| !lora.share_backbone);
    start.map_or(task.reference_quantize, |index| task.reward[index].quantize)
}

/// What stays in memory, and the largest of what the parts of an iteration and the end have beside it.
pub(crate) fn ppo_bytes(task: &PpoPlan, execution: &Execution, site: Site) -> u64 {
    let dtype = execution.dtype;
    let whole = [policy(task, execution, site), value(task, execution, site)];
    let merged = ppo_merged(task)
        .zip(&whole)
        .map(|((parameters, quantize), model)| {
            merged_bytes(parameters, dtype, quantize) + model.whole_blocks_bytes()
        });
    let parts = [
        collecting_bytes(task, execution, site),
        learning_bytes(task, execution, site),
        merged.max().unwrap_or(0),
    ];
    ppo_resident_bytes(task, execution, site) + parts.into_iter().max().unwrap_or(0)
}

/// What a PPO stage has of the policy in training.
pub(crate) fn policy<'a>(task: &'a PpoPlan, execution: &'a Execution, site: Site) -> Held<'a> {
    Held {
        shape: &task.shape,
        head: Head::Token,
        lora: task.lora.as_ref().map(|lora| &lora.policy),
        quantize: task.reference_quantize,
        execution,
        site,
    }
}

/// What it has of a value model of its own.
pub(crate) fn value<'a>(task: &'a PpoPlan, execution: &'a Execution, site: Site) -> Held<'a> {
    Held {
        shape: &task.value_shape,
        head: Head::Scalar,
        lora: task.lora.as_ref().map(|lora| &lora.value),
        quantize: value_quantize(task),
        ..policy(task, execution, site)
    }
}

/// What it has of a reward model.
pub(crate) fn judge<'a>(policy: &Held<'a>, source: &'a RewardSource) -> Held<'a> {
    Held {
        shape: &source.shape,
        head: Head::Scalar,
        quantize: source.quantize,
        lora: None,
        ..*policy
    }
}

/// The most of sampling and of scoring by reward models, reference and value model, one after the other.
fn collecting_bytes(task: &PpoPlan, execution: &Execution, site: Site) -> u64 {
    let sampling = &task.sampling;
    let lengths = (sampling.max_prompt_tokens, sampling.max_new_tokens);
    let micro_batch = execution.micro_batch.min(site.rows(task.batch));
    let micro_tokens = micro_batch * (lengths.0 + lengths.1);
    let policy = policy(task, execution, site);
    let rows = site.rows(task.batch.max(task.eval_prompts));
    let rows = execution.sample_batch.min(rows);
    let chosen = Loss::Chosen(micro_batch * lengths.1);
    let score = |model: Held<'_>| model.scoring_bytes(micro_tokens, Loss::Scalar);
    let text = task.ptx.as_ref().map_or(0, |ptx| {
        policy.evaluating_bytes(micro_batch * ptx.context, Loss::Tokens)
    });
    let rewards = task.reward.iter();
    let scores = rewards.map(|source| score(judge(&policy, source)));
    let parts = scores.chain([
        policy.sampling_bytes((rows, 1), lengths),
        policy.scoring_bytes(micro_tokens, chosen),
        // A head on the trunk reads the states that are sampled from.
        match task.vf_coef {
            Some(_) => 0,
            None => score(value(task, execution, site)),
        },
        text,
    ]);
    parts.max().unwrap_or(0)
}

/// The most of the policy's update, with its gradients on pretraining text, and the value model's.
fn learning_bytes(task: &PpoPlan, execution: &Execution, site: Site) -> u64 {
    let sampling = &task.sampling;
    let (prompt, new) = (sampling.max_prompt_tokens, sampling.max_new_tokens);
    let of_rank = site.rows(task.minibatch);
    let micro_batch = execution.micro_batch.min(of_rank);
    let on_gradients = of_rank > micro_batch;
    let policy = policy(task, execution, site);
    let value = value(task, execution, site);
    let values = Passes {
        tokens: micro_batch * (prompt + new),
        loss: Loss::Scalar,
        on_gradients,
        only: !on_gradients,
    };
    let episodes = Passes {
        loss: Loss::Chosen(micro_batch * new),
        only: !on_gradients && task.ptx.is_none(),
        ..values
    };
    let text = task.ptx.as_ref().map_or(0, |ptx| {
        policy.update_bytes(&Passes {
            tokens: micro_batch * ptx.context,
            loss: Loss::Tokens,
            on_gradients: true,
            only: false,
        })
    });
    if task.vf_coef.is_some() {
        return policy.update_bytes(&episodes).max(text);
    }
    // Both models' gradients wait for the end of the minibatch.
    let of_policy = policy.waiting_bytes(episodes.only);
    let of_value = value.waiting_bytes(values.only);
    let beside_policy = if on_gradients { of_value } else { 0 };
    let parts = [
        policy.update_bytes(&episodes) + beside_policy,
        value.update_bytes(&values) + of_policy,
        text + of_value,
    ];
    parts.into_iter().max().unwrap_or(0)
}

/// Policy and value model (or its head) in training, reference and reward models, EMA. With adapters the reference is
/// the policy's frozen weights and the value model stands on those that it starts from; on a shared backbone all
/// of them stand on the policy's.
fn ppo_resident_bytes(task: &PpoPlan, execution: &Execution, site: Site) -> u64 {
    let policy = policy(task, execution, site);
    let of_reward = |source: &RewardSource| match &task.lora {
        Some(lora) if lora.share_backbone => {
            let adapters = source.shape.num_trainable(Head::Scalar, Some(&lora.value));
            weight_bytes(adapters, execution.dtype)
        }
        _ => judge(&policy, source).frozen_bytes(),
    };
    let frozen = policy.frozen_bytes() + task.reward.iter().map(of_reward).sum::<u64>();
    // A head on the trunk is trained and averaged with it.
    let head = task.vf_coef.map_or(0, |_| value_head(task));
    let of_value = match task.vf_coef {
        Some(_) => weight_bytes(head, execution.dtype) + state_bytes(head, execution.dtype),
        None => value(task, execution, site).trained_bytes(),
    };
    let ema = task.ema.map_or(0, |_| policy.average_bytes(head));
    frozen + policy.trained_bytes() + of_value + ema
}
