//! The numbers that `rlhf plan` prints for a stage: what follows from the plan, then the plan itself.

use serde_json::Value;

use crate::arithmetic::{
    final_learning_rate, frozen_bytes, model_bytes, training_bytes, weight_bytes,
};
use crate::plan::{
    Dtype, Duration, Execution, LabelPlan, LoraPlan, Plan, PpoPlan, PretrainPlan, Quantization,
    RewardSource, Source, StagePlan, Task, TrainPlan,
};
use crate::shape::ModelShape;
use crate::tensors::Head;

type Numbers = Vec<(String, String)>;

/// What a stage will cost, then every resolved key of its task and execution.
///
/// Counts that depend on data not yet read (epochs) are left in those terms.
pub fn stage_numbers(plan: &Plan, stage: &StagePlan) -> Vec<(String, String)> {
    let execution = &stage.execution;
    let mut numbers = match &stage.task {
        Task::Import(_) | Task::Tokenizer(_) => Vec::new(),
        Task::Pretrain(task) => pretrain(task, execution),
        Task::Sft(task) => {
            let cost = Cost {
                shape: &task.shape,
                head: Head::Token,
                lora: task.lora.as_ref(),
                quantize: task.quantize,
                execution,
            };
            training(&cost, &task.train, task.context, 1)
        }
        Task::Label(task) => label(task, execution),
        Task::Reward(task) => {
            let cost = Cost {
                shape: &task.shape,
                head: Head::Scalar,
                lora: task.lora.as_ref(),
                quantize: task.quantize,
                execution,
            };
            training(
                &cost,
                &task.train,
                task.context,
                responses(plan, &task.data),
            )
        }
        Task::Ppo(task) => ppo(task, execution),
    };
    flatten("", &stage.config_json(), &mut numbers);
    if let Task::Ppo(task) = &stage.task {
        numbers.push(("max_logprob_gap".to_owned(), number(task.max_logprob_gap)));
    }
    if !matches!(stage.task, Task::Import(_) | Task::Tokenizer(_)) {
        let execution = serde_json::to_value(execution);
        let execution = execution.unwrap_or_else(|error| unreachable!("plain data: {error}"));
        flatten("", &execution, &mut numbers);
    }
    numbers
}

/// A model being trained.
struct Cost<'a> {
    shape: &'a ModelShape,
    head: Head,
    lora: Option<&'a LoraPlan>,
    quantize: Option<Quantization>,
    execution: &'a Execution,
}

/// Responses per prompt, where a label stage of the plan says it; else two.
fn responses(plan: &Plan, data: &Source) -> usize {
    let Source::Stage { name } = data else {
        return 2;
    };
    match plan.stage(name).map(|stage| &stage.task) {
        Some(Task::Label(label)) => label.responses,
        _ => 2,
    }
}

fn pretrain(task: &PretrainPlan, execution: &Execution) -> Numbers {
    let cost = Cost {
        shape: &task.model,
        head: Head::Token,
        lora: None,
        quantize: None,
        execution,
    };
    training(&cost, &task.train, task.context, 1)
}

/// `rows`: sequences in one element of the batch (reward: the responses of a prompt).
fn training(cost: &Cost<'_>, train: &TrainPlan, context: usize, rows: usize) -> Numbers {
    let Cost {
        shape,
        head,
        lora,
        quantize,
        execution,
    } = *cost;
    let tokens_per_update = (train.batch * rows * context) as f64;
    let forward = shape.forward_flops_per_token(context);
    let flops_per_update =
        tokens_per_update * shape.training_flops_per_token(forward, context, lora);
    let micro_tokens = execution.micro_batch * rows * context;
    let (parameters, logits) = match head {
        Head::Token => {
            let logits = shape.logit_bytes(micro_tokens, execution.dtype);
            (shape.num_parameters(), logits)
        }
        Head::Scalar => (shape.num_parameters_scalar(), 0),
    };
    let update = shape.activation_bytes(micro_tokens, execution) + logits;
    let mut memory = model_bytes(shape, head, execution.dtype, lora, quantize) + update;
    let mut numbers = vec![entry("parameters", grouped(parameters))];
    if lora.is_some() {
        let trained = shape.num_trainable(head, lora);
        numbers.push(entry("trained parameters", grouped(trained)));
        let merged = merged_bytes(parameters, execution.dtype, quantize);
        memory += merged.saturating_sub(update);
    }
    numbers.extend([
        entry(
            "tokens per update, at most",
            grouped(tokens_per_update as u64),
        ),
        entry("FLOPs per update", format!("{flops_per_update:.3e}")),
    ]);
    match train.duration {
        Duration::Steps(steps) => {
            numbers.push(entry("updates", grouped(steps)));
            numbers.push(entry(
                "tokens, at most",
                grouped((tokens_per_update * steps as f64) as u64),
            ));
            numbers.push(entry(
                "FLOPs",
                format!("{:.3e}", flops_per_update * steps as f64),
            ));
        }
        Duration::Epochs(epochs) => {
            numbers.push(entry(
                "updates",
                format!("{epochs} epochs, counted once the data is there"),
            ));
        }
    }
    numbers.push(entry(
        "last learning rate",
        number(final_learning_rate(&train.optimizer)),
    ));
    numbers.push(entry("peak memory, predicted", bytes(memory)));
    if let Some(host) = quantize.map(|_| weight_bytes(parameters, execution.dtype)) {
        numbers.push(entry(HOST_MEMORY, bytes(host)));
    }
    numbers
}

