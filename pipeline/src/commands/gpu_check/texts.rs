//! Scoring and decoding on the device against the CPU, of the CPU's models.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use datasets::Comparison;
use recipe::plan::{Dtype, Plan, Task};
use recipe::request::{GenerateInput, GenerateRequest, Sampling, ScoreRequest};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Check;
use super::agreement::{F32_TOLERANCE, bf16_tolerance, comparisons, largest};
use super::work::Place;

/// Dialogues that are scored, and tokens that their first halves are continued with.
const DIALOGUES: usize = 24;
const NEW_TOKENS: usize = 16;

/// A line of `rlhf score`.
#[derive(Debug, Deserialize)]
struct Scored {
    input_ids: Vec<u32>,
    #[serde(default)]
    logprobs: Vec<f64>,
    reward: Option<f64>,
}

/// A line of `rlhf generate`.
#[derive(Debug, Deserialize)]
struct Generated {
    output_ids: Vec<u32>,
    logprobs: Vec<f64>,
}

impl Check<'_> {
    /// Log-probabilities, rewards and greedy decoding of the CPU's models.
    pub(super) fn compare_texts(&mut self, plan: &Plan, part: &str, dtype: Dtype) -> Result<()> {
        let named = |is: fn(&Task) -> bool| plan.stages.iter().rev().find(|it| is(&it.task));
        let label = named(|task| matches!(task, Task::Label(_)));
        let policy = named(|task| matches!(task, Task::Sft(_)));
        let (Some(label), Some(policy)) = (label, policy) else {
            return Ok(());
        };
        let model = self.on_cpu().join(&policy.name).join("final");
        let dialogues = self.folder(part, "dialogues.jsonl");
        write_dialogues(&comparisons(&self.on_cpu(), &label.name)?, &dialogues)?;
        let blocks = policy.model_shape().map_or(1, |shape| shape.layers);
        let bound = match dtype {
            Dtype::Bf16 => bf16_tolerance(blocks),
            _ => F32_TOLERANCE,
        };
        let scored = self.score(Place::Cpu, dtype, (&model, &dialogues))?;
        let found = self.score_difference(dtype, (&model, &dialogues), &scored);
        self.found(part, "score: log-probabilities".to_owned(), bound, found)?;
        if let Some(reward) = named(|task| matches!(task, Task::Reward(_))) {
            let judge = self.on_cpu().join(&reward.name).join("final");
            let found = self
                .score(Place::Cpu, dtype, (&judge, &dialogues))
                .and_then(|on_cpu| self.score_difference(dtype, (&judge, &dialogues), &on_cpu));
            self.found(part, "score: rewards".to_owned(), bound, found)?;
        }
        let halves: Vec<Vec<u32>> = scored
            .iter()
            .map(|row| row.input_ids[..row.input_ids.len().div_ceil(2)].to_vec())
            .collect();
        let found = self.decoding_difference(part, dtype, &model, &halves);
        let what = match dtype {
            Dtype::Bf16 => "generate: log-probabilities of its tokens",
            _ => "generate: greedy tokens (1 where they differ) and log-probabilities",
        };
        self.found(part, what.to_owned(), bound, found)
    }

    fn score(
        &self,
        place: Place,
        dtype: Dtype,
        (model, data): (&Path, &Path),
    ) -> Result<Vec<Scored>> {
        let request = ScoreRequest {
            model: model.to_owned(),
            adapter: None,
            data: data.to_owned(),
            compute: self.compute(place, dtype, DIALOGUES),
        };
        let lines = self.ask(place, "score", &request)?;
        lines
            .iter()
            .map(|line| Ok(serde_json::from_str(line)?))
            .collect()
    }

    fn score_difference(&self, dtype: Dtype, of: (&Path, &Path), on_cpu: &[Scored]) -> Result<f64> {
        let on_device = self.score(Place::Device, dtype, of)?;
        let numbers = |rows: &[Scored]| -> Vec<f64> {
            let of_row = |row: &Scored| row.logprobs.iter().copied().chain(row.reward).collect();
            rows.iter().flat_map::<Vec<f64>, _>(of_row).collect()
        };
        largest(&numbers(on_cpu), &numbers(&on_device))
    }

    /// Greedy decoding. In f32 both choose the same tokens, with the same log-probabilities; in bf16 the CPU scores
    /// what the device chose.
    fn decoding_difference(
        &self,
        part: &str,
        dtype: Dtype,
        model: &Path,
        prompts: &[Vec<u32>],
    ) -> Result<f64> {
        let data = self.folder(part, "prompts.jsonl");
        write_ids(prompts, &data)?;
        let decode = |place: Place| -> Result<Vec<Generated>> {
            let request = GenerateRequest {
                model: model.to_owned(),
                adapter: None,
                input: GenerateInput::Data { path: data.clone() },
                num_samples: 1,
                sampling: Sampling {
                    max_new_tokens: NEW_TOKENS,
                    temperature: 1.0,
                    top_k: None,
                    top_p: None,
                    greedy: true,
                    ignore_eos: false,
                    seed: 1,
                },
                beams: None,
                compute: self.compute(place, dtype, DIALOGUES),
            };
            let lines = self.ask(place, "generate", &request)?;
            lines
                .iter()
                .map(|line| Ok(serde_json::from_str(line)?))
                .collect()
        };
        let ours = decode(Place::Device)?;
        ensure!(
            ours.len() == prompts.len(),
            "{} responses to the {} prompts of {}",
            ours.len(),
            prompts.len(),
            data.display()
        );
        let logprobs = |rows: &[Generated]| -> Vec<f64> {
            rows.iter().flat_map(|row| row.logprobs.clone()).collect()
        };
        if dtype == Dtype::F32 {
            let theirs = decode(Place::Cpu)?;
            let pairs = || theirs.iter().zip(&ours);
            if pairs().any(|(a, b)| a.output_ids != b.output_ids) {
                return Ok(1.0);
            }
            return largest(&logprobs(&theirs), &logprobs(&ours));
        }
        let sequences: Vec<Vec<u32>> = prompts
            .iter()
            .zip(&ours)
            .map(|(prompt, row)| [&prompt[..], &row.output_ids].concat())
            .collect();
        let data = self.folder(part, "decoded.jsonl");
        write_ids(&sequences, &data)?;
        let scored = self.score(Place::Cpu, dtype, (model, &data))?;
        let of_response = |(scored, row): (&Scored, &Generated)| {
            scored.logprobs[scored.logprobs.len() - row.output_ids.len()..].to_vec()
        };
        let theirs: Vec<f64> = scored.iter().zip(&ours).flat_map(of_response).collect();
        largest(&theirs, &logprobs(&ours))
    }
}

fn write_dialogues(rows: &[Comparison], path: &Path) -> Result<()> {
    let dialogue = |row: &Comparison| {
        let answer = row
            .responses
            .iter()
            .find(|it| !it.content.trim().is_empty())?;
        let mut messages = serde_json::to_value(&row.prompt).ok()?;
        let answer = json!({ "role": "assistant", "content": answer.content });
        messages.as_array_mut()?.push(answer);
        Some(json!({ "messages": messages }))
    };
    write_lines(rows.iter().filter_map(dialogue).take(DIALOGUES), path)
}

fn write_ids(rows: &[Vec<u32>], path: &Path) -> Result<()> {
    write_lines(rows.iter().map(|ids| json!({ "input_ids": ids })), path)
}

fn write_lines(rows: impl Iterator<Item = Value>, path: &Path) -> Result<()> {
    let lines: Vec<String> = rows.map(|row| row.to_string()).collect();
    fs::write(path, lines.join("\n") + "\n")
        .with_context(|| format!("cannot write {}", path.display()))
}
