//! From the rollout Parquet alone, a stranger recomputes rewards, advantages and returns.
//!
//! Written from the description of the file's columns: the stages' code is not used.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{Float64Type, Int32Type, UInt64Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use runtime::metrics::read_metrics;
use serde_json::{Value, json};

use crate::support::{Outcome, finished_run, rlhf, say, scratch, tiny_number};

const TOLERANCE: f64 = 1e-5;

/// A rollout file.
pub struct Rollouts {
    rows: RecordBatch,
    metadata: HashMap<String, String>,
}

impl Rollouts {
    pub fn read(path: &Path) -> Outcome<Self> {
        let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path)?)?;
        let entries = builder.metadata().file_metadata().key_value_metadata();
        let metadata = entries
            .into_iter()
            .flatten()
            .filter_map(|entry| Some((entry.key.clone(), entry.value.clone()?)))
            .collect();
        let schema = builder.schema().clone();
        let batches = builder.build()?.collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            rows: concat_batches(&schema, &batches)?,
            metadata,
        })
    }

    fn setting(&self, key: &str) -> Outcome<f64> {
        let text = self
            .metadata
            .get(key)
            .ok_or(format!("the file's metadata has no {key}"))?;
        Ok(text.parse()?)
    }

    fn column(&self, name: &str) -> &dyn Array {
        self.rows
            .column_by_name(name)
            .unwrap_or_else(|| panic!("no column {name}"))
    }

    pub fn texts(&self, name: &str) -> Vec<&str> {
        self.column(name)
            .as_string::<i32>()
            .iter()
            .map(Option::unwrap_or_default)
            .collect()
    }

    pub fn numbers(&self, name: &str) -> Vec<f64> {
        self.column(name)
            .as_primitive::<Float64Type>()
            .values()
            .to_vec()
    }

    pub fn lists(&self, name: &str) -> Vec<Vec<f64>> {
        let lists = self.column(name).as_list::<i32>();
        let list = |i| {
            lists
                .value(i)
                .as_primitive::<Float64Type>()
                .values()
                .to_vec()
        };
        (0..lists.len()).map(list).collect()
    }

    pub fn ids(&self, name: &str) -> Vec<Vec<i32>> {
        let lists = self.column(name).as_list::<i32>();
        let list = |i| lists.value(i).as_primitive::<Int32Type>().values().to_vec();
        (0..lists.len()).map(list).collect()
    }

    fn score_index(&self) -> Vec<usize> {
        let values = self
            .column("score_index")
            .as_primitive::<Int32Type>()
            .values();
        values.iter().map(|index| *index as usize).collect()
    }
}

fn path_of(iteration: usize) -> PathBuf {
    finished_run().join(format!("ppo/rollouts/iteration-{iteration:06}.parquet"))
}

fn all() -> Outcome<Vec<Rollouts>> {
    (1..=tiny_number("ppo", "iterations")?)
        .map(|iteration| Rollouts::read(&path_of(iteration)))
        .collect()
}

#[track_caller]
pub fn assert_close(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (t, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (found - expected).abs() < TOLERANCE,
            "{what}[{t}]: {found} is not {expected}"
        );
    }
}

#[test]
fn rewards_advantages_and_returns_are_recomputed_from_the_file() -> Outcome {
    for rollouts in all()? {
        let beta = rollouts.setting("kl_coef")?;
        let (gamma, lambda) = (rollouts.setting("gamma")?, rollouts.setting("lambda")?);
        let (logprobs, references) = (
            rollouts.lists("logprobs"),
            rollouts.lists("reference_logprobs"),
        );
        let (scores, index) = (rollouts.numbers("score"), rollouts.score_index());
        let (values, rewards) = (rollouts.lists("values"), rollouts.lists("rewards"));
        let (advantages, returns) = (rollouts.lists("advantages"), rollouts.lists("returns"));
        for b in 0..logprobs.len() {
            let num_tokens = logprobs[b].len();
            let reward = |t: usize| {
                let penalty = -beta * (logprobs[b][t] - references[b][t]);
                penalty + if t == index[b] { scores[b] } else { 0.0 }
            };
            let value = |t: usize| values[b].get(t).copied().unwrap_or(0.0);
            let delta = |t: usize| reward(t) + gamma * value(t + 1) - value(t);
            let advantage = |t: usize| -> f64 {
                (t..num_tokens)
                    .map(|s| (gamma * lambda).powi((s - t) as i32) * delta(s))
                    .sum()
            };
            let every = |f: &dyn Fn(usize) -> f64| (0..num_tokens).map(f).collect::<Vec<_>>();
            assert_close("rewards", &rewards[b], &every(&reward));
            assert_close("advantages", &advantages[b], &every(&advantage));
            assert_close("returns", &returns[b], &every(&|t| advantage(t) + value(t)));
        }
        let flat: Vec<f64> = advantages.concat();
        let mean = flat.iter().sum::<f64>() / flat.len() as f64;
        let variance = flat.iter().map(|a| (a - mean).powi(2)).sum::<f64>() / flat.len() as f64;
        assert_close(
            "whitening mean",
            &[rollouts.setting("whitening_mean")?],
            &[mean],
        );
        let deviation = rollouts.setting("whitening_deviation")?;
        assert_close("whitening deviation", &[deviation], &[variance.sqrt()]);
    }
    Ok(())
}

