//! Every stage on the device against the CPU, and how far the two may be apart.
//!
//! **f32** within 1e-4. **bf16** against bf16 on the CPU, from the same f32 artefacts: a number is rounded to
//! 2^-8 of its size about ten times in a block (two norms, query, key and value, attention, its output, two sums,
//! the MLP's three products) and three times outside; each side has roundings of its own, which add like random steps.
//! With R of them on a way the two may be 2 * 2^-8 * sqrt(R) apart, [`bf16_tolerance`]: 3.7e-2 for two blocks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use datasets::{Comparison, Split};
use recipe::plan::{Dtype, Plan, StagePlan, Task};
use runtime::metrics::MetricRow;

use super::report::State;
use super::work::{Place, StageRun, TimeUp, as_error};
use super::{Check, TINY, default_file};
use crate::cli::RunArgs;
use crate::commands::run;
use crate::values::Device;

/// Largest difference in f32, of a number's size or of 1 where it is smaller.
pub(super) const F32_TOLERANCE: f64 = 1e-4;
/// Updates that are compared; rounding differences grow with every update.
const STEPS_COMPARED: u64 = 3;
/// Updates of a stage of the pipeline, prompts that it labels (and held-out ones), and held-out prompts of PPO.
const STEPS: u64 = 12;
const LABELLED: (usize, usize) = (64, 16);
const HELDOUT: usize = 8;
/// Share of sampled responses that may differ in f32: a uniform number may fall so close to the edge of a token that
/// rounding decides.
const OTHER_RESPONSES: f64 = 0.01;
/// What is compared of an update.
const NUMBERS: [&str; 9] = [
    "loss/train",
    "optimizer/grad_norm",
    "objective/score",
    "objective/entropy",
    "objective/kl",
    "ppo/policy_loss",
    "ppo/value_loss",
    "ppo/ptx_loss",
    "ppo/value_grad_norm",
];

/// See the file's head; `blocks` of the model.
pub(super) fn bf16_tolerance(blocks: usize) -> f64 {
    let roundings = 10 * blocks + 3;
    2.0 * (roundings as f64).sqrt() / 256.0
}

/// The stages that need a worker.
pub(super) fn worked(plan: &Plan) -> impl Iterator<Item = &StagePlan> {
    let data = |stage: &&StagePlan| !matches!(stage.task, Task::Import(_) | Task::Tokenizer(_));
    plan.stages.iter().filter(data)
}

/// Every stage in this type.
fn in_dtype(plan: &Plan, dtype: Dtype) -> Plan {
    let mut plan = plan.clone();
    for stage in &mut plan.stages {
        stage.execution.dtype = dtype;
    }
    plan
}

