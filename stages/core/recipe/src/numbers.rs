//! The numbers that `rlhf plan` prints for a stage: what follows from the plan, then the plan itself.

use serde_json::Value;

use crate::arithmetic::{final_learning_rate, training_bytes, weight_bytes};
use crate::plan::{
    Dtype, Duration, Execution, LabelPlan, Plan, PpoPlan, PretrainPlan, Source, StagePlan, Task,
    TrainPlan,
};
use crate::shape::ModelShape;

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
                parameters: task.shape.num_parameters(),
                execution,
            };
            training(&cost, &task.train, task.context, 1)
        }
        Task::Label(task) => label(task, execution),
        Task::Reward(task) => {
            let shape = &task.shape;
            let cost = Cost {
                shape,
                parameters: shape.num_parameters_scalar(),
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
    parameters: u64,
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
        parameters: task.model.num_parameters(),
        execution,
    };
    training(&cost, &task.train, task.context, 1)
}

/// `rows`: sequences in one element of the batch (reward: the responses of a prompt).
fn training(cost: &Cost<'_>, train: &TrainPlan, context: usize, rows: usize) -> Numbers {
    let Cost {
        shape,
        parameters,
        execution,
    } = *cost;
    let tokens_per_update = (train.batch * rows * context) as f64;
    let flops_per_update = tokens_per_update * shape.training_flops_per_token(context);
    let micro_tokens = execution.micro_batch * rows * context;
    let has_logits = parameters == shape.num_parameters();
    let logits = if has_logits {
        shape.logit_bytes(micro_tokens, execution.dtype)
    } else {
        0
    };
    let memory = training_bytes(parameters, execution.dtype)
        + shape.activation_bytes(micro_tokens, execution)
        + logits;
    let mut numbers = vec![
        entry("parameters", grouped(parameters)),
        entry(
            "tokens per update, at most",
            grouped(tokens_per_update as u64),
        ),
        entry("FLOPs per update", format!("{flops_per_update:.3e}")),
    ];
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
    numbers
}

fn label(task: &LabelPlan, execution: &Execution) -> Numbers {
    let shape = &task.shape;
    let tokens = task.sampling.max_prompt_tokens + task.sampling.max_new_tokens;
    let episodes = (task.num_prompts + task.num_heldout) * task.responses;
    let flops = episodes as f64 * tokens as f64 * shape.forward_flops_per_token(tokens);
    let memory = weight_bytes(shape.num_parameters(), execution.dtype)
        + execution.micro_batch as u64 * shape.cache_bytes(tokens, execution.dtype);
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
    vec![
        entry("parameters", grouped(task.shape.num_parameters())),
        entry(
            "parameters of the value model",
            grouped(task.value_shape.num_parameters_scalar()),
        ),
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
    ]
}

/// Sampling, reference, value and score once; policy and value trained in every inner epoch.
fn ppo_flops_per_episode(task: &PpoPlan, tokens: usize) -> f64 {
    let (policy, value) = (&task.shape, &task.value_shape);
    let forward = 2.0 * policy.forward_flops_per_token(tokens)
        + (1 + task.reward.len()) as f64 * value.forward_flops_per_token(tokens);
    let training = policy.training_flops_per_token(tokens) + value.training_flops_per_token(tokens);
    let ptx = task.ptx.as_ref().map_or(0.0, |ptx| {
        let pretraining_tokens = (ptx.sequences_per_episode * ptx.context) as f64;
        pretraining_tokens * policy.training_flops_per_token(ptx.context)
    });
    let inner_epochs = task.inner_epochs as f64;
    tokens as f64 * (forward + inner_epochs * training) + inner_epochs * ptx
}

/// Policy and value model in training, reference and reward models (each of the value model's size),
/// EMA, and the larger of the cache and the activations of a micro-batch.
fn ppo_bytes(task: &PpoPlan, tokens: usize, execution: &Execution) -> u64 {
    let dtype = execution.dtype;
    let (policy, value) = (
        task.shape.num_parameters(),
        task.value_shape.num_parameters_scalar(),
    );
    let ema = if task.ema.is_some() {
        weight_bytes(policy, wide(dtype))
    } else {
        0
    };
    let resident = training_bytes(policy, dtype)
        + training_bytes(value, dtype)
        + weight_bytes(policy, dtype)
        + task.reward.len() as u64 * weight_bytes(value, dtype)
        + ema;
    let cache = execution.micro_batch as u64 * task.shape.cache_bytes(tokens, dtype);
    let sequence = task
        .ptx
        .as_ref()
        .map_or(tokens, |ptx| tokens.max(ptx.context));
    let micro_tokens = execution.micro_batch * sequence;
    let update = task.shape.activation_bytes(micro_tokens, execution)
        + task.shape.logit_bytes(micro_tokens, dtype);
    resident + cache.max(update)
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

/// Digits in groups of three.
fn grouped(count: u64) -> String {
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
