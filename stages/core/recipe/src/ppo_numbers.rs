//! The numbers that `rlhf plan` prints for a PPO stage.

use crate::arithmetic::{PACKED, frozen_bytes, packed_bytes, training_bytes, weight_bytes};
use crate::memory::{Held, Loss, Passes, Place};
use crate::numbers::{HOST_MEMORY, Numbers, bytes, entry, grouped, merged_bytes, peaks};
use crate::plan::{Dtype, Execution, PpoPlan, Quantization, RewardSource};
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
    numbers.extend(peaks(|place| ppo_bytes(task, execution, place)));
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
fn value_head(task: &PpoPlan) -> u64 {
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

/// Sampling, reference, value and score once; policy and value trained in every inner epoch. A head on the policy's trunk
/// costs next to nothing: its values come of the pass that samples, and its loss of the policy's update.
fn ppo_flops_per_episode(task: &PpoPlan, tokens: usize) -> f64 {
    let (policy, value) = (&task.shape, &task.value_shape);
    let lora = task.lora.as_ref();
    let train_policy = |context| {
        let forward = policy.forward_flops_per_token(context);
        policy.training_flops_per_token(forward, context, lora.map(|lora| &lora.policy))
    };
    let (value_forward, train_value) = if task.vf_coef.is_some() {
        (0.0, 0.0)
    } else {
        let forward = value.forward_flops_per_token(tokens);
        let lora = lora.map(|lora| &lora.value);
        let training = value.training_flops_per_token(forward, tokens, lora);
        (forward, training)
    };
    let rewards = task.reward.iter();
    let scores = rewards.map(|reward| reward.shape.forward_flops_per_token(tokens));
    let forward =
        2.0 * policy.forward_flops_per_token(tokens) + value_forward + scores.sum::<f64>();
    let training = train_policy(tokens) + train_value;
    let ptx = task.ptx.as_ref().map_or(0.0, |ptx| {
        let pretraining_tokens = (ptx.sequences_per_episode * ptx.context) as f64;
        pretraining_tokens * train_policy(ptx.context)
    });
    let inner_epochs = task.inner_epochs as f64;
    tokens as f64 * (forward + inner_epochs * training) + inner_epochs * ptx
}

/// What adapters are merged into at the end, one after the other: policy and value model, each with its
/// parameters and how its weights are kept until then.
fn ppo_merged(task: &PpoPlan) -> impl Iterator<Item = (u64, Option<Quantization>)> {
    let lora = task.lora.as_ref();
    let shared = lora.is_some_and(|lora| lora.share_backbone);
    let start = task.value_start().filter(|_| !shared);
    let value = start.map_or(task.reference_quantize, |index| task.reward[index].quantize);
    let models = [
        (task.shape.num_parameters(), task.reference_quantize),
        (task.value_shape.num_parameters_scalar(), value),
    ];
    models.into_iter().filter(move |_| lora.is_some())
}

/// What stays in memory, and the largest of what the parts of an iteration and the end have beside it.
pub(crate) fn ppo_bytes(task: &PpoPlan, execution: &Execution, place: Place) -> u64 {
    let dtype = execution.dtype;
    let merged =
        ppo_merged(task).map(|(parameters, quantize)| merged_bytes(parameters, dtype, quantize));
    let parts = [
        collecting_bytes(task, execution, place),
        learning_bytes(task, execution, place),
        merged.max().unwrap_or(0),
    ];
    ppo_resident_bytes(task, dtype) + parts.into_iter().max().unwrap_or(0)
}

/// The most of sampling and of scoring by reward models, reference and value model, one after the other.
fn collecting_bytes(task: &PpoPlan, execution: &Execution, place: Place) -> u64 {
    let sampling = &task.sampling;
    let lengths = (sampling.max_prompt_tokens, sampling.max_new_tokens);
    let micro_tokens = execution.micro_batch * (lengths.0 + lengths.1);
    let policy = Held {
        shape: &task.shape,
        head: Head::Token,
        lora: None,
        quantize: task.reference_quantize,
        execution,
        place,
    };
    let rows = execution
        .sample_batch
        .min(task.batch.max(task.eval_prompts));
    let chosen = Loss::Chosen(execution.micro_batch * lengths.1);
    let score = |shape, quantize| {
        let model = Held {
            shape,
            head: Head::Scalar,
            quantize,
            ..policy
        };
        model.scoring_bytes(micro_tokens, Loss::Scalar)
    };
    let text = task.ptx.as_ref().map_or(0, |ptx| {
        policy.forward_bytes(execution.micro_batch * ptx.context)
    });
    let rewards = task.reward.iter();
    let scores = rewards.map(|source| score(&source.shape, source.quantize));
    let parts = scores.chain([
        policy.sampling_bytes((rows, 1), lengths),
        policy.scoring_bytes(micro_tokens, chosen),
        // A head on the trunk reads the states that are sampled from.
        match task.vf_coef {
            Some(_) => 0,
            None => score(&task.value_shape, None),
        },
        text,
    ]);
    parts.max().unwrap_or(0)
}

/// The most of the policy's update, with its gradients on pretraining text, and the value model's.
fn learning_bytes(task: &PpoPlan, execution: &Execution, place: Place) -> u64 {
    let sampling = &task.sampling;
    let (prompt, new) = (sampling.max_prompt_tokens, sampling.max_new_tokens);
    let lora = task.lora.as_ref();
    let on_gradients = task.minibatch > execution.micro_batch;
    let policy = Held {
        shape: &task.shape,
        head: Head::Token,
        lora: lora.map(|lora| &lora.policy),
        quantize: task.reference_quantize,
        execution,
        place,
    };
    let value = Held {
        shape: &task.value_shape,
        head: Head::Scalar,
        lora: lora.map(|lora| &lora.value),
        ..policy
    };
    let episodes = Passes {
        tokens: execution.micro_batch * (prompt + new),
        loss: Loss::Chosen(execution.micro_batch * new),
        on_gradients,
    };
    let values = Passes {
        loss: Loss::Scalar,
        ..episodes
    };
    let text = task.ptx.as_ref().map_or(0, |ptx| {
        policy.update_bytes(&Passes {
            tokens: execution.micro_batch * ptx.context,
            loss: Loss::Tokens,
            on_gradients: true,
        })
    });
    if task.vf_coef.is_some() {
        return policy.update_bytes(&episodes).max(text);
    }
    // Both models' gradients wait for the end of the minibatch.
    let beside_policy = if on_gradients {
        value.waiting_bytes()
    } else {
        0
    };
    let parts = [
        policy.update_bytes(&episodes) + beside_policy,
        value.update_bytes(&values) + policy.waiting_bytes(),
        text + value.waiting_bytes(),
    ];
    parts.into_iter().max().unwrap_or(0)
}

/// Policy and value model (or its head) in training, reference and reward models, EMA. With adapters the reference is
/// the policy's frozen weights and the value model stands on those that it starts from; on a shared backbone all
/// of them stand on the policy's.
fn ppo_resident_bytes(task: &PpoPlan, dtype: Dtype) -> u64 {
    let (trained, value_trained) = ppo_trained(task);
    let policy = frozen_bytes(&task.shape, Head::Token, dtype, task.reference_quantize);
    let of_reward = |source: &RewardSource| match &task.lora {
        Some(lora) if lora.share_backbone => {
            let adapters = source.shape.num_trainable(Head::Scalar, Some(&lora.value));
            weight_bytes(adapters, dtype)
        }
        _ => frozen_bytes(&source.shape, Head::Scalar, dtype, source.quantize),
    };
    let frozen = policy + task.reward.iter().map(of_reward).sum::<u64>();
    let ema = match task.ema {
        // A head on the trunk is averaged with it.
        Some(_) if task.vf_coef.is_some() => weight_bytes(trained + value_trained, dtype.wide()),
        Some(_) => weight_bytes(trained, dtype.wide()),
        None => 0,
    };
    frozen + training_bytes(trained, dtype) + training_bytes(value_trained, dtype) + ema
}