impl Check<'_> {
    /// Where the CPU's artefacts are.
    pub(super) fn on_cpu(&self) -> PathBuf {
        self.root.join("cpu")
    }

    /// Runs the tiny pipeline on the CPU, shorter than usual and without dropout, which each device draws itself.
    pub(super) fn run_on_cpu(&mut self) -> Result<()> {
        let config = default_file(self.args.config.as_deref(), TINY).map_err(as_error)?;
        let (_, whole) = Self::plan(&config, Vec::new()).map_err(as_error)?;
        let overrides = worked(&whole).flat_map(shortened).collect();
        let (source, plan) = Self::plan(&config, overrides).map_err(as_error)?;
        let args = RunArgs {
            source,
            only: None,
            kind: None,
            until: None,
            restart: Vec::new(),
            run_dir: Some(self.on_cpu()),
            device: Device::Cpu,
            deterministic: false,
        };
        run::alone(&args).map_err(as_error)?;
        self.tiny = Some(plan);
        Ok(())
    }

    pub(super) fn tiny(&self) -> Result<Plan> {
        self.tiny
            .clone()
            .context("the pipeline did not run on the CPU")
    }

    pub(super) fn agree_in_f32(&mut self) -> Result<State> {
        let part = "agree-f32";
        let plan = in_dtype(&self.tiny()?, Dtype::F32);
        for stage in worked(&plan) {
            let (what, bound, found) = if matches!(stage.task, Task::Label(_)) {
                let found = self.other_responses(&plan, &stage.name);
                ("share of responses that differ", OTHER_RESPONSES, found)
            } else {
                let found = self.update_difference(&plan, &stage.name, part);
                ("first updates", F32_TOLERANCE, found)
            };
            self.found(part, format!("{}: {what}", stage.name), bound, found)?;
        }
        self.compare_texts(&plan, part, Dtype::F32)?;
        Ok(self.report.state_of(part))
    }

    /// PPO is not among its stages: after rounding it samples other tokens, of which every number differs. What it
    /// consists of is: sampling, scores of policy and reward model, and updates.
    pub(super) fn agree_in_bf16(&mut self) -> Result<State> {
        let part = "agree-bf16";
        let plan = in_dtype(&self.tiny()?, Dtype::Bf16);
        let trained = |stage: &&StagePlan| stage.task.train().is_some();
        for stage in worked(&plan).filter(trained) {
            let blocks = stage.model_shape().map_or(1, |shape| shape.layers);
            let found = self.update_difference(&plan, &stage.name, part);
            let what = format!("{}: first updates", stage.name);
            self.found(part, what, bf16_tolerance(blocks), found)?;
        }
        self.compare_texts(&plan, part, Dtype::Bf16)?;
        Ok(self.report.state_of(part))
    }

    /// Reports a difference, or why there is none; only the end of the time ends the part.
    pub(super) fn found(
        &mut self,
        part: &str,
        what: String,
        bound: f64,
        found: Result<f64>,
    ) -> Result<()> {
        match found {
            Err(error) if error.is::<TimeUp>() => Err(error),
            found => {
                let found = found.map_err(|error| runtime::logging::in_words(error.as_ref()));
                self.report.find(part, what, bound, found);
                Ok(())
            }
        }
    }

    /// The largest difference of the first updates of one stage, which both sides make anew, in the plan's type.
    fn update_difference(&self, plan: &Plan, stage: &str, part: &str) -> Result<f64> {
        let rows = |place: Place, folder: &Path| {
            self.run_stage(&StageRun {
                plan,
                stage,
                inputs: &self.on_cpu(),
                folder,
                place,
                deterministic: false,
                steps: Some(STEPS_COMPARED),
            })
        };
        let theirs = rows(Place::Cpu, &self.folder(part, &format!("{stage}-cpu")))?;
        let ours = rows(Place::Device, &self.folder(part, stage))?;
        difference(&theirs, &ours)
    }

    /// The share of responses of a label stage that the device samples otherwise.
    fn other_responses(&self, plan: &Plan, stage: &str) -> Result<f64> {
        let folder = self.folder("agree-f32", stage);
        self.run_stage(&StageRun {
            plan,
            stage,
            inputs: &self.on_cpu(),
            folder: &folder,
            place: Place::Device,
            deterministic: false,
            steps: None,
        })?;
        let responses = |root: &Path| -> Result<Vec<String>> {
            let rows = comparisons(root, stage)?;
            let all = rows.into_iter().flat_map(|row| row.responses);
            Ok(all.map(|response| response.content).collect())
        };
        let (theirs, ours) = (responses(&self.on_cpu())?, responses(&folder)?);
        ensure!(
            theirs.len() == ours.len() && !ours.is_empty(),
            "stage `{stage}` has {} responses in {}, and {} on the CPU",
            ours.len(),
            folder.display(),
            theirs.len()
        );
        let other = theirs.iter().zip(&ours).filter(|(a, b)| a != b).count();
        Ok(other as f64 / ours.len() as f64)
    }
}

/// Overrides that make a stage short, and take its dropout.
fn shortened(stage: &StagePlan) -> Vec<(String, String)> {
    let key = |name: &str| format!("stages.{}.{name}", stage.name);
    let mut overrides = Vec::new();
    if let Some(train) = stage.task.train() {
        overrides.push((key("steps"), STEPS.to_string()));
        overrides.push((key("eval_every"), STEPS.to_string()));
        if train.dropout > 0.0 {
            overrides.push((key("dropout"), "0".to_owned()));
        }
    }
    if let Task::Label(_) = stage.task {
        overrides.push((key("num_prompts"), LABELLED.0.to_string()));
        overrides.push((key("num_heldout"), LABELLED.1.to_string()));
    }
    if let Task::Ppo(_) = stage.task {
        overrides.push((key("iterations"), STEPS_COMPARED.to_string()));
        overrides.push((key("eval_prompts"), HELDOUT.to_string()));
    }
    overrides
}

