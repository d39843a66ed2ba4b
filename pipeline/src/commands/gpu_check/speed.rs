//! How fast: the product's own stages and sampling on models with random weights, in bf16, over what the device can do
//! at most, which is measured in the same run.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use recipe::plan::{Dtype, Plan, PpoPlan, StagePlan, Task};
use recipe::request::{DeviceReport, GpuRequest, SamplingReport};
use recipe::shape::ModelShape;
use runtime::metrics::MetricRow;
use runtime::seeds;
use runtime::statistics::median;

use super::goals::Work;
use super::report::Row;
use super::work::{Place, StageRun, as_error, read_answer};
use super::{Check, REHEARSAL, SPEED, default_file};
use crate::cli::RunArgs;
use crate::commands::run;
use crate::values::Device;

/// Updates before those that are timed, and those: (of training, of PPO).
const WARM_UP: (u64, u64) = (10, 1);
const TIMED: (u64, u64) = (20, 3);
/// The same in a rehearsal.
const REHEARSED: u64 = 2;
/// Turns of sampling.
const TURNS: usize = 2;

const MODELS: &str = "models";

impl Check<'_> {
    pub(super) fn measure_device(&mut self) -> Result<()> {
        let compute = self.compute(Place::Device, Dtype::Bf16, 1);
        let request = GpuRequest::Device { compute };
        let report: DeviceReport = read_answer(&self.ask(Place::Device, "gpu-check", &request)?)?;
        self.report.set_device(&report);
        self.device = Some(report);
        Ok(())
    }

    pub(super) fn speed_root(&self) -> PathBuf {
        self.root.join("speed")
    }

    /// Data, a tokenizer, and the models that nobody trains here.
    pub(super) fn make_models(&mut self) -> Result<()> {
        let usual = if self.is_rehearsal() {
            REHEARSAL
        } else {
            SPEED
        };
        let config = default_file(None, usual).map_err(as_error)?;
        let prompts = self.root.join("prompts.jsonl");
        let write = |text: &str| {
            fs::write(&prompts, text).with_context(|| format!("cannot write {}", prompts.display()))
        };
        write("")?;
        let path = prompts.to_string_lossy().into_owned();
        let overrides = vec![("stages.prompts.path".to_owned(), path)];
        let (source, plan) = Self::plan(&config, overrides).map_err(as_error)?;
        write(&random_prompts(ppo_of(&plan)?))?;
        for stage in [Plan::TOKENIZER, "prompts"] {
            let args = RunArgs {
                source: source.clone(),
                only: None,
                kind: None,
                until: Some(stage.to_owned()),
                restart: Vec::new(),
                run_dir: Some(self.speed_root()),
                device: Device::Cpu,
                deterministic: false,
            };
            run::alone(&args).map_err(as_error)?;
        }
        let made = |stage: &str| self.speed_root().join(stage).join("final");
        let gpt2 = (self.speed_root().join(MODELS).join("gpt2"), Dtype::F32);
        let models = [
            ("gpt2", gpt2),
            ("actor", (made("actor"), Dtype::Bf16)),
            ("reward", (made("reward"), Dtype::Bf16)),
        ];
        for (stage, (out, dtype)) in models {
            let folder = out.parent().unwrap_or(&out);
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
            let request = GpuRequest::RandomModel {
                shape: Box::new(shape_of(&plan, stage)?.clone()),
                scalar: stage == "reward",
                tokenizer: made(Plan::TOKENIZER),
                out,
                compute: self.compute(Place::Device, dtype, 1),
            };
            self.ask(Place::Device, "gpu-check", &request)?;
        }
        self.speed = Some(plan);
        Ok(())
    }

    pub(super) fn speed_plan(&self) -> Result<Plan> {
        self.speed.clone().context("there are no models")
    }

    /// The model that the other side trains too, and the one that it samples from.
    pub(super) fn gpt2_folder(&self) -> PathBuf {
        self.speed_root().join(MODELS).join("gpt2")
    }

    pub(super) fn actor_folder(&self) -> PathBuf {
        self.speed_root().join("actor/final")
    }

    fn device_report(&self) -> Result<DeviceReport> {
        self.device.clone().context("the device is not measured")
    }

    pub(super) fn time_gpt2(&mut self) -> Result<()> {
        self.time_training(Work::Gpt2, "gpt2")
    }

    pub(super) fn time_llama(&mut self) -> Result<()> {
        self.time_training(Work::Llama, "llama")
    }

    fn time_training(&mut self, work: Work, stage: &str) -> Result<()> {
        let (plan, device) = (self.speed_plan()?, self.device_report()?);
        let rows = self.timed_rows(&plan, stage, (WARM_UP.0, TIMED.0))?;
        let values = numbers(&rows, "tokens_per_second")?;
        let shape = shape_of(&plan, stage)?;
        let context = match &plan_of(&plan, stage)?.task {
            Task::Pretrain(task) => task.context,
            _ => shape.max_positions,
        };
        let of_peak = |flops: f64| median(&values) * flops / device.flops_per_second;
        let forward = shape.forward_flops_per_token(context);
        let all = shape.training_flops_per_token(forward, context, None);
        let shares = vec![
            (
                "of the matrix product, 6ND".to_owned(),
                of_peak(6.0 * shape.num_parameters() as f64),
            ),
            ("with attention".to_owned(), of_peak(all)),
        ];
        let peak = numbers(&rows, "memory/peak").ok();
        self.report
            .measured(Row::of(work, values, shares, peak.as_deref().map(last)));
        Ok(())
    }

    pub(super) fn time_sampling(&mut self) -> Result<()> {
        let (plan, device) = (self.speed_plan()?, self.device_report()?);
        let [prompts, prompt_tokens, new_tokens] = sampling_sizes(&plan)?;
        let request = GpuRequest::Sample {
            model: self.actor_folder(),
            prompts,
            prompt_tokens,
            new_tokens,
            turns: TURNS,
            compute: self.compute(Place::Device, Dtype::Bf16, prompts),
        };
        let report: SamplingReport =
            read_answer(&self.ask(Place::Device, "gpu-check", &request)?)?;
        let tokens = (prompts * new_tokens) as f64;
        let values: Vec<f64> = report
            .seconds
            .iter()
            .map(|seconds| tokens / seconds)
            .collect();
        let bytes = bytes_read(
            shape_of(&plan, "actor")?,
            [prompts, prompt_tokens, new_tokens],
        );
        let floor_s = bytes / device.bytes_per_second;
        let shares = vec![(
            "of the copy's bandwidth (weights and cache)".to_owned(),
            floor_s / median(&report.seconds),
        )];
        let peak = report.peak_bytes.map(|bytes| bytes as f64);
        self.report
            .measured(Row::of(Work::Sample, values, shares, peak));
        Ok(())
    }

    pub(super) fn time_ppo(&mut self) -> Result<()> {
        let plan = self.speed_plan()?;
        let prompt_tokens = ppo_of(&plan)?.sampling.max_prompt_tokens as f64;
        let rows = self.timed_rows(&plan, "ppo", (WARM_UP.1, TIMED.1))?;
        let all = |name: &str| numbers(&rows, name);
        // As in DeepSpeed-Chat's table, which counts prompts too.
        let values = all("episodes_per_second")?
            .into_iter()
            .zip(all("objective/length")?)
            .map(|(episodes, length)| episodes * (prompt_tokens + length))
            .collect();
        let (sampling, step) = (all("time/sample")?, all("time/step")?);
        let share: Vec<f64> = sampling
            .iter()
            .zip(&step)
            .map(|(part, all)| part / all)
            .collect();
        let shares = vec![("of the step is generation".to_owned(), median(&share))];
        let peak = all("memory/peak").ok();
        self.report.measured(Row::of(
            Work::Ppo,
            values,
            shares,
            peak.as_deref().map(last),
        ));
        Ok(())
    }

    /// The steps of a stage after its warm-up; the stage is ended behind them.
    fn timed_rows(
        &self,
        plan: &Plan,
        stage: &str,
        (warm_up, timed): (u64, u64),
    ) -> Result<Vec<MetricRow>> {
        let warm_up = if self.is_rehearsal() { 1 } else { warm_up };
        let timed = if self.is_rehearsal() {
            REHEARSED
        } else {
            timed
        };
        let root = self.speed_root();
        let rows = self.run_stage(&StageRun {
            plan,
            stage,
            inputs: &root,
            folder: &root,
            place: Place::Device,
            deterministic: false,
            steps: Some(warm_up + timed),
        })?;
        Ok(rows.into_iter().filter(|row| row.step > warm_up).collect())
    }
}

