//! The other side: `PyTorch`, transformers and TRL, in an environment of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::anyhow;

use super::report::Report;
use super::{
    Measurement, NEW_TOKENS, PEER_SAMPLE_BATCHES, PPO_BATCH, PROMPT_TOKENS, ROW_TOKENS,
    TRAIN_BATCH, Work,
};
use crate::commands::measured::{ScriptLine, run_script};
use crate::failure::{Failure, Outcome};

/// Timed batches or steps of a process, after its warm-up.
const TRAIN_STEPS: usize = 8;
const BATCHES: usize = 3;

/// Scripts, and a Python that can run them.
#[derive(Debug)]
pub(super) struct Peers {
    environment: PathBuf,
    scripts: PathBuf,
}

impl Peers {
    /// The scripts beside the configuration.
    pub(super) fn open(environment: &Path, config: &Path) -> Outcome<Self> {
        let scripts = config.with_file_name("peers");
        let needed = [environment.join("bin/python"), scripts.join("ppo.py")];
        match needed.iter().find(|file| !file.exists()) {
            Some(missing) => Err(Failure::Usage(anyhow!(
                "--peers {}: {} is not there\n  hint: `make bench` makes the environment; leave --peers out \
                 to measure ours alone",
                environment.display(),
                missing.display()
            ))),
            None => Ok(Self {
                environment: environment.to_owned(),
                scripts,
            }),
        }
    }

    /// One turn on the models of ours in `run_dir`.
    pub(super) fn measure(
        &self,
        run_dir: &Path,
        dtype: &'static str,
        turn: usize,
        report: &mut Report,
    ) {
        let model = |stage: &str| run_dir.join(stage).join("final");
        let mut run = |work, script: &str, model: &Path, sizes: [usize; 4]| {
            eprintln!("turn {}, {dtype}: {script}, {}", turn + 1, model.display());
            let lines = self.lines(script, model, &run_dir.join("reward/final"), dtype, sizes);
            let lines = match lines {
                Ok(lines) if lines.is_empty() => {
                    return report.leave_out(format!("{script}, {dtype}: it reports nothing"));
                }
                Ok(lines) => lines,
                Err(problem) => return report.leave_out(format!("{dtype}: {problem}")),
            };
            for line in lines {
                report.note_versions(line.versions);
                let side = match line.work.as_str() {
                    "sample" => format!("{}, batch {}", line.side, sizes[0]),
                    _ => line.side,
                };
                let of = |work, values| Measurement {
                    work,
                    dtype,
                    turn,
                    side: side.clone(),
                    values,
                    utilisation: None,
                };
                report.extend(vec![of(work, line.per_second)]);
                let start = line.start_s.map(|start_s| of(Work::Start, vec![start_s]));
                report.extend(start.into_iter().collect());
            }
        };
        let train = [TRAIN_BATCH, 0, ROW_TOKENS, TRAIN_STEPS];
        for script in ["train_bare.py", "train_trl.py"] {
            run(Work::Train, script, &model("policy"), train);
        }
        for batch in PEER_SAMPLE_BATCHES {
            let sizes = [batch, PROMPT_TOKENS, NEW_TOKENS, BATCHES];
            run(Work::SampleGpt2, "generate.py", &model("policy"), sizes);
            run(Work::SampleLlama, "generate.py", &model("llama"), sizes);
        }
        let ppo = [PPO_BATCH, PROMPT_TOKENS, NEW_TOKENS, BATCHES];
        run(Work::Ppo, "ppo.py", &model("policy"), ppo);
    }

    fn lines(
        &self,
        script: &str,
        model: &Path,
        reward: &Path,
        dtype: &str,
        sizes: [usize; 4],
    ) -> Result<Vec<ScriptLine>, String> {
        let [batch, prompt, tokens, repeats] = sizes.map(|size| size.to_string());
        let absolute = |path: &Path| std::path::absolute(path).map_err(|error| error.to_string());
        let mut command = Command::new(self.environment.join("bin/python"));
        command
            .arg(self.scripts.join(script))
            .arg("--model")
            .arg(absolute(model)?)
            .arg("--reward")
            .arg(absolute(reward)?)
            .args(["--dtype", dtype, "--batch", &batch, "--prompt", &prompt])
            .args(["--tokens", &tokens, "--repeats", &repeats])
            // The TRL that still has PPO lies beside the other one.
            .env("PYTHONPATH", self.python_path(script));
        run_script(&mut command, None).map_err(|problem| format!("{script}: {problem}"))
    }

    fn python_path(&self, script: &str) -> PathBuf {
        let old = self.environment.join("trl_old");
        match script {
            "ppo.py" => fs::canonicalize(&old).unwrap_or(old),
            _ => PathBuf::new(),
        }
    }
}
