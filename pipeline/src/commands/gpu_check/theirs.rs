//! The other side in the same run: `PyTorch` and transformers, where a Python has them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::goals::Work;
use super::report::State;
use super::speed::{sampling_sizes, training_sizes};
use super::work::TimeUp;
use super::{Check, default_file};
use crate::commands::measured::{ScriptError, run_script};

/// Steps of training and batches of sampling that are timed; the same in a rehearsal.
const STEPS: usize = 20;
const BATCHES: usize = 2;
const REHEARSED: usize = 2;

const SCRIPTS: &str = "experiments/benchmarks/peers";

impl Check<'_> {
    /// A plain loop, eager and compiled: weights in f32 under bf16 autocast, as nanoGPT trains.
    pub(super) fn time_their_training(&mut self) -> Result<State> {
        let [rows, tokens] = training_sizes(&self.speed_plan()?)?.map(|size| size.to_string());
        let repeats = if self.is_rehearsal() {
            REHEARSED
        } else {
            STEPS
        }
        .to_string();
        let mut arguments = vec!["--dtype", "f32", "--autocast", "--batch", &rows];
        arguments.extend(["--tokens", &tokens, "--repeats", &repeats]);
        let tries =
            [vec![], vec!["--compile"]].map(|further| [arguments.clone(), further].concat());
        self.run_tries(Work::Gpt2, "train_bare.py", &self.gpt2_folder(), &tries)
    }

    /// `generate` with a cache that grows, and with one of a fixed size.
    pub(super) fn time_their_sampling(&mut self) -> Result<State> {
        let [rows, prompt, new] = sampling_sizes(&self.speed_plan()?)?.map(|size| size.to_string());
        let repeats = if self.is_rehearsal() {
            REHEARSED
        } else {
            BATCHES
        }
        .to_string();
        let mut arguments = vec!["--dtype", "bf16", "--batch", &rows, "--prompt", &prompt];
        arguments.extend(["--tokens", &new, "--repeats", &repeats]);
        let tries =
            [vec![], vec!["--static-cache"]].map(|further| [arguments.clone(), further].concat());
        self.run_tries(Work::Sample, "generate.py", &self.actor_folder(), &tries)
    }

    fn run_tries(
        &mut self,
        work: Work,
        script: &str,
        model: &Path,
        tries: &[Vec<&str>],
    ) -> Result<State> {
        let python = match self.python()? {
            Ok(python) => python,
            Err(why) => return Ok(State::NotRun(why)),
        };
        let usual = format!("{SCRIPTS}/{script}");
        let script = default_file(None, &usual).map_err(super::work::as_error)?;
        let device = if self.is_rehearsal() { "cpu" } else { "cuda" };
        let mut problems = Vec::new();
        for further in tries {
            let mut command = Command::new(&python);
            command.arg(&script).arg("--model").arg(model);
            command.args(["--device", device]).args(further);
            match run_script(&mut command, Some(self.deadline)) {
                Ok(lines) if lines.is_empty() => problems.push("it reports nothing".to_owned()),
                Ok(lines) => {
                    for line in lines {
                        self.report.note_versions(line.versions);
                        self.report.set_theirs(work, line.side, line.per_second);
                    }
                }
                Err(ScriptError::TimeUp) => return Err(TimeUp.into()),
                Err(ScriptError::Failed(problem)) => problems.push(problem),
            }
        }
        Ok(if problems.is_empty() {
            State::Done
        } else {
            State::Failed(problems.join("; "))
        })
    }

    /// A Python that has what the scripts import; else why there is none.
    fn python(&self) -> Result<Result<PathBuf, String>> {
        if self.args.no_peers {
            return Ok(Err("--no-peers".to_owned()));
        }
        let (candidates, named) = match &self.args.peers {
            Some(named) => (vec![named.clone()], format!("--peers {}", named.display())),
            None => (
                [".peers/bin/python", "python3"].map(PathBuf::from).to_vec(),
                "neither .peers/bin/python nor python3".to_owned(),
            ),
        };
        for python in candidates {
            if self.can_run(&python)? {
                return Ok(Ok(python));
            }
        }
        Ok(Err(format!("{named}: {}", self.lacking())))
    }

    fn lacking(&self) -> &'static str {
        if self.is_rehearsal() {
            "it cannot import torch and transformers"
        } else {
            "it cannot import torch and transformers, or its torch finds no GPU"
        }
    }

    fn can_run(&self, python: &Path) -> Result<bool> {
        let needs_gpu = if self.is_rehearsal() {
            "True"
        } else {
            "torch.cuda.is_available()"
        };
        let test = format!("import torch, transformers, sys; sys.exit(not {needs_gpu})");
        match run_script(
            Command::new(python).args(["-c", &test]),
            Some(self.deadline),
        ) {
            Ok(_) => Ok(true),
            Err(ScriptError::TimeUp) => Err(TimeUp.into()),
            Err(ScriptError::Failed(_)) => Ok(false),
        }
    }
}