/// What is made of adapters on codes for `final/`.
const HOST_MEMORY: &str = "merged weights at the end, in the host's memory";

/// The merged weights of `final/`, once nothing is updated any more. Those of a quantised model are made in the
/// host's memory ([`HOST_MEMORY`]).
fn merged_bytes(parameters: u64, dtype: Dtype, quantize: Option<Quantization>) -> u64 {
    match quantize {
        Some(_) => 0,
        None => weight_bytes(parameters, dtype),
    }
}

fn label(task: &LabelPlan, execution: &Execution) -> Numbers {
    let shape = &task.shape;
    let tokens = task.sampling.max_prompt_tokens + task.sampling.max_new_tokens;
    let episodes = (task.num_prompts + task.num_heldout) * task.responses;
    let flops = episodes as f64 * tokens as f64 * shape.forward_flops_per_token(tokens);
    let memory = frozen_bytes(shape, Head::Token, execution.dtype, task.quantize)
        + execution.sample_batch as u64 * shape.cache_bytes(tokens, execution.dtype);
    vec![
        entry("parameters", grouped(shape.num_parameters())),
        entry("samples", grouped(episodes as u64)),
        entry("tokens, at most", grouped((episodes * tokens) as u64)),
        entry("FLOPs, at most", format!("{flops:.3e}")),
        entry("peak memory, predicted", bytes(memory)),
    ]
}

fn ppo(task: &PpoPlan, execution: &Execution) -> Numbers {
    let tokens = task.sampling.max_prompt_tokens + task.sampling.max_new_tokens;
    let episodes = task.iterations * task.batch as u64;
    let updates = task.iterations * (task.batch / task.minibatch * task.inner_epochs) as u64;
    let flops = ppo_flops_per_episode(task, tokens) * episodes as f64;
    let mut numbers = vec![
        entry("parameters", grouped(task.shape.num_parameters())),
        entry(
            "parameters of the value model",
            grouped(task.value_shape.num_parameters_scalar()),
        ),
        entry("the value model starts from", value_start(task)),
    ];
    if task.lora.is_some() {
        let (policy, value) = ppo_trained(task);
        numbers.extend([
            entry("trained parameters", grouped(policy)),
            entry("trained parameters of the value model", grouped(value)),
        ]);
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
        entry(
            "peak memory, predicted",
            bytes(ppo_bytes(task, tokens, execution)),
        ),
    ]);
    if task.lora.is_some() && task.reference_quantize.is_some() {
        let host = weight_bytes(task.shape.num_parameters(), execution.dtype);
        numbers.push(entry(HOST_MEMORY, bytes(host)));
    }
    numbers
}

/// Numbers that are trained of policy and value model.
fn ppo_trained(task: &PpoPlan) -> (u64, u64) {
    let lora = task.lora.as_ref();
    let policy = lora.map(|lora| &lora.policy);
    let value = lora.map(|lora| &lora.value);
    (
        task.shape.num_trainable(Head::Token, policy),
        task.value_shape.num_trainable(Head::Scalar, value),
    )
}

/// In words, which model's weights the value model begins with.
fn value_start(task: &PpoPlan) -> String {
    match task.value_start() {
        Some(index) => format!("reward[{index}]"),
        None => "the policy, with a head of zeros: no reward model reads its tokens".to_owned(),
    }
}

