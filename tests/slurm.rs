//! A real Slurm of two nodes, which `make test-slurm` starts: pipelines are submitted, killed, stopped by their time limit,
//! and fail.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{num_lines, send};
use crate::support::{Outcome, Said, files_below, rlhf, say, scratch, tiny};

/// More than any of these jobs takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// What the tests' cluster is told: the names of its nodes are no addresses.
const CLUSTER: &str = r#"
[cluster.slurm]
nodes = 2
time = "10"
signal_before = 30
environment = { MASTER_ADDR = "127.0.0.1", OMP_NUM_THREADS = 1 }

# A stage that does not need the others.
[stages.other]
kind = "sft"
model = "stage:pretrain"
data = "stage:corpus"
context = 64
overlong = "left"
batch = 16
steps = 40
save_every = 20
"#;

const SHORT: [&str; 6] = [
    "stages.pretrain.steps=80",
    "stages.pretrain.save_every=10",
    "stages.sft.steps=40",
    "stages.comparisons.num_prompts=32",
    "stages.reward.steps=20",
    "stages.ppo.iterations=3",
];

/// A pipeline and its run folder.
struct Submitted {
    folder: TempDir,
    keys: Vec<String>,
}

impl Submitted {
    fn new(keys: &[&str]) -> Outcome<Self> {
        let conf = std::env::var("SLURM_CONF")
            .map_err(|_| "SLURM_CONF is not set: run make test-slurm")?;
        let conf = fs::read_to_string(conf)?;
        assert!(
            conf.contains("ClusterName=two-nodes"),
            "another Slurm than tests/slurm/two_nodes.sh starts"
        );
        let folder = scratch()?;
        fs::write(
            folder.path().join("pipeline.toml"),
            fs::read_to_string(tiny())? + CLUSTER,
        )?;
        let keys = SHORT
            .iter()
            .chain(keys)
            .map(|key| (*key).to_owned())
            .collect();
        Ok(Self { folder, keys })
    }

