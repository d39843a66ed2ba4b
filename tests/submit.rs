//! Submitting where Slurm's commands are stand-ins: what they are asked, and what becomes of their answers.

use std::fs::{self, File};
use std::path::Path;

use serde_json::Value;

use crate::process::{Front, num_lines, wait_until};
use crate::stand_ins::Cluster;
use crate::support::{Outcome, copy_of_finished_run, files_below, rlhf, say, tiny};

const CHAIN: [&str; 8] = [
    "sbatch --parsable RUN/cluster/cluster.sbatch",
    "sbatch --parsable --dependency=afterok:101 RUN/cluster/corpus.sbatch",
    "sbatch --parsable --dependency=afterok:102 RUN/cluster/tokenizer.sbatch",
    "sbatch --parsable --dependency=afterok:102:103 RUN/cluster/pretrain.sbatch",
    "sbatch --parsable --dependency=afterok:102:104 RUN/cluster/sft.sbatch",
    "sbatch --parsable --dependency=afterok:102:105 RUN/cluster/comparisons.sbatch",
    "sbatch --parsable --dependency=afterok:106:102:105 RUN/cluster/reward.sbatch",
    "sbatch --parsable --dependency=afterok:102:107:105 RUN/cluster/ppo.sbatch",
];

#[test]
fn each_stage_is_a_job_that_waits_for_those_it_needs() -> Outcome {
    let cluster = Cluster::new()?;
    let said = say(cluster
        .command(&["plan"])
        .arg(cluster.file("pipeline.toml")))?
    .ended(0);
    let job = "2 nodes x 2 ranks, 0 GPUs each, partition main, time 60\n";
    assert!(said.out.contains(job), "{}", said.out);
    let said = cluster.submit(&["--device", "cpu"])?.ended(0);
    assert_eq!(cluster.asked()?, CHAIN);
    assert!(
        said.out.contains("ppo  job 108  after corpus, reward, sft"),
        "{}",
        said.out
    );
    let run = cluster.run();
    for file in [
        "plan.toml",
        "cluster/plan.toml",
        "cluster/pipeline.toml",
        "cluster/token",
    ] {
        assert!(run.join(file).is_file(), "{file}");
    }
    let script = fs::read_to_string(run.join("cluster/ppo.sbatch"))?;
    let program = fs::canonicalize(env!("CARGO_BIN_EXE_rlhf"))?;
    for words in [
        "#SBATCH --nodes=2\n",
        "#SBATCH --partition=main\n",
        "#SBATCH --time=60\n",
        &format!("{} launch --ranks 2", program.display()),
        "--only ppo --run-dir \"$run\" --device cpu",
    ] {
        assert!(script.contains(words), "{words}\n{script}");
    }
    let script = fs::read_to_string(run.join("cluster/corpus.sbatch"))?;
    assert!(
        script.contains("--nodes=1\n") && script.contains("launch --ranks 1 "),
        "{script}"
    );
    Ok(())
}

#[test]
fn a_dry_run_prints_the_scripts_and_writes_nothing() -> Outcome {
    let cluster = Cluster::new()?;
    fs::remove_dir_all(cluster.file("bin"))?;
    let said = cluster.submit(&["--dry-run", "--until", "sft"])?.ended(0);
    assert!(!cluster.run().exists());
    let headings: Vec<&str> = said
        .out
        .lines()
        .filter(|line| line.starts_with("### "))
        .collect();
    let root = cluster.run();
    let script = |stage: &str| format!("{}/cluster/{stage}.sbatch", root.display());
    let expected = [
        format!("### sbatch --parsable {}", script("cluster")),
        format!(
            "### sbatch --parsable --dependency=afterok:<cluster> {}",
            script("corpus")
        ),
        format!(
            "### sbatch --parsable --dependency=afterok:<corpus> {}",
            script("tokenizer")
        ),
        format!(
            "### sbatch --parsable --dependency=afterok:<corpus>:<tokenizer> {}",
            script("pretrain")
        ),
        format!(
            "### sbatch --parsable --dependency=afterok:<corpus>:<pretrain> {}",
            script("sft")
        ),
    ];
    assert_eq!(headings, expected);
    Ok(())
}

