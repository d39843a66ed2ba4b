//! The script of a job of Slurm.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use recipe::plan::{Container, ContainerRuntime, SlurmJob};

use super::CHECK;

/// The exit code by which the program says that a process of it was killed.
const KILLED: u8 = 75;

/// How long the other machines' tasks may go on after the first has ended, seconds.
const WAIT_S: u32 = 120;

/// A job to be written.
#[derive(Debug, Clone)]
pub struct Script<'a> {
    /// The pipeline's name.
    pub pipeline: &'a str,
    /// The stage, or [`CHECK`].
    pub stage: &'a str,
    /// What the configuration says of its job.
    pub job: &'a SlurmJob,
    /// The folder of the submission, an absolute path.
    pub root: &'a Path,
    /// Whether it is an array over seeds, each with its run folder in that one.
    pub seeds: bool,
    /// Options of `rlhf run` that stand for all stages.
    pub options: &'a [String],
    /// `rlhf`, an absolute path.
    pub program: &'a Path,
    /// The word that the check of a node looks for.
    pub token: &'a str,
    /// GPUs that the check of a node looks for.
    pub gpus: usize,
}

/// A text as one word of the shell.
pub fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

impl Script<'_> {
    /// The script.
    pub fn text(&self) -> String {
        let mut text = "#!/usr/bin/env bash\n".to_owned();
        for option in self.header() {
            let _ = writeln!(text, "#SBATCH {option}");
        }
        let _ = writeln!(
            text,
            "# Written by `rlhf submit`, which writes it anew every time."
        );
        for (name, value) in &self.job.environment {
            let _ = writeln!(text, "export {name}={}", quoted(value));
        }
        if !self.job.setup.is_empty() {
            text.push_str(FAILED);
        }
        for line in &self.job.setup {
            let line = quoted(line);
            let _ = writeln!(text, "eval {line} || failed $? {line}");
        }
        // Behind those lines: what modules and profiles source reads variables that are not set.
        text.push_str("set -u\n\n");
        text.push_str(&if self.stage == CHECK {
            self.check()
        } else {
            self.body()
        });
        text
    }

    /// The options that the script itself gives to `sbatch`.
    fn header(&self) -> Vec<String> {
        let SlurmJob { size, .. } = self.job;
        let log = log_path(
            self.root,
            self.stage,
            self.seeds.then_some("%a"),
            id_word(self.seeds),
        );
        let mut options = vec![
            format!("--job-name={}-{}", self.pipeline, self.stage),
            format!("--output={}", quoted(&log.to_string_lossy())),
            "--open-mode=append".to_owned(),
            format!("--nodes={}", size.nodes),
            "--ntasks-per-node=1".to_owned(),
        ];
        if size.gpus_per_node > 0 {
            options.push(format!("--gres=gpu:{}", size.gpus_per_node));
        }
        let counts = [("cpus-per-task", self.job.cpus_per_node)];
        for (name, value) in counts {
            options.extend(value.map(|value| format!("--{name}={value}")));
        }
        let texts = [
            ("mem", &self.job.memory),
            ("partition", &self.job.partition),
            ("account", &self.job.account),
            ("qos", &self.job.qos),
            ("constraint", &self.job.constraint),
        ];
        for (name, value) in texts {
            let value = value.as_ref();
            options.extend(value.map(|value| format!("--{name}={}", quoted(value))));
        }
        if self.job.exclusive {
            options.push("--exclusive".to_owned());
        }
        if self.stage == CHECK {
            options.push(format!("--time={CHECK_TIME}"));
        } else {
            options.extend(self.job.time.as_ref().map(|time| format!("--time={time}")));
            options.push("--requeue".to_owned());
            options.push(format!("--signal=B:USR1@{}", self.job.signal_before));
        }
        options.extend(self.job.options.iter().cloned());
        options
    }

    /// `srun` and what it starts on each node, up to the words of `rlhf`.
    fn step(&self) -> Vec<String> {
        let SlurmJob {
            size, container, ..
        } = self.job;
        let mut words = vec![
            "srun".to_owned(),
            format!("--nodes={}", size.nodes),
            "--ntasks-per-node=1".to_owned(),
            "--kill-on-bad-exit=0".to_owned(),
            format!("--wait={WAIT_S}"),
        ];
        // `srun` does not take it from the job.
        let cpus = self.job.cpus_per_node;
        words.extend(cpus.map(|cpus| format!("--cpus-per-task={cpus}")));
        if let Some(container) = container {
            words.extend(self.contained(container));
        }
        words.push(quoted(&self.program.to_string_lossy()));
        words
    }

    fn contained(&self, container: &Container) -> Vec<String> {
        let root = self.root.to_string_lossy().into_owned();
        let mounts: Vec<&String> = std::iter::once(&root).chain(&container.mounts).collect();
        match container.runtime {
            ContainerRuntime::Pyxis => {
                // Folders have the same names inside.
                let both = |mount: &&String| {
                    if mount.contains(':') {
                        (*mount).clone()
                    } else {
                        format!("{mount}:{mount}")
                    }
                };
                let mounts: Vec<String> = mounts.iter().map(both).collect();
                vec![
                    format!("--container-image={}", quoted(&container.image)),
                    format!("--container-mounts={}", quoted(&mounts.join(","))),
                ]
            }
            ContainerRuntime::Apptainer => {
                let mut words = vec!["apptainer".to_owned(), "exec".to_owned()];
                if self.job.size.gpus_per_node > 0 {
                    words.push("--nv".to_owned());
                }
                for mount in mounts {
                    words.extend(["--bind".to_owned(), quoted(mount)]);
                }
                words.push(quoted(&container.image));
                words
            }
        }
    }

    fn check(&self) -> String {
        let mut words = self.step();
        let root = self.root.to_string_lossy();
        words.extend(["doctor", "--run-dir"].map(str::to_owned));
        words.extend([quoted(&root), "--token".to_owned(), quoted(self.token)]);
        words.extend(["--gpus".to_owned(), self.gpus.to_string()]);
        format!("exec {}\n", words.join(" "))
    }

    fn body(&self) -> String {
        let root = quoted(&self.root.to_string_lossy());
        let (run, job) = if self.seeds {
            (
                format!("{root}/seed-$SLURM_ARRAY_TASK_ID"),
                "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID",
            )
        } else {
            (root, "$SLURM_JOB_ID")
        };
        let mut words = self.step();
        words.extend(["launch", "--ranks"].map(str::to_owned));
        words.push(self.job.size.ranks_per_node.to_string());
        words.extend(["--exit-if-killed".to_owned(), KILLED.to_string()]);
        words.extend(["--", "run", "\"$run/cluster/plan.toml\""].map(str::to_owned));
        words.extend(["--only", self.stage, "--run-dir", "\"$run\""].map(str::to_owned));
        words.extend(self.options.iter().map(|option| quoted(option)));
        let facts = format!(
            "run={run}\nstage={}\njob={job}\nrestarts={}\nkilled={KILLED}\n",
            self.stage, self.job.restarts
        );
        [&facts, BEFORE, &words.join(" "), AFTER].concat()
    }
}

