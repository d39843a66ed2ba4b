//! The numbers that `rlhf plan` prints for a PPO stage.

use crate::arithmetic::{PACKED, packed_bytes, weight_bytes};
use crate::numbers::{HOST_MEMORY, Numbers, bytes, entry, grouped, peaks};
use crate::plan::{Execution, LoraPlan, PpoPlan};
use crate::ppo_memory::{ppo_bytes, ppo_merged};
use crate::shape::ModelShape;
use crate::tensors::Head;

pub(crate) fn ppo(task: &PpoPlan, execution: &Execution) -> Numbers {
    let tokens = task.sampling.max_prompt_tokens + task.sampling.max_new_tokens;
    let episodes = task.iterations * task.batch as u64;
    let updates = task.iterations * (task.batch / task.minibatch * task.inner_epochs) as u64;
    let flops = ppo_flops_per_episode(task, tokens) * episodes as f64;
    let mut numbers = vec![
        entry("parameters", grouped(task.shape.num_parameters())),
        match task.vf_coef {
            Some(_) => entry("parameters of the value head", grouped(value_head(task))),
            None => entry(
                "parameters of the value model",
                grouped(task.value_shape.num_parameters_scalar()),
            ),
        },
        entry("the value model starts from", value_start(task)),
    ];
    if task.lora.is_some() {
        let (policy, value) = ppo_trained(task);
        numbers.push(entry("trained parameters", grouped(policy)));
        if task.vf_coef.is_none() {
            numbers.push(entry(
                "trained parameters of the value model",
                grouped(value),
            ));
        }
    }
    numbers.extend([
        entry("episodes", grouped(episodes)),
        entry("updates", grouped(updates)),
        entry("tokens, at most", grouped(episodes * tokens as u64)),
        entry(
            "pretraining tokens (ptx)",
            match &task.ptx {
                Some(ptx) => grouped(
                    episodes * (task.inner_epochs * ptx.sequences_per_episode * ptx.context) as u64,
                ),
                None => "none: pretrain_data is not set".to_owned(),
            },
        ),
        entry("FLOPs, at most", format!("{flops:.3e}")),
    ]);
    numbers.extend(peaks(|site| ppo_bytes(task, execution, site)));
    let packed = packed_bytes(
        &task.shape,
        Head::Token,
        execution.dtype,
        task.reference_quantize,
    );
    numbers.push(entry(PACKED, bytes(packed)));
    let in_codes = ppo_merged(task).filter(|(_, quantize)| quantize.is_some());
    if let Some(largest) = in_codes.map(|(parameters, _)| parameters).max() {
        let host = weight_bytes(largest, execution.dtype);
        numbers.push(entry(HOST_MEMORY, bytes(host)));
    }
    numbers
}

/// Numbers of a head on the policy's trunk.
pub(crate) fn value_head(task: &PpoPlan) -> u64 {
    task.value_shape.embedding_width as u64
}

/// Numbers that are trained of the policy, and beside it of the value model.
fn ppo_trained(task: &PpoPlan) -> (u64, u64) {
    let lora = task.lora.as_ref();
    let policy = lora.map(|lora| &lora.policy);
    let value = lora.map(|lora| &lora.value);
    (
        task.shape.num_trainable(Head::Token, policy),
        match task.vf_coef {
            Some(_) => value_head(task),
            None => task.value_shape.num_trainable(Head::Scalar, value),
        },
    )
}

/// In words, which model's weights the value model begins with.
fn value_start(task: &PpoPlan) -> String {
    match task.value_start() {
        Some(index) => format!("reward[{index}]"),
        None if task.vf_coef.is_some() => {
            "the policy, whose trunk it shares, with a head of zeros".to_owned()
        }
        None => "the policy, with a head of zeros: no reward model reads its tokens".to_owned(),
    }
}

/// Sampling, reference, value and score once; policy and value trained in every inner epoch.
fn ppo_flops_per_episode(task: &PpoPlan, tokens: usize) -> f64 {
    let sampling = tokens as f64 * task.shape.forward_flops_per_token(tokens);
    let scoring: f64 = scoring_flops(task).iter().sum();
    let [policy, value] = training_flops(task);
    sampling + scoring + task.inner_epochs as f64 * (policy + value)
}

/// Of an episode, by the reference, the reward models, and the value model, whose head on the policy's trunk costs next
/// to nothing: its values come of the pass that samples.
pub(crate) fn scoring_flops(task: &PpoPlan) -> Vec<f64> {
    let tokens = task.sampling.max_prompt_tokens + task.sampling.max_new_tokens;
    let flops = |shape: &ModelShape| tokens as f64 * shape.forward_flops_per_token(tokens);
    let rewards = task.reward.iter().map(|reward| flops(&reward.shape));
    let value = task.vf_coef.is_none().then(|| flops(&task.value_shape));
    std::iter::once(flops(&task.shape))
        .chain(rewards)
        .chain(value)
        .collect()
}

/// Of an episode in an inner epoch: the policy's, with its pretraining text, and the value model's; the loss of a head on
/// the policy's trunk is part of the policy's update.
pub(crate) fn training_flops(task: &PpoPlan) -> [f64; 2] {
    let tokens = task.sampling.max_prompt_tokens + task.sampling.max_new_tokens;
    let lora = task.lora.as_ref();
    let flops = |shape: &ModelShape, lora: Option<&LoraPlan>, rows: usize, context: usize| {
        let forward = shape.forward_flops_per_token(context);
        (rows * context) as f64 * shape.training_flops_per_token(forward, context, lora)
    };
    let of_policy =
        |rows, context| flops(&task.shape, lora.map(|lora| &lora.policy), rows, context);
    let text = task
        .ptx
        .as_ref()
        .map_or(0.0, |ptx| of_policy(ptx.sequences_per_episode, ptx.context));
    let value = match task.vf_coef {
        Some(_) => 0.0,
        None => flops(&task.value_shape, lora.map(|lora| &lora.value), 1, tokens),
    };
    [of_policy(1, tokens) + text, value]
}