#[test]
fn lists_have_the_responses_length_and_the_score_stands_at_its_end() -> Outcome {
    let (eos, max_new_tokens) = (eos_id()?, tiny_number("ppo", "max_new_tokens")?);
    let mut endings = BTreeSet::new();
    for rollouts in all()? {
        let responses = rollouts.ids("response_ids");
        for name in [
            "logprobs",
            "reference_logprobs",
            "values",
            "rewards",
            "advantages",
            "returns",
        ] {
            let lengths: Vec<usize> = rollouts.lists(name).iter().map(Vec::len).collect();
            assert_eq!(
                lengths,
                responses.iter().map(Vec::len).collect::<Vec<_>>(),
                "{name}"
            );
        }
        assert!(
            rollouts
                .lists("logprobs")
                .concat()
                .iter()
                .all(|logprob| *logprob <= 0.0)
        );
        let reasons = rollouts.texts("finish_reason");
        for ((ids, reason), index) in responses.iter().zip(&reasons).zip(rollouts.score_index()) {
            assert_eq!(index, ids.len() - 1);
            assert!(!ids[..index].contains(&eos), "nothing comes behind EOS");
            assert_eq!(*reason == "stop", ids[index] == eos);
            assert!(
                *reason == "stop" || ids.len() == max_new_tokens,
                "{reason}: {}",
                ids.len()
            );
            endings.insert((*reason).to_owned());
        }
    }
    assert_eq!(
        endings.into_iter().collect::<Vec<_>>(),
        ["length", "stop"],
        "both endings occur"
    );
    Ok(())
}

/// The EOS rule replaces the score; other scores are the reward model's, shifted.
#[test]
fn the_score_is_the_shifted_reward_or_the_eos_rules() -> Outcome {
    let shift = reward_shift()?;
    for rollouts in all()? {
        let rule = rollouts.metadata.get("eos_rule").ok_or("no EOS rule")?;
        assert!(rule.ends_with("-1"), "{rule}");
        let (raw, scores) = (rollouts.numbers("score_raw"), rollouts.numbers("score"));
        for ((reason, raw), score) in rollouts.texts("finish_reason").iter().zip(raw).zip(scores) {
            let expected = if *reason == "stop" { raw + shift } else { -1.0 };
            assert_close("score", &[score], &[expected]);
        }
    }
    Ok(())
}

#[test]
fn episodes_are_numbered_and_their_means_are_the_metrics() -> Outcome {
    let metrics = read_metrics(&finished_run().join("ppo/metrics.jsonl"))?;
    let num_episodes = tiny_number("ppo", "batch")?;
    for (i, rollouts) in all()?.iter().enumerate() {
        let episodes = rollouts
            .column("episode")
            .as_primitive::<UInt64Type>()
            .values()
            .to_vec();
        let first = (i * num_episodes) as u64;
        assert_eq!(
            episodes,
            (first..first + num_episodes as u64).collect::<Vec<_>>()
        );
        let row = metrics
            .iter()
            .find(|row| row.step == i as u64 + 1)
            .ok_or("no metrics")?;
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let (logprobs, references) = (
            rollouts.lists("logprobs"),
            rollouts.lists("reference_logprobs"),
        );
        let sum = |rows: &[Vec<f64>]| rows.concat().iter().sum::<f64>();
        let kl = (sum(&logprobs) - sum(&references)) / num_episodes as f64;
        let lengths: Vec<f64> = logprobs.iter().map(|row| row.len() as f64).collect();
        for (name, expected) in [
            ("objective/kl", kl),
            ("objective/length", mean(&lengths)),
            ("objective/score", mean(&rollouts.numbers("score"))),
            ("ppo/kl_coef", rollouts.setting("kl_coef")?),
        ] {
            assert_close(name, &[row.values[name]], &[expected]);
        }
    }
    Ok(())
}