/// The check of a node takes as long as libtorch takes to load from a slow file system.
const CHECK_TIME: &str = "15";

/// What a line of the configuration's setup does that fails.
const FAILED: &str = r#"failed() {
    echo "error: a line of setup ended with $1: $2"
    exit 1
}
"#;

/// Before the step.
const BEFORE: &str = r#"tries=$run/cluster/$stage-$job.tries

newest() { ls -d "$run/$stage"/step-* 2>/dev/null | sort -V | tail -n 1; }

# Back into the queue, to go on from the last snapshot; unless too many starts came no further than it.
again() {
    # One that is being cancelled would come back all the same.
    [ "$(squeue --noheader --format=%T --jobs="$job")" = RUNNING ] || return
    [ "$(newest)" != "$before" ] || echo "$1" >>"$tries"
    if [ "$(cat "$tries" 2>/dev/null | wc -l)" -gt "$restarts" ]; then
        echo "error: $1, and $restarts starts since came no further than the last snapshot; not started again"
        return
    fi
    echo "$1; the job goes back into the queue"
    scontrol requeue "$job" && sleep 300
}

# A signal to srun itself would end its tasks at once; this one reaches rlhf on every node, which saves a snapshot.
stop() {
    asked=$1
    scancel --signal=TERM "$job"
}

asked=
trap 'stop limit' USR1
trap 'stop others' TERM
before=$(newest)
"#;

/// After it, behind the command.
const AFTER: &str = r#" &
step=$!
wait "$step"
code=$?
while kill -0 "$step" 2>/dev/null; do
    wait "$step"
    code=$?
done
wait "$step"
code=$?
# What cancels a job tells the script as well (TERM); what preempts it tells the tasks alone.
if [ "$asked" = others ]; then
    echo "the job was told to end"
elif [ "$code" = 130 ] && [ "$asked" = limit ]; then
    again "the time limit is near"
elif [ "$code" = 130 ]; then
    again "another job takes the nodes"
elif [ "$code" = "$killed" ] || [ "$code" -gt 130 ]; then
    again "a process was killed"
fi
exit "$code"
"#;

/// The script of a stage.
pub fn script_path(root: &Path, stage: &str) -> PathBuf {
    root.join("cluster").join(format!("{stage}.sbatch"))
}

/// How Slurm names a job's number in the path of its log.
fn id_word(seeds: bool) -> &'static str {
    if seeds { "%A" } else { "%j" }
}

/// The log of a job.
pub fn log_path(root: &Path, stage: &str, seed: Option<&str>, id: &str) -> PathBuf {
    let run = match seed {
        Some(seed) => root.join(format!("seed-{seed}")),
        None => root.to_owned(),
    };
    run.join("logs").join(format!("slurm-{stage}-{id}.log"))
}

#[cfg(test)]
#[path = "script_tests.rs"]
mod tests;