    fn run(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    fn set(&self, command: &mut Command, run: &Path) {
        command.arg(self.folder.path().join("pipeline.toml"));
        command.arg("--run-dir").arg(run).args(["--device", "cpu"]);
        for key in &self.keys {
            command.args(["--set", key]);
        }
    }

    fn submit(&self, options: &[&str]) -> Outcome<Said> {
        let mut command = rlhf();
        command.args(["submit", "--to", "slurm"]);
        self.set(&mut command, &self.run());
        say(command.args(options))
    }

    /// The same on this machine alone, as so many processes.
    fn launch(&self, ranks: &str, run: &Path) -> Outcome {
        let mut command = rlhf();
        command.args(["launch", "--ranks", ranks, "--", "run"]);
        self.set(&mut command, run);
        say(&mut command)?.ended(0);
        Ok(())
    }

    fn rows(&self) -> Outcome<Vec<Value>> {
        let said = say(rlhf().args(["status", "--json"]).arg(self.run()))?.ended(0);
        let shown: Value = serde_json::from_str(&said.out)?;
        Ok(shown["jobs"].as_array().ok_or("no jobs")?.clone())
    }

    fn row(&self, stage: &str) -> Outcome<Value> {
        let rows = self.rows()?;
        let found = rows.into_iter().find(|row| row["stage"] == stage);
        Ok(found.ok_or(format!("no job of {stage}"))?)
    }

    /// Looks at the jobs until something is true of them.
    fn wait(&self, what: &str, mut condition: impl FnMut(&[Value]) -> bool) -> Outcome<Vec<Value>> {
        let start = Instant::now();
        loop {
            let rows = self.rows()?;
            if condition(&rows) {
                return Ok(rows);
            }
            if start.elapsed() > PATIENCE {
                return Err(format!(
                    "waited {PATIENCE:?} for {what}: {rows:#?}\n{}",
                    self.logs()?
                )
                .into());
            }
            sleep(Duration::from_millis(300));
        }
    }

    /// What the jobs have said.
    fn logs(&self) -> Outcome<String> {
        let mut text = String::new();
        for file in files_below(&self.run())? {
            if file.to_string_lossy().contains("slurm-") {
                let said = fs::read_to_string(self.run().join(&file))?;
                text.extend([
                    "--- ",
                    &file.to_string_lossy(),
                    "
",
                    &said,
                ]);
            }
        }
        Ok(text)
    }

    fn log(&self, stage: &str) -> Outcome<String> {
        let row = self.row(stage)?;
        Ok(fs::read_to_string(row["log"].as_str().ok_or("no log")?)?)
    }
}

impl Drop for Submitted {
    fn drop(&mut self) {
        // A test that failed leaves no jobs behind.
        let _ = rlhf().arg("cancel").arg(self.run()).output();
    }
}

fn all_are(state: &str) -> impl Fn(&[Value]) -> bool {
    move |rows| rows.iter().all(|row| row["state"] == state)
}

/// How often Slurm has started a job again.
fn restarts(row: &Value) -> Outcome<u32> {
    let id = row["job"].as_str().ok_or("no number")?;
    let said = say(Command::new("scontrol").args(["show", "job", id]))?.ended(0);
    let mut words = said.out.split_whitespace();
    let found = words.find_map(|word| word.strip_prefix("Restarts="));
    Ok(found.ok_or("no restarts")?.parse()?)
}

/// A worker of a stage, whichever rank it is.
fn worker(run: &Path, stage: &str) -> Outcome<Option<u32>> {
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let words = fs::read(path.join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        let wanted = format!("--run-dir {} --stage {stage} ", run.display());
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(pid) = name.and_then(|name| name.parse().ok())
            && words.contains(&wanted)
        {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

fn assert_same_bytes(ours: &Path, theirs: &Path) -> Outcome {
    let files = files_below(theirs)?;
    assert!(files.iter().any(|file| file.ends_with("model.safetensors")));
    for file in files {
        let same = fs::read(ours.join(&file))? == fs::read(theirs.join(&file))?;
        assert!(same, "{} is another", file.display());
    }
    Ok(())
}

/// The whole pipeline over two nodes, with a worker killed in its first training; then a reward model that fails.
#[test]
#[ignore = "needs a Slurm: make test-slurm"]
fn a_pipeline_over_two_nodes_survives_a_kill_and_a_failed_stage_ends_what_needs_it() -> Outcome {
    let submitted = Submitted::new(&[])?;
    let (run, alone) = (submitted.run(), submitted.folder.path().join("alone"));
    let said = submitted.submit(&[])?.ended(0);
    assert_eq!(said.out.lines().count(), 9, "{}", said.out);
    let metrics = run.join("pretrain/metrics.jsonl");
    submitted.wait("the first steps", |_| num_lines(&metrics) >= 15)?;
    send(worker(&run, "pretrain")?.ok_or("no worker")?, Signal::KILL)?;
    // Meanwhile a second submission finds everything in the queue.
    let said = submitted.submit(&[])?.ended(0);
    assert!(said.out.is_empty(), "{}", said.out);
    said.names(&["pretrain  stays in the queue", "nothing to submit"]);
    let mut together = BTreeSet::new();
    let rows = submitted.wait("the whole pipeline", |rows| {
        let running = rows.iter().filter(|row| row["state"] == "running");
        let running: Vec<&str> = running.filter_map(|row| row["stage"].as_str()).collect();
        together.insert(running.join(" "));
        all_are("done")(rows)
    })?;
    let is_beside = |stages: &String| stages.contains("other") && stages.contains(' ');
    assert!(together.iter().any(is_beside), "side by side: {together:?}");
    for row in &rows {
        let alone =
            ["cluster", "corpus", "tokenizer"].contains(&row["stage"].as_str().unwrap_or_default());
        let nodes = row["nodes"].as_str().unwrap_or_default();
        assert_eq!(nodes.contains("[1-2]"), !alone, "{row}");
        assert_eq!(
            restarts(row)?,
            u32::from(row["stage"] == "pretrain"),
            "{row}"
        );
    }
    let log = submitted.log("pretrain")?;
    for words in [
        "SIGKILL",
        "a process was killed; the job goes back into the queue",
        "continue at",
    ] {
        assert!(log.contains(words), "{words}\n{log}");
    }
    submitted.launch("2", &alone)?;
    for stage in ["pretrain", "sft", "reward", "ppo"] {
        assert_same_bytes(
            &run.join(stage).join("final"),
            &alone.join(stage).join("final"),
        )?;
    }
    a_failed_stage(submitted)
}

/// The reward model fails, and what waits for it never starts.
fn a_failed_stage(mut submitted: Submitted) -> Outcome {
    let lr = "stages.reward.optimizer.lr=1e30";
    submitted.keys.push(lr.to_owned());
    submitted.submit(&["--restart", "reward"])?.ended(0);
    let (before, after) = (
        "not started: reward failed: ",
        " (DependencyNeverSatisfied)",
    );
    let reason = |row: &Value| {
        let reason = row["reason"].as_str().unwrap_or_default();
        let reason = reason.strip_prefix(before)?.strip_suffix(after)?;
        (row["stage"] == "ppo").then(|| reason.to_owned())
    };
    let rows = submitted.wait("the failure", |rows| {
        rows.iter().any(|row| reason(row).is_some())
    })?;
    let reason = rows.iter().find_map(reason).ok_or("no reason")?;
    let log = submitted.log("reward")?;
    assert!(
        reason.contains("stage `reward`") && log.contains(&reason),
        "{reason}\n{log}"
    );
    let reward = submitted.row("reward")?;
    assert_eq!(
        restarts(&reward)?,
        0,
        "what fails by itself is not started again"
    );
    assert!(!submitted.run().join("ppo/metrics.jsonl").exists());
    let said = say(rlhf().arg("cancel").arg(submitted.run()))?.ended(0);
    assert!(
        said.out.starts_with("         ppo  job ") && said.out.lines().count() == 1,
        "{}",
        said.out
    );
    assert_eq!(submitted.row("ppo")?["state"], "cancelled");
    Ok(())
}

/// The limit is a minute, the least that Slurm has, and a snapshot is due 40 s before.
#[test]
#[ignore = "needs a Slurm: make test-slurm"]
fn a_time_limit_saves_and_the_job_goes_on_later() -> Outcome {
    let keys = [
        "stages.pretrain.steps=4000",
        "stages.pretrain.save_every=100000",
    ];
    let times = ["cluster.slurm.time=\"1\"", "cluster.slurm.signal_before=40"];
    let submitted = Submitted::new(&[&keys[..], &times].concat())?;
    submitted.submit(&["--until", "pretrain"])?.ended(0);
    let queued_again = |rows: &[Value]| {
        let restarted = rows.iter().filter(|row| row["stage"] == "pretrain");
        restarted
            .map(restarts)
            .any(|times| times.is_ok_and(|times| times == 1))
    };
    submitted.wait("the limit", queued_again)?;
    let stage = runtime::RunFolder::at(&submitted.run()).stage("pretrain");
    let (step, _) = stage.snapshots()?.pop().ok_or("no snapshot")?;
    assert!((1..4000).contains(&step), "{step}");
    let log = submitted.log("pretrain")?;
    assert!(
        log.contains("the time limit is near; the job goes back into the queue"),
        "{log}"
    );
    // Enough for the rest: one requeue is what is looked at.
    let row = submitted.row("pretrain")?;
    let job = format!("JobId={}", row["job"].as_str().unwrap_or_default());
    say(Command::new("scontrol").args(["update", &job, "TimeLimit=20"]))?.ended(0);
    submitted.wait("the end", all_are("done"))?;
    let log = submitted.log("pretrain")?;
    assert!(log.contains(&format!("continue at {step}")), "{log}");
    assert_eq!(restarts(&submitted.row("pretrain")?)?, 1);
    Ok(())
}

/// Two seeds of the stages that take no time; then one is cancelled while it runs, and has saved.
#[test]
#[ignore = "needs a Slurm: make test-slurm"]
fn seeds_run_side_by_side_each_in_its_folder_and_a_cancelled_one_has_saved() -> Outcome {
    let keys = [
        "stages.pretrain.steps=100000",
        "stages.pretrain.save_every=100000",
    ];
    let submitted = Submitted::new(&keys)?;
    submitted
        .submit(&["--seeds", "3,5", "--until", "pretrain"])?
        .ended(0);
    let run = submitted.run();
    let metrics = |seed: u64| run.join(format!("seed-{seed}/pretrain/metrics.jsonl"));
    submitted.wait("both", |_| {
        [3, 5].iter().all(|seed| num_lines(&metrics(*seed)) > 3)
    })?;
    let rows = submitted.rows()?;
    let running: Vec<&Value> = rows
        .iter()
        .filter(|row| row["state"] == "running")
        .collect();
    let seeds: Vec<&Value> = running.iter().map(|row| &row["seed"]).collect();
    assert_eq!(seeds, [3, 5], "{rows:#?}");
    let said = say(rlhf().arg("cancel").arg(&run))?.ended(0);
    assert_eq!(said.out.lines().count(), 2, "{}", said.out);
    submitted.wait("the end", |rows| {
        rows.iter().all(|row| row["state"] != "running")
    })?;
    for seed in [3, 5] {
        let folder = run.join(format!("seed-{seed}"));
        let plan: toml::Table = fs::read_to_string(folder.join("plan.toml"))?.parse()?;
        assert_eq!(plan["seed"].as_integer(), Some(seed));
        let stage = runtime::RunFolder::at(&folder).stage("pretrain");
        let start = Instant::now();
        while stage.snapshots()?.is_empty() {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "seed {seed} has saved nothing"
            );
            sleep(Duration::from_millis(100));
        }
    }
    let of =
        |seed: u64, file: &str| fs::read(run.join(format!("seed-{seed}/corpus/final")).join(file));
    assert_ne!(
        of(3, "manifest.json")?,
        of(5, "manifest.json")?,
        "other seeds, other data"
    );
    Ok(())
}