/// `rlhf score` gives the same log-probabilities and rewards as the file has.
#[test]
fn the_files_numbers_are_those_of_the_checkpoints() -> Outcome {
    let folder = scratch()?;
    let first = Rollouts::read(&path_of(1))?;
    let last = Rollouts::read(&path_of(tiny_number("ppo", "iterations")?))?;
    let (mut rows, mut ended) = (String::new(), String::new());
    for rollouts in [&first, &last] {
        let (prompts, responses) = (rollouts.ids("prompt_ids"), rollouts.ids("response_ids"));
        let reasons = rollouts.texts("finish_reason");
        for ((prompt, response), reason) in prompts.iter().zip(&responses).zip(reasons) {
            let mut ids = [&prompt[..], &response[..]].concat();
            writeln!(rows, "{}", json!({ "input_ids": ids }))?;
            // What a reward model reads ends with EOS.
            ids.extend((reason == "length").then_some(eos_id()?));
            writeln!(ended, "{}", json!({ "input_ids": ids }))?;
        }
    }
    let (data, ended_data) = (
        folder.path().join("rows.jsonl"),
        folder.path().join("ended.jsonl"),
    );
    fs::write(&data, rows)?;
    fs::write(&ended_data, ended)?;
    let references = [
        first.lists("reference_logprobs"),
        last.lists("reference_logprobs"),
    ]
    .concat();
    for (expected, answer) in references
        .iter()
        .zip(score(&finished_run().join("sft/final"), &data)?)
    {
        let logprobs: Vec<f64> = serde_json::from_value(answer["logprobs"].clone())?;
        assert_close(
            "reference",
            &logprobs[logprobs.len() - expected.len()..],
            expected,
        );
    }
    // The policy starts as the reference.
    for (sampled, reference) in first.lists("logprobs").iter().zip(&references) {
        assert_close("first logprobs", sampled, reference);
    }
    let raw = [first.numbers("score_raw"), last.numbers("score_raw")].concat();
    for (expected, answer) in raw
        .iter()
        .zip(score(&finished_run().join("reward/final"), &ended_data)?)
    {
        let reward = answer["reward"].as_f64().ok_or("no reward")?;
        assert_close("reward", &[reward], &[*expected]);
        let normalized = answer["reward_normalized"]
            .as_f64()
            .ok_or("no normalised reward")?;
        assert_close(
            "normalised reward",
            &[normalized],
            &[expected + reward_shift()?],
        );
    }
    Ok(())
}

/// What `rlhf score` says of each row of a file.
pub fn score(model: &Path, data: &Path) -> Outcome<Vec<Value>> {
    let mut command = rlhf();
    command.arg("score").arg("--model").arg(model);
    command.arg("--data").arg(data).args(["--device", "cpu"]);
    let said = say(&mut command)?.ended(0);
    said.out
        .lines()
        .map(|line| Ok(serde_json::from_str(line)?))
        .collect()
}

fn reward_shift() -> Outcome<f64> {
    let config: Value =
        serde_json::from_slice(&fs::read(finished_run().join("reward/final/config.json"))?)?;
    Ok(config["reward_shift"]
        .as_f64()
        .ok_or("no reward_shift in config.json")?)
}

fn eos_id() -> Outcome<i32> {
    let folder = finished_run().join("sft/final");
    let config: Value = serde_json::from_slice(&fs::read(folder.join("tokenizer_config.json"))?)?;
    let tokenizer: Value = serde_json::from_slice(&fs::read(folder.join("tokenizer.json"))?)?;
    let tokens = tokenizer["added_tokens"]
        .as_array()
        .ok_or("no added tokens")?;
    let eos = tokens
        .iter()
        .find(|token| token["content"] == config["eos_token"]);
    Ok(eos
        .and_then(|token| token["id"].as_i64())
        .ok_or("no EOS id")? as i32)
}
