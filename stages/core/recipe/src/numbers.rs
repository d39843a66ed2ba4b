//! The numbers that `rlhf plan` prints for a stage: what follows from the plan, then the plan itself.

use serde_json::Value;

use crate::arithmetic::{PACKED, packed_bytes, weight_bytes};
use crate::memory::{Held, Place, Site};
use crate::plan::{Dtype, Execution, LabelPlan, Plan, Quantization, StagePlan, Task};
use crate::ppo_memory::ppo_bytes;
use crate::ppo_numbers::ppo;
use crate::supervised_numbers::{supervised, supervised_bytes, training_of};
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
            training_of(plan, stage).map_or_else(Vec::new, |training| supervised(&training))
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

/// The most bytes that a rank of a stage has in memory at once beside what a process without a model has; 0 for a stage
/// that has no model.
pub fn peak_bytes(plan: &Plan, stage: &StagePlan, site: Site) -> u64 {
    match &stage.task {
        Task::Import(_) | Task::Tokenizer(_) => 0,
        Task::Label(task) => label_bytes(task, &stage.execution, site),
        Task::Ppo(task) => ppo_bytes(task, &stage.execution, site),
        Task::Pretrain(_) | Task::Sft(_) | Task::Reward(_) => {
            training_of(plan, stage).map_or(0, |training| supervised_bytes(&training, site))
        }
    }
}

/// The two lines of a stage's memory.
pub(crate) fn peaks(memory: impl Fn(Site) -> u64) -> [(String, String); 2] {
    let peak = |place| bytes(memory(Site::alone(place)));
    [
        entry("peak memory, predicted", peak(Place::Cpu)),
        entry("peak memory on a GPU, predicted", peak(Place::Gpu)),
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

/// A model that samples.
pub(crate) fn sampler<'a>(task: &'a LabelPlan, execution: &'a Execution, site: Site) -> Held<'a> {
    Held {
        shape: &task.shape,
        head: Head::Token,
        lora: None,
        quantize: task.quantize,
        execution,
        site,
    }
}

impl LabelPlan {
    /// Responses to all prompts.
    pub(crate) fn episodes(&self) -> usize {
        (self.num_prompts + self.num_heldout) * self.responses
    }
}

/// The model, and what sampling has beside it.
fn label_bytes(task: &LabelPlan, execution: &Execution, site: Site) -> u64 {
    let held = sampler(task, execution, site);
    let lengths = (
        task.sampling.max_prompt_tokens,
        task.sampling.max_new_tokens,
    );
    let rows = execution.sample_batch.min(site.rows(task.episodes()));
    held.frozen_bytes() + held.sampling_bytes((rows, task.responses), lengths)
}

fn label(task: &LabelPlan, execution: &Execution) -> Numbers {
    let shape = &task.shape;
    let tokens = task.sampling.max_prompt_tokens + task.sampling.max_new_tokens;
    let episodes = task.episodes();
    let flops = episodes as f64 * tokens as f64 * shape.forward_flops_per_token(tokens);
    let [on_cpu, on_gpu] = peaks(|site| label_bytes(task, execution, site));
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
pub(crate) fn number(value: f64) -> String {
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
