//! What all parts stand on: a worker that is followed as long as there is time, stages out of one run in another, and
//! the worker's answers.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use recipe::plan::{Dtype, Plan};
use recipe::request::Compute;
use runtime::metrics::{MetricRow, read_metrics};
use runtime::{Event, RunFolder, interrupt};
use serde::Serialize;

use super::Check;
use crate::commands::TICK;
use crate::failure::Failure;
use crate::worker::{CUBLAS_BUFFERS, Incoming, Worker};

/// A part that was cut.
#[derive(Debug, thiserror::Error)]
#[error("cut: the time was up")]
pub(super) struct TimeUp;

/// Where something is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// On the CPU, with our kernels.
    Cpu,
    /// On the device that is checked; in a rehearsal on the CPU, with libtorch's plain operators.
    Device,
}

/// A stage to be run in a folder of its own.
pub(super) struct StageRun<'a> {
    pub(super) plan: &'a Plan,
    pub(super) stage: &'a str,
    /// The run whose other stages it reads.
    pub(super) inputs: &'a Path,
    pub(super) folder: &'a Path,
    pub(super) place: Place,
    pub(super) deterministic: bool,
    /// Ended after so many steps, where it has more.
    pub(super) steps: Option<u64>,
}

impl Check<'_> {
    fn environment(&self, place: Place) -> Vec<(&'static str, &'static str)> {
        if self.is_rehearsal() && place == Place::Device {
            vec![("RLHF_KERNELS", "plain")]
        } else {
            Vec::new()
        }
    }

    fn device_word(&self, place: Place) -> &'static str {
        if place == Place::Cpu || self.is_rehearsal() {
            "cpu"
        } else {
            "cuda"
        }
    }

    pub(super) fn compute(&self, place: Place, dtype: Dtype, batch: usize) -> Compute {
        Compute {
            device: self.device_word(place).to_owned(),
            dtype,
            quantize: None,
            batch,
        }
    }

    /// Puts a request to a worker; returns the lines of its data.
    pub(super) fn ask(
        &self,
        place: Place,
        command: &str,
        request: &impl Serialize,
    ) -> Result<Vec<String>> {
        let request = serde_json::to_string(request)?;
        let environment = self.environment(place);
        let arguments = [command, &request];
        let worker = Worker::start_with(&self.libtorch, &arguments, None, &environment)?;
        follow(worker, self.deadline, None)
    }

    /// Runs a stage; returns its metrics, step by step.
    pub(super) fn run_stage(&self, run: &StageRun) -> Result<Vec<MetricRow>> {
        let folder = RunFolder::open_or_create(run.folder)?;
        fs::write(folder.plan_path(), run.plan.to_toml()?)
            .with_context(|| format!("cannot write {}", folder.plan_path().display()))?;
        if run.folder != run.inputs {
            for other in run.plan.stages.iter().filter(|it| it.name != run.stage) {
                let (from, to) = (run.inputs.join(&other.name), run.folder.join(&other.name));
                symlink(&from, &to).with_context(|| format!("cannot link {}", to.display()))?;
            }
        }
        let run_dir = run.folder.to_string_lossy();
        let device = self.device_word(run.place);
        let mut arguments = vec!["stage", "--run-dir", &run_dir, "--stage", run.stage];
        arguments.extend(["--device", device]);
        let mut environment = self.environment(run.place);
        if run.deterministic {
            arguments.push("--deterministic");
            environment.push(CUBLAS_BUFFERS);
        }
        let log = folder.log_path(run.stage);
        let worker = Worker::start_with(&self.libtorch, &arguments, Some(log), &environment)?;
        follow(worker, self.deadline, run.steps)
            .with_context(|| format!("stage `{}`", run.stage))?;
        Ok(read_metrics(&folder.stage(run.stage).metrics_path())?)
    }

    /// A folder for one stage of one part.
    pub(super) fn folder(&self, part: &str, stage: &str) -> PathBuf {
        self.root.join(part).join(stage)
    }
}

/// Waits for the worker's end; returns the lines of its data. Ends it after `steps` steps, where they are said, and
/// where there is no time left.
fn follow(mut worker: Worker, deadline: Instant, steps: Option<u64>) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        if interrupt::requested() {
            Worker::end_all(vec![worker]);
            bail!("interrupted");
        }
        if Instant::now() > deadline {
            Worker::end_all(vec![worker]);
            return Err(TimeUp.into());
        }
        match worker.receive(TICK) {
            Some(Incoming::Event(Event::Output { line })) => lines.push(line),
            Some(Incoming::Event(Event::Progress { step, .. }))
                if steps.is_some_and(|steps| step >= steps) =>
            {
                Worker::end_all(vec![worker]);
                return Ok(lines);
            }
            Some(Incoming::Closed) => {
                worker.finish()?;
                return Ok(lines);
            }
            _ => {}
        }
    }
}

/// The only line of an answer.
pub(super) fn read_answer<T: serde::de::DeserializeOwned>(lines: &[String]) -> Result<T> {
    let line = lines.last().context("the worker has no answer")?;
    serde_json::from_str(line).with_context(|| format!("the worker answers {line}"))
}

/// A command of ours that failed within a part.
pub(super) fn as_error(failure: Failure) -> anyhow::Error {
    match failure {
        Failure::Usage(error)
        | Failure::Run(error)
        | Failure::Killed(error, _)
        | Failure::Elsewhere(error) => error,
        Failure::Interrupted(how) => anyhow!("interrupted: {how}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_keeps_what_the_time_said() {
        let error = anyhow::Error::from(TimeUp).context("stage `sft`");
        assert!(error.is::<TimeUp>());
    }
}
