//! The numbers that `rlhf plan` prints for a stage: what follows from the plan, then the plan itself.

use serde_json::Value;

use crate::arithmetic::{
    PACKED, final_learning_rate, frozen_bytes, model_bytes, packed_bytes, weight_bytes,
};
use crate::memory::{Held, Loss, Passes, Place};
use crate::plan::{
    Dtype, Duration, Execution, LabelPlan, LoraPlan, Objective, Plan, Quantization, Source,
    StagePlan, Task, TrainPlan,
};
use crate::ppo_numbers::{ppo, ppo_bytes};
use crate::shape::ModelShape;
use crate::tensors::Head;

pub(crate) type Numbers = Vec<(String, String)>;

/// What a stage will cost, then every resolved key of its task and execution.
///
/// Counts that depend on data not yet read (epochs) are left in those terms.
pub fn stage_numbers(plan: &Plan, stage: &StagePlan) -> Vec<(String, String)> {
    let execution = &stage.execution;
    let mut numbers = match &stage.task {
        Task::Import(_) | Task::Tokenizer(_) => Vec::new(),
        Task::Label(task) => label(task, execution),
        Task::Ppo(task) => ppo(task, execution),
        Task::Pretrain(_) | Task::Sft(_) | Task::Reward(_) => {
            training_of(plan, stage).map_or_else(Vec::new, |training| numbers_of(&training))
        }
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

/// The most bytes that a stage has in memory at once beside what a process without a model has; 0 for one that has
/// no model.
pub fn peak_bytes(plan: &Plan, stage: &StagePlan, place: Place) -> u64 {
    match &stage.task {
        Task::Import(_) | Task::Tokenizer(_) => 0,
        Task::Label(task) => label_bytes(task, &stage.execution, place),
        Task::Ppo(task) => ppo_bytes(task, &stage.execution, place),
        Task::Pretrain(_) | Task::Sft(_) | Task::Reward(_) => {
            training_of(plan, stage).map_or(0, |training| training_bytes_of(&training, place))
        }
    }
}

/// A model being trained.
struct Training<'a> {
    shape: &'a ModelShape,
    head: Head,
    lora: Option<&'a LoraPlan>,
    quantize: Option<Quantization>,
    execution: &'a Execution,
    train: &'a TrainPlan,
    /// Tokens of a sequence.
    context: usize,
    /// Sequences in one element of the batch (reward: the responses of a prompt).
    rows: usize,
    /// Bytes of an attention mask, where one must exist.
    mask: u64,
}

/// What a supervised stage trains; `None` for other stages.
fn training_of<'a>(plan: &Plan, stage: &'a StagePlan) -> Option<Training<'a>> {
    let execution = &stage.execution;
    Some(match &stage.task {
        Task::Pretrain(task) => {
            let longest = task.objective.longest_row(task.context);
            Training {
                shape: &task.model,
                head: Head::Token,
                lora: None,
                quantize: None,
                execution,
                train: &task.train,
                context: longest,
                rows: 1,
                mask: match task.objective {
                    Objective::Causal | Objective::Masked => 0,
                    // Who sees whom differs from row to row.
                    Objective::Infill => {
                        let numbers = execution.micro_batch * longest * longest;
                        execution.dtype.bytes() * numbers as u64
                    }
                },
            }
        }
        Task::Sft(task) => Training {
            shape: &task.shape,
            head: Head::Token,
            lora: task.lora.as_ref(),
            quantize: task.quantize,
            execution,
            train: &task.train,
            context: task.context,
            rows: 1,
            mask: 0,
        },
        Task::Reward(task) => Training {
            shape: &task.shape,
            head: Head::Scalar,
            lora: task.lora.as_ref(),
            quantize: task.quantize,
            execution,
            train: &task.train,
            context: task.context,
            rows: responses(plan, &task.data),
            mask: 0,
        },
        Task::Import(_) | Task::Tokenizer(_) | Task::Label(_) | Task::Ppo(_) => return None,
    })
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