fn plan_of<'a>(plan: &'a Plan, stage: &str) -> Result<&'a StagePlan> {
    plan.stage(stage)
        .with_context(|| format!("there is no stage `{stage}`"))
}

fn shape_of<'a>(plan: &'a Plan, stage: &str) -> Result<&'a ModelShape> {
    let shape = plan_of(plan, stage)?.model_shape();
    shape.with_context(|| format!("stage `{stage}` has no model"))
}

fn ppo_of(plan: &Plan) -> Result<&PpoPlan> {
    match &plan_of(plan, "ppo")?.task {
        Task::Ppo(task) => Ok(task),
        _ => anyhow::bail!("stage `ppo` is of another kind"),
    }
}

/// Prompts, tokens of each, new tokens: as PPO decodes them together.
pub(super) fn sampling_sizes(plan: &Plan) -> Result<[usize; 3]> {
    let sampling = &ppo_of(plan)?.sampling;
    let rows = plan_of(plan, "ppo")?.execution.sample_batch;
    Ok([rows, sampling.max_prompt_tokens, sampling.max_new_tokens])
}

/// Rows, and tokens of each, of an update of the stage `gpt2`.
pub(super) fn training_sizes(plan: &Plan) -> Result<[usize; 2]> {
    match &plan_of(plan, "gpt2")?.task {
        Task::Pretrain(task) => Ok([task.train.batch, task.context]),
        _ => anyhow::bail!("stage `gpt2` is of another kind"),
    }
}