#[test]
fn what_is_in_the_queue_stays_and_what_failed_gets_a_new_job() -> Outcome {
    let cluster = Cluster::new()?;
    cluster.submit(&[])?.ended(0);
    cluster.asked()?;
    let ids: Vec<String> = (101..=108).map(|id| id.to_string()).collect();
    let all = |state: &str| -> Vec<(String, String)> {
        ids.iter()
            .map(|id| (id.clone(), state.to_owned()))
            .collect()
    };
    let pending = all("PENDING");
    let pending: Vec<(&str, &str, &str)> = pending
        .iter()
        .map(|(id, state)| (id.as_str(), state.as_str(), "Dependency"))
        .collect();
    cluster.queue(&pending)?;
    cluster
        .submit(&[])?
        .ended(0)
        .names(&["nothing to submit", "ppo  stays in the queue as job 108"]);
    assert!(cluster.asked()?.is_empty(), "submitted once");
    // Other settings beside jobs that wait: refused.
    cluster
        .submit(&["--set", "stages.sft.steps=7"])?
        .ended(2)
        .names(&[
            "jobs in the queue",
            "other settings",
            "sft (job 105)",
            "rlhf cancel",
        ]);
    assert!(cluster.asked()?.is_empty());
    // The reward model failed: it and what waits for it in vain.
    let mut queue = pending;
    queue[6] = ("107", "FAILED", "NonZeroExitCode");
    queue[7] = ("108", "PENDING", "DependencyNeverSatisfied");
    cluster.queue(&queue)?;
    cluster.submit(&[])?.ended(0);
    let expected = [
        "scancel 108",
        "sbatch --parsable RUN/cluster/cluster.sbatch",
        "sbatch --parsable --dependency=afterok:106:102:105 RUN/cluster/reward.sbatch",
        "sbatch --parsable --dependency=afterok:102:110:105 RUN/cluster/ppo.sbatch",
    ];
    assert_eq!(cluster.asked()?, expected);
    let record = cluster.record()?;
    let jobs = record["jobs"].as_array().ok_or("no jobs")?;
    assert_eq!(jobs.len(), 8, "the last of each stage: {record}");
    Ok(())
}

#[test]
fn two_at_the_same_time_submit_once() -> Outcome {
    let cluster = Cluster::new()?;
    fs::write(cluster.file("bin/wait"), "")?;
    let mut first = cluster.command(&["submit", "--to", "slurm", "--run-dir"]);
    first.arg(cluster.run()).arg(cluster.file("pipeline.toml"));
    let first = Front::start(&mut first, cluster.folder.path())?;
    let asked = cluster.file("bin/asked");
    wait_until("the first to submit", || Ok(num_lines(&asked) == 1))?;
    cluster
        .submit(&[])?
        .ended(1)
        .names(&["is in use by process"]);
    fs::remove_file(cluster.file("bin/wait"))?;
    first.end()?.ended(0);
    assert_eq!(cluster.asked()?, CHAIN);
    Ok(())
}

#[test]
fn after_a_refusal_nothing_is_left() -> Outcome {
    let cluster = Cluster::new()?;
    fs::write(cluster.file("bin/refuse"), "pretrain")?;
    let said = cluster.submit(&[])?.ended(2);
    said.names(&[
        "stage `pretrain`",
        "invalid partition specified: nope",
        "cancelled what was submitted before: 101, 102, 103",
    ]);
    let asked = cluster.asked()?;
    assert_eq!(
        asked.last().map(String::as_str),
        Some("scancel 101 102 103")
    );
    assert!(
        cluster.record()?["jobs"]
            .as_array()
            .is_some_and(Vec::is_empty)
    );
    fs::remove_file(cluster.file("bin/refuse"))?;
    cluster.submit(&[])?.ended(0);
    assert_eq!(cluster.asked()?.len(), CHAIN.len());
    Ok(())
}