fn numbers_of(training: &Training<'_>) -> Numbers {
    let Training {
        shape,
        head,
        lora,
        quantize,
        execution,
        train,
        context,
        rows,
        mask: _,
    } = *training;
    let tokens_per_update = (train.batch * rows * context) as f64;
    let forward = shape.forward_flops_per_token(context);
    let flops_per_update =
        tokens_per_update * shape.training_flops_per_token(forward, context, lora);
    let parameters = match head {
        Head::Token => shape.num_parameters(),
        Head::Scalar => shape.num_parameters_scalar(),
    };
    let mut numbers = vec![entry("parameters", grouped(parameters))];
    if lora.is_some() {
        let trained = shape.num_trainable(head, lora);
        numbers.push(entry("trained parameters", grouped(trained)));
    }
    numbers.extend([
        entry(
            "tokens per update, at most",
            grouped(tokens_per_update as u64),
        ),
        entry(
            "FLOPs per update, at most",
            format!("{flops_per_update:.3e}"),
        ),
    ]);
    match train.duration {
        Duration::Steps(steps) => {
            numbers.push(entry("updates", grouped(steps)));
            numbers.push(entry(
                "tokens, at most",
                grouped((tokens_per_update * steps as f64) as u64),
            ));
            numbers.push(entry(
                "FLOPs, at most",
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
    numbers.extend(peaks(|place| training_bytes_of(training, place)));
    if let Some(host) = quantize.map(|_| weight_bytes(parameters, execution.dtype)) {
        numbers.push(entry(HOST_MEMORY, bytes(host)));
    }
    numbers
}

/// What stays, and the largest of an update, a reward model's normalisation, and the merged weights of `final/`.
fn training_bytes_of(training: &Training<'_>, place: Place) -> u64 {
    let Training {
        shape,
        head,
        lora,
        quantize,
        execution,
        train,
        context,
        rows,
        mask,
    } = *training;
    let tokens = execution.micro_batch * rows * context;
    let held = Held {
        shape,
        head,
        lora,
        quantize,
        execution,
        place,
    };
    let passes = Passes {
        tokens,
        loss: match head {
            Head::Token => Loss::Tokens,
            Head::Scalar => Loss::Scalar,
        },
        on_gradients: train.batch > execution.micro_batch,
    };
    let normalised = match head {
        Head::Token => 0,
        Head::Scalar => held.scoring_bytes(tokens, Loss::Scalar),
    };
    let parameters = match head {
        Head::Token => shape.num_parameters(),
        Head::Scalar => shape.num_parameters_scalar(),
    };
    let merged = lora.map_or(0, |_| merged_bytes(parameters, execution.dtype, quantize));
    let most = (held.update_bytes(&passes) + mask)
        .max(normalised)
        .max(merged);
    model_bytes(shape, head, execution.dtype, lora, quantize) + most
}

/// The two lines of a stage's memory.
pub(crate) fn peaks(memory: impl Fn(Place) -> u64) -> [(String, String); 2] {
    [
        entry("peak memory, predicted", bytes(memory(Place::Cpu))),
        entry("peak memory on a GPU, predicted", bytes(memory(Place::Gpu))),
    ]
}

/// What is made of adapters on codes for `final/`.
pub(crate) const HOST_MEMORY: &str = "merged weights at the end, in the host's memory";

/// The merged weights of `final/`, once nothing is updated any more. Those of a quantised model are made in the
/// host's memory ([`HOST_MEMORY`]).
pub(crate) fn merged_bytes(parameters: u64, dtype: Dtype, quantize: Option<Quantization>) -> u64 {
    match quantize {
        Some(_) => 0,
        None => weight_bytes(parameters, dtype),
    }
}

/// The model, and what sampling has beside it.
fn label_bytes(task: &LabelPlan, execution: &Execution, place: Place) -> u64 {
    let held = Held {
        shape: &task.shape,
        head: Head::Token,
        lora: None,
        quantize: task.quantize,
        execution,
        place,
    };
    let lengths = (
        task.sampling.max_prompt_tokens,
        task.sampling.max_new_tokens,
    );
    let episodes = (task.num_prompts + task.num_heldout) * task.responses;
    let rows = execution.sample_batch.min(episodes);
    frozen_bytes(&task.shape, Head::Token, execution.dtype, task.quantize)
        + held.sampling_bytes((rows, task.responses), lengths)
}

fn label(task: &LabelPlan, execution: &Execution) -> Numbers {
    let shape = &task.shape;
    let tokens = task.sampling.max_prompt_tokens + task.sampling.max_new_tokens;
    let episodes = (task.num_prompts + task.num_heldout) * task.responses;
    let flops = episodes as f64 * tokens as f64 * shape.forward_flops_per_token(tokens);
    let [on_cpu, on_gpu] = peaks(|place| label_bytes(task, execution, place));
    let packed = packed_bytes(shape, Head::Token, execution.dtype, task.quantize);
    vec![
        entry("parameters", grouped(shape.num_parameters())),
        entry("samples", grouped(episodes as u64)),
        entry("tokens, at most", grouped((episodes * tokens) as u64)),
        entry("FLOPs, at most", format!("{flops:.3e}")),
        on_cpu,
        on_gpu,
        entry(PACKED, bytes(packed)),
    ]
}

pub(crate) fn entry(name: &str, value: String) -> (String, String) {
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

/// `1536` as `1.5 KiB`.
pub fn bytes(count: u64) -> String {
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