/// What decoding must read: the weights for every token, and the keys and values of every token before it.
fn bytes_read(shape: &ModelShape, [rows, prompt, new]: [usize; 3]) -> f64 {
    let weights = (new as u64 * shape.num_parameters() * Dtype::Bf16.bytes()) as f64;
    let cached: usize = (prompt..prompt + new).sum();
    weights + (rows as u64 * shape.cache_bytes(cached, Dtype::Bf16)) as f64
}

fn numbers(rows: &[MetricRow], name: &str) -> Result<Vec<f64>> {
    let value = |row: &MetricRow| row.values.get(name).copied();
    let all: Option<Vec<f64>> = rows.iter().map(value).collect();
    let all = all.filter(|all| !all.is_empty());
    all.with_context(|| format!("no step has `{name}`"))
}

fn last(numbers: &[f64]) -> f64 {
    numbers.last().copied().unwrap_or(f64::NAN)
}

/// More prompts than an iteration takes, each longer than what is kept of it.
fn random_prompts(ppo: &PpoPlan) -> String {
    const WORDS: [&str; 16] = [
        "garden", "captain", "winter", "holiday", "museum", "awful", "picnic", "teacher", "letter",
        "lovely", "market", "river", "boring", "supper", "doctor", "kind",
    ];
    let mut lines = String::new();
    for prompt in 0..2 * ppo.batch as u64 {
        let word = |position| WORDS[(seeds::key(1, "prompts", prompt, position) % 16) as usize];
        // A word has one token at least.
        let words: Vec<&str> = (0..ppo.sampling.max_prompt_tokens as u64)
            .map(word)
            .collect();
        let content = words.join(" ");
        let row = serde_json::json!({
            "id": format!("p{prompt}"),
            "messages": [{ "role": "user", "content": content }],
        });
        let _ = writeln!(lines, "{row}");
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoding_reads_weights_and_cache_for_every_token() {
        let shape = recipe::sizes::named("llama-tiny").expect("a size");
        let one = bytes_read(&shape, [1, 0, 1]);
        assert!(
            (one - 2.0 * shape.num_parameters() as f64).abs() < 1e-9,
            "nothing is cached yet"
        );
        let keys = shape.cache_bytes(1, Dtype::Bf16) as f64;
        let apart = bytes_read(&shape, [3, 5, 2]) - 2.0 * one;
        assert!((apart - 3.0 * (5.0 + 6.0) * keys).abs() < 1e-9);
    }
}
