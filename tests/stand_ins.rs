//! A cluster whose commands are stand-ins.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Outcome, Said, rlhf_beside, say, scratch, tiny};

/// Numbers of jobs count up; `refuse` in the folder makes `sbatch` refuse scripts of that name; while `wait` is there, it
/// waits; `queue` is what `squeue` says; `asked` is what all were asked.
const SBATCH: &str = r#"#!/bin/bash
cd "$(dirname "$0")" || exit
[ "$1" = --version ] && { echo "slurm-wlm 22.05.8"; exit; }
echo "sbatch $*" | sed "s|$RUN|RUN|" >>asked
while [ -e wait ]; do sleep 0.05; done
if [ -e refuse ] && [[ "$*" == *"$(cat refuse)"* ]]; then
    echo "sbatch: error: invalid partition specified: nope" >&2
    echo "sbatch: error: Batch job submission failed: Invalid partition name specified" >&2
    exit 1
fi
id=$(($(cat last 2>/dev/null || echo 100) + 1))
echo $id | tee last
"#;
const SQUEUE: &str = r#"#!/bin/bash
cat "$(dirname "$0")/queue" 2>/dev/null
"#;
const SCANCEL: &str = r#"#!/bin/bash
echo "scancel $*" >>"$(dirname "$0")/asked"
"#;

/// The tests' pipeline beside a cluster, with stand-ins for Slurm.
pub struct Cluster {
    pub folder: TempDir,
}

impl Cluster {
    /// A folder of its own, with an empty queue.
    pub fn new() -> Outcome<Self> {
        let folder = scratch()?;
        let bin = folder.path().join("bin");
        fs::create_dir(&bin)?;
        for (name, text) in [("sbatch", SBATCH), ("squeue", SQUEUE), ("scancel", SCANCEL)] {
            fs::write(bin.join(name), text)?;
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755))?;
        }
        let text = fs::read_to_string(tiny())?
            + "\n[cluster.slurm]\npartition = \"main\"\nranks_per_node = 2\ntime = \"60\"\n\
               [cluster.slurm.stages.ppo]\nnodes = 2\n";
        fs::write(folder.path().join("pipeline.toml"), text)?;
        Ok(Self { folder })
    }

    /// A file of that folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The run folder.
    pub fn run(&self) -> PathBuf {
        self.file("run")
    }

    /// `rlhf` with the stand-ins before all else; without them, where nothing is found at all.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = rlhf_beside(&self.file("bin"));
        command.env("RUN", self.run()).args(words);
        command
    }

    /// `rlhf submit`.
    pub fn submit(&self, options: &[&str]) -> Outcome<Said> {
        let mut command = self.command(&["submit"]);
        command
            .arg(self.file("pipeline.toml"))
            .args(["--to", "slurm"]);
        command.arg("--run-dir").arg(self.run());
        say(command.args(options))
    }

    /// `rlhf status`.
    pub fn status(&self) -> Outcome<Said> {
        say(self.command(&["status"]).arg(self.run()))
    }

    /// What Slurm was asked since the last time.
    pub fn asked(&self) -> Outcome<Vec<String>> {
        let path = self.file("bin/asked");
        let text = fs::read_to_string(&path).unwrap_or_default();
        fs::write(&path, "")?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Has `squeue` say this: number, state, reason.
    pub fn queue(&self, jobs: &[(&str, &str, &str)]) -> Outcome {
        let line = |(id, state, reason): &(&str, &str, &str)| {
            format!("{id}|{state}|{reason}|node1|0:01|59:59\n")
        };
        let text: String = jobs.iter().map(line).collect();
        Ok(fs::write(self.file("bin/queue"), text)?)
    }

    /// What was submitted.
    pub fn record(&self) -> Outcome<Value> {
        let text = fs::read_to_string(self.run().join("cluster/slurm.json"))?;
        Ok(serde_json::from_str(&text)?)
    }
}