/// Sampling, reference, value and score once; policy and value trained in every inner epoch.
fn ppo_flops_per_episode(task: &PpoPlan, tokens: usize) -> f64 {
    let (policy, value) = (&task.shape, &task.value_shape);
    let lora = task.lora.as_ref();
    let train_policy = |context| {
        let forward = policy.forward_flops_per_token(context);
        policy.training_flops_per_token(forward, context, lora.map(|lora| &lora.policy))
    };
    let value_forward = value.forward_flops_per_token(tokens);
    let rewards = task.reward.iter();
    let scores = rewards.map(|reward| reward.shape.forward_flops_per_token(tokens));
    let forward =
        2.0 * policy.forward_flops_per_token(tokens) + value_forward + scores.sum::<f64>();
    let value_lora = lora.map(|lora| &lora.value);
    let training =
        train_policy(tokens) + value.training_flops_per_token(value_forward, tokens, value_lora);
    let ptx = task.ptx.as_ref().map_or(0.0, |ptx| {
        let pretraining_tokens = (ptx.sequences_per_episode * ptx.context) as f64;
        pretraining_tokens * train_policy(ptx.context)
    });
    let inner_epochs = task.inner_epochs as f64;
    tokens as f64 * (forward + inner_epochs * training) + inner_epochs * ptx
}

/// What stays in memory, and the largest of the cache, the activations of a micro-batch, and with adapters
/// the merged weights of `final/`.
fn ppo_bytes(task: &PpoPlan, tokens: usize, execution: &Execution) -> u64 {
    let dtype = execution.dtype;
    let sample_batch = execution.sample_batch.min(task.batch);
    let cache = sample_batch as u64 * task.shape.cache_bytes(tokens, dtype);
    let sequence = task
        .ptx
        .as_ref()
        .map_or(tokens, |ptx| tokens.max(ptx.context));
    let micro_tokens = execution.micro_batch * sequence;
    let update = task.shape.activation_bytes(micro_tokens, execution)
        + task.shape.logit_bytes(micro_tokens, dtype);
    let merged = match task.lora {
        Some(_) => merged_bytes(task.shape.num_parameters(), dtype, task.reference_quantize),
        None => 0,
    };
    ppo_resident_bytes(task, dtype) + cache.max(update).max(merged)
}

/// Policy and value model in training, reference and reward models, EMA. With adapters the reference is the
/// policy's frozen weights and the value model stands on those that it starts from; on a shared backbone all
/// of them stand on the policy's.
fn ppo_resident_bytes(task: &PpoPlan, dtype: Dtype) -> u64 {
    let (trained, value_trained) = ppo_trained(task);
    let policy = frozen_bytes(&task.shape, Head::Token, dtype, task.reference_quantize);
    let of_reward = |source: &RewardSource| match &task.lora {
        Some(lora) if lora.share_backbone => weight_bytes(value_trained, dtype),
        _ => frozen_bytes(&source.shape, Head::Scalar, dtype, source.quantize),
    };
    let frozen = policy + task.reward.iter().map(of_reward).sum::<u64>();
    let ema = match task.ema {
        Some(_) => weight_bytes(trained, wide(dtype)),
        None => 0,
    };
    frozen + training_bytes(trained, dtype) + training_bytes(value_trained, dtype) + ema
}

/// The type of master weights.
fn wide(dtype: Dtype) -> Dtype {
    match dtype {
        Dtype::Bf16 | Dtype::F32 => Dtype::F32,
        Dtype::F64 => Dtype::F64,
    }
}

fn entry(name: &str, value: String) -> (String, String) {
    (name.to_owned(), value)
}

/// The leaves of a JSON value, by dotted key.
fn flatten(path: &str, value: &Value, numbers: &mut Numbers) {
    let below = |key: &str| crate::schema::join(path, key);
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                flatten(&below(key), value, numbers);
            }
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            for (index, item) in items.iter().enumerate() {
                flatten(&format!("{path}[{index}]"), item, numbers);
            }
        }
        Value::Null => numbers.push(entry(path, "off".to_owned())),
        Value::String(text) => numbers.push(entry(path, text.clone())),
        Value::Number(float) if float.is_f64() => {
            numbers.push(entry(path, number(float.as_f64().unwrap_or_default())));
        }
        other => numbers.push(entry(path, other.to_string())),
    }
}

/// A number as short as it can be written and read again.
fn number(value: f64) -> String {
    format!("{value:?}")
}

/// `1234567` as `1,234,567`.
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn bytes(count: u64) -> String {
    let mut value = count as f64;
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped_by_three() {
        for (number, text) in [
            (7, "7"),
            (999, "999"),
            (1000, "1,000"),
            (12_345_678, "12,345,678"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