#[test]
fn seeds_are_arrays_and_a_seed_that_is_ahead_has_arrays_of_its_own() -> Outcome {
    let cluster = Cluster::new()?;
    let seeds = ["--seeds", "1-3", "--until", "tokenizer"];
    cluster.submit(&seeds)?.ended(0);
    let expected = [
        "sbatch --parsable RUN/cluster/cluster.sbatch",
        "sbatch --parsable --dependency=afterok:101 --array=1,2,3 RUN/cluster/corpus.sbatch",
        "sbatch --parsable --dependency=aftercorr:102 --array=1,2,3 RUN/cluster/tokenizer.sbatch",
    ];
    assert_eq!(cluster.asked()?, expected);
    for seed in 1..=3 {
        let plan =
            fs::read_to_string(cluster.run().join(format!("seed-{seed}/cluster/plan.toml")))?;
        assert!(plan.contains(&format!("\nseed = {seed}\n")), "{plan}");
    }
    // Seed 2 has its corpus; the others failed.
    cluster.queue(&[
        ("102_1", "FAILED", "None"),
        ("102_2", "RUNNING", "None"),
        ("102_3", "FAILED", "None"),
        ("103_2", "PENDING", "Dependency"),
    ])?;
    cluster
        .submit(&seeds)?
        .ended(0)
        .names(&["corpus of seeds 2  stays in the queue as job 102"]);
    let expected = [
        "sbatch --parsable RUN/cluster/cluster.sbatch",
        "sbatch --parsable --dependency=afterok:104 --array=1,3 RUN/cluster/corpus.sbatch",
        "sbatch --parsable --dependency=aftercorr:105 --array=1,3 RUN/cluster/tokenizer.sbatch",
    ];
    assert_eq!(cluster.asked()?, expected);
    Ok(())
}

#[test]
fn what_is_done_is_not_submitted_and_a_restart_moves_it_aside() -> Outcome {
    let cluster = Cluster::new()?;
    copy_of_finished_run(cluster.folder.path())?;
    let keep = ["--set", "stages.ppo.keep=99"];
    cluster
        .submit(&keep)?
        .ended(0)
        .names(&["ppo  is done", "nothing to submit"]);
    assert!(cluster.asked()?.is_empty());
    cluster.submit(&["--restart", "ppo"])?.ended(0);
    assert_eq!(
        cluster.asked()?[1],
        "sbatch --parsable --dependency=afterok:101 RUN/cluster/ppo.sbatch"
    );
    assert!(cluster.run().join("ppo.old-1").is_dir());
    // What changed under what is done is refused, as `rlhf run` does.
    cluster
        .submit(&["--set", "stages.sft.steps=7"])?
        .ended(2)
        .names(&["stage `sft` was begun with other settings", "--restart sft"]);
    Ok(())
}

/// Somebody's lock of a stage, as a process that runs it has it.
fn locked(run: &Path, stage: &str) -> Outcome<File> {
    fs::create_dir_all(run.join(stage))?;
    let lock = File::create(run.join(stage).join("lock"))?;
    lock.lock()?;
    Ok(lock)
}

#[test]
fn a_stage_that_somebody_runs_keeps_its_folder_and_its_plan() -> Outcome {
    let cluster = Cluster::new()?;
    let run = copy_of_finished_run(cluster.folder.path())?;
    assert_eq!(run, cluster.run());
    let plan = fs::read(run.join("plan.toml"))?;
    let lock = locked(&run, "ppo")?;
    cluster
        .submit(&["--restart", "reward"])?
        .ended(1)
        .names(&["run/ppo is in use by"]);
    assert!(!run.join("reward.old-1").exists() && run.join("ppo/final").is_dir());
    // Another stage with settings that would be another plan for the one that runs; the same in both is no matter.
    let keys = ["--set", "stages.ppo.iterations=3"];
    let mut other = rlhf();
    other.args(["run", "--only", "tokenizer", "--device", "cpu", "--run-dir"]);
    other.arg(&run).arg(tiny()).args(keys);
    say(&mut other)?.ended(2).names(&[
        "stage `ppo` is being run in",
        "with other settings",
        "hint: ",
    ]);
    assert_eq!(fs::read(run.join("plan.toml"))?, plan);
    drop(lock);
    say(&mut other)?.ended(0);
    assert_ne!(fs::read(run.join("plan.toml"))?, plan);
    assert!(cluster.asked()?.is_empty());
    Ok(())
}

