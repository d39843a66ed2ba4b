//! Our side: the product's own commands, and what they write down.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use recipe::plan::Plan;
use runtime::RunFolder;
use runtime::metrics::{MetricRow, read_metrics};
use runtime::seeds;
use runtime::statistics::median;

use super::{
    Measurement, NEW_TOKENS, OURS, PROMPT_TOKENS, PROMPTS, ROW_TOKENS, SAMPLE_BATCH, Work,
};
use crate::inspect::read_plan;

/// Updates and iterations that are not counted.
const WARM_UP: u64 = 2;

/// One turn of ours.
pub(super) struct Ours<'a> {
    pub(super) config: &'a Path,
    pub(super) run_dir: PathBuf,
    pub(super) dtype: &'static str,
    pub(super) turn: usize,
}

impl Ours<'_> {
    /// Trains, runs PPO and samples.
    pub(super) fn measure(&self) -> Result<Vec<Measurement>> {
        self.run(&["--until", Plan::TOKENIZER])?;
        let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        self.run(&["--until", "policy"])?;
        self.run(&[])?;
        let policy = self.rows("policy")?;
        let first = policy.first().context("`policy` has no step")?;
        let start_s = first.time - value(first, "time/step")? - started.as_secs_f64();
        let train = self.of_steps(Work::Train, &policy)?;
        let plan = read_plan(&self.run_dir)?.context("the run has no plan")?;
        let peak = peak(&plan, &train)?;
        let ppo = self.of_steps(Work::Ppo, &self.rows("ppo")?)?;
        let gpt2 = self.sample(Work::SampleGpt2, "policy", &plan, peak)?;
        let llama = self.sample(Work::SampleLlama, "llama", &plan, peak)?;
        let start = self.measurement(Work::Start, vec![start_s], None);
        Ok(vec![train, gpt2, llama, ppo, start])
    }

    fn measurement(&self, work: Work, values: Vec<f64>, utilisation: Option<f64>) -> Measurement {
        Measurement {
            work,
            dtype: self.dtype,
            turn: self.turn,
            side: OURS.to_owned(),
            values,
            utilisation,
        }
    }

    fn rows(&self, stage: &str) -> Result<Vec<MetricRow>> {
        let folder = RunFolder::open_or_create(&self.run_dir)?;
        let rows = read_metrics(&folder.stage(stage).metrics_path())?;
        Ok(rows.into_iter().filter(|row| row.step > 0).collect())
    }

    fn of_steps(&self, work: Work, rows: &[MetricRow]) -> Result<Measurement> {
        let rows = rows.iter().filter(|row| row.step > WARM_UP);
        let all = |name| {
            rows.clone()
                .map(|row| value(row, name))
                .collect::<Result<Vec<_>>>()
        };
        let utilisation = median(&all("mfu")?);
        Ok(self.measurement(work, all("tokens_per_second")?, Some(utilisation)))
    }

    fn run(&self, further: &[&str]) -> Result<()> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("run").arg(self.config);
        command
            .args(["--device", "cpu", "--run-dir"])
            .arg(&self.run_dir);
        for stage in ["policy", "llama", "comparisons", "reward", "ppo"] {
            command.arg("--set");
            command.arg(format!("stages.{stage}.dtype={}", self.dtype));
        }
        finish(command.args(further).stdout(Stdio::null()))
    }

    /// Samples from a stage's model: the whole process, less one that makes a single token.
    fn sample(&self, work: Work, stage: &str, plan: &Plan, peak: f64) -> Result<Measurement> {
        let model = self.run_dir.join(stage).join("final");
        let all = self.generate(&model, PROMPTS, NEW_TOKENS)?;
        let start = self.generate(&model, 1, 1)?;
        let seconds = all - start;
        let stage = plan.stages.iter().find(|it| it.name == stage);
        let shape = stage.and_then(|it| it.model_shape());
        let shape = shape.with_context(|| format!("{} has no model", model.display()))?;
        // Every token is read once, and a response's also predicted.
        let tokens = (PROMPTS * (PROMPT_TOKENS + NEW_TOKENS)) as f64;
        let context = usize::midpoint(PROMPT_TOKENS, NEW_TOKENS);
        let logits =
            2.0 * (PROMPTS * PROMPT_TOKENS * shape.vocab_size * shape.embedding_width) as f64;
        let flops = tokens * shape.forward_flops_per_token(context) - logits;
        let per_second = (PROMPTS * NEW_TOKENS) as f64 / seconds;
        Ok(self.measurement(work, vec![per_second], Some(flops / seconds / peak)))
    }

    /// Seconds of the whole process.
    fn generate(&self, model: &Path, prompts: usize, new_tokens: usize) -> Result<f64> {
        let data = self.run_dir.join("prompts.jsonl");
        fs::write(&data, random_prompts(prompts))?;
        let out = File::create(self.run_dir.join("samples.jsonl"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["generate", "--device", "cpu", "--ignore-eos", "--model"]);
        command.arg(model).arg("--data").arg(&data);
        command.args(["--dtype", self.dtype, "--batch", &SAMPLE_BATCH.to_string()]);
        command.args(["--max-new-tokens", &new_tokens.to_string()]);
        let started = Instant::now();
        finish(command.stdout(out))?;
        Ok(started.elapsed().as_secs_f64())
    }
}

fn value(row: &MetricRow, name: &str) -> Result<f64> {
    let value = row.values.get(name).copied();
    value.with_context(|| format!("step {} has no `{name}`", row.step))
}

/// The machine's largest matrix product, FLOP/s: what the training rows' shares are of.
fn peak(plan: &Plan, train: &Measurement) -> Result<f64> {
    let stage = plan.stages.iter().find(|it| it.name == "policy");
    let shape = stage
        .and_then(|it| it.model_shape())
        .context("`policy` has no model")?;
    let forward = shape.forward_flops_per_token(ROW_TOKENS);
    let per_token = shape.training_flops_per_token(forward, ROW_TOKENS, None);
    let utilisation = train.utilisation.filter(|share| *share > 0.0);
    Ok(median(&train.values) * per_token / utilisation.context("no `mfu`")?)
}

/// JSON lines of random tokens, which both models know.
fn random_prompts(count: usize) -> String {
    let mut lines = String::new();
    for prompt in 0..count as u64 {
        let id = |position| 300 + seeds::key(1, "bench", prompt, position) % 3700;
        let ids: Vec<u64> = (0..PROMPT_TOKENS as u64).map(id).collect();
        let _ = writeln!(lines, "{{\"input_ids\":{ids:?}}}");
    }
    lines
}

/// Runs to the end; what the command says is kept for when it fails.
fn finish(command: &mut Command) -> Result<()> {
    let mut child = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let stderr = child
        .stderr
        .take()
        .ok_or_else(|| anyhow!("no standard error"))?;
    let said = std::io::read_to_string(stderr).unwrap_or_default();
    if child.wait()?.success() {
        return Ok(());
    }
    let arguments: Vec<_> = command.get_args().map(|it| it.to_string_lossy()).collect();
    bail!("rlhf {} failed:\n{said}", arguments.join(" "))
}