/// The comparisons that a label stage made for training.
pub(super) fn comparisons(run: &Path, stage: &str) -> Result<Vec<Comparison>> {
    Ok(datasets::load_split(
        &run.join(stage).join("final"),
        Split::Train,
    )?)
}

/// The largest difference of two lists, of a number's size or of 1 where it is smaller.
pub(super) fn largest(theirs: &[f64], ours: &[f64]) -> Result<f64> {
    ensure!(
        theirs.len() == ours.len() && !ours.is_empty(),
        "{} numbers on the device, {} on the CPU",
        ours.len(),
        theirs.len()
    );
    let apart = theirs
        .iter()
        .zip(ours)
        .map(|(a, b)| (a - b).abs() / a.abs().max(1.0));
    // A number that is none stays in the result, which is then within no bound.
    Ok(apart.fold(
        0.0,
        |most: f64, it| if most > it || most.is_nan() { most } else { it },
    ))
}

/// The same of the numbers of the first updates, which both sides have all of.
fn difference(theirs: &[MetricRow], ours: &[MetricRow]) -> Result<f64> {
    let (theirs, ours) = (first_updates(theirs), first_updates(ours));
    for step in 1..=STEPS_COMPARED {
        ensure!(
            theirs.keys().any(|(of, _)| *of == step),
            "update {step} of {STEPS_COMPARED} has none of {NUMBERS:?} on the CPU"
        );
    }
    for (step, name) in theirs.keys().chain(ours.keys()) {
        let key = (*step, *name);
        for (numbers, place) in [(&theirs, "CPU"), (&ours, "device")] {
            ensure!(
                numbers.contains_key(&key),
                "update {step} has no `{name}` on the {place}, and has it on the other side"
            );
        }
    }
    let numbers = |of: BTreeMap<_, f64>| of.into_values().collect::<Vec<_>>();
    largest(&numbers(theirs), &numbers(ours))
}

/// By update and name.
fn first_updates(rows: &[MetricRow]) -> BTreeMap<(u64, &'static str), f64> {
    let compared = rows
        .iter()
        .filter(|row| (1..=STEPS_COMPARED).contains(&row.step));
    let of_row = |row: &MetricRow| {
        let number = |name| Some(((row.step, name), *row.values.get(name)?));
        NUMBERS.map(number)
    };
    compared.flat_map(of_row).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_relative_to_one_at_least_and_nan_is_one() {
        let found = largest(&[100.0, 0.1], &[101.0, 0.102]).expect("two numbers");
        assert!((found - 0.01).abs() < 1e-12);
        assert!(
            largest(&[1.0, 2.0], &[f64::NAN, 2.0])
                .expect("two")
                .is_nan()
        );
        assert!(largest(&[1.0], &[1.0, 2.0]).is_err() && largest(&[], &[]).is_err());
        assert!((bf16_tolerance(2) - 0.0375).abs() < 1e-4);
    }

    #[test]
    fn updates_are_compared_by_step_and_name_and_none_is_passed_over() {
        let row = |step, values: &[(&str, f64)]| MetricRow {
            step,
            values: values
                .iter()
                .map(|(name, value)| ((*name).to_owned(), *value))
                .collect(),
            time: 0.0,
        };
        let train = |step, loss| row(step, &[("loss/train", loss), ("mfu", 0.5)]);
        let theirs = [train(1, 1.0), train(2, 2.0), train(3, 3.0), train(4, 9.0)];
        let ours = [train(1, 1.0), train(2, 2.0), train(3, 3.3)];
        let found = difference(&theirs, &ours).expect("three updates");
        assert!((found - 0.1).abs() < 1e-12, "{found}");
        let refused = |theirs: &[MetricRow], ours: &[MetricRow]| {
            difference(theirs, ours)
                .expect_err("not the same")
                .to_string()
        };
        let short = refused(&theirs[..2], &ours[..2]);
        assert!(short.starts_with("update 3 of 3 has none of"), "{short}");
        let absent = refused(&theirs, &ours[..2]);
        assert!(absent.starts_with("update 3 has no `loss/train` on the device"));
        // As many numbers, of another name.
        let other = [
            train(1, 1.0),
            train(2, 2.0),
            row(3, &[("objective/kl", 3.0)]),
        ];
        let named = refused(&theirs, &other);
        assert!(named.starts_with("update 3 has no `loss/train` on the device"));
    }
}