#[test]
fn the_job_does_what_run_would_and_run_finds_it_done() -> Outcome {
    let cluster = Cluster::new()?;
    cluster.submit(&["--device", "cpu"])?.ended(0);
    let run = cluster.run();
    let mut job = rlhf();
    job.args(["launch", "--ranks", "1", "--", "run"]);
    job.arg(run.join("cluster/plan.toml"))
        .args(["--only", "corpus", "--run-dir"])
        .arg(&run);
    say(&mut job)?.ended(0);
    let mut command = rlhf();
    command
        .arg("run")
        .arg(cluster.file("pipeline.toml"))
        .args(["--until", "corpus", "--run-dir"]);
    let said = say(command.arg(&run))?.ended(0);
    assert!(said.err.contains("0 of 7 stages to run"), "{}", said.err);
    let mut command = rlhf();
    command
        .arg("run")
        .arg(run.join("plan.toml"))
        .args(["--set", "seed=2"]);
    say(&mut command)?
        .ended(2)
        .names(&["--set seed", "is a plan"]);
    Ok(())
}

#[test]
fn status_shows_the_queue_or_without_slurm_the_run_folder() -> Outcome {
    let cluster = Cluster::new()?;
    cluster
        .status()?
        .ended(2)
        .names(&["nothing was submitted from there"]);
    cluster.submit(&[])?.ended(0);
    fs::write(
        cluster.run().join("logs/slurm-cluster-101.log"),
        "WRONG  gpus  0, and 8 are wanted\nerror: 1 thing\n",
    )?;
    cluster.queue(&[
        ("101", "FAILED", "NonZeroExitCode"),
        ("102", "PENDING", "DependencyNeverSatisfied"),
        ("108", "PENDING", "Dependency"),
    ])?;
    let said = cluster.status()?.ended(0);
    for words in [
        "    gpus 0, and 8 are wanted\n",
        "    not started: cluster failed: gpus 0, and 8 are wanted (DependencyNeverSatisfied)\n",
    ] {
        assert!(said.out.contains(words), "{words}\n{}", said.out);
    }
    let mut json = cluster.command(&["status", "--json"]);
    let said = say(json.arg(cluster.run()))?.ended(0);
    let shown: Value = serde_json::from_str(&said.out)?;
    assert_eq!(shown["jobs"][1]["state"], "pending");
    let said = say(cluster.command(&["cancel"]).arg(cluster.run()))?.ended(0);
    assert!(
        said.out.contains("ppo  job 108 is cancelled"),
        "{}",
        said.out
    );
    let asked = cluster.asked()?;
    assert_eq!(asked.last().map(String::as_str), Some("scancel 102 108"));
    // Nobody knows the jobs: the folder alone speaks.
    fs::remove_dir_all(cluster.file("bin"))?;
    let said = cluster.status()?.ended(0).names(&["squeue is not there"]);
    assert!(said.out.contains("unknown"), "{}", said.out);
    cluster
        .submit(&[])?
        .ended(2)
        .names(&["sbatch is not there", "login node"]);
    Ok(())
}

#[test]
fn submitting_needs_a_cluster_in_the_file_and_batches_that_divide() -> Outcome {
    let cluster = Cluster::new()?;
    let mut command = cluster.command(&["submit", "--to", "slurm", "--run-dir"]);
    say(command.arg(cluster.run()).arg(tiny()))?
        .ended(2)
        .names(&["has no table [cluster.slurm]", "hint: "]);
    cluster
        .submit(&["--set", "cluster.slurm.nodes=3"])?
        .ended(2)
        .names(&["does not divide among 6 ranks"]);
    assert!(!cluster.run().exists() || files_below(Path::new(&cluster.run()))?.is_empty());
    Ok(())
}
