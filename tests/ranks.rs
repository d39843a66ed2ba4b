//! Several processes: they learn what one learns, and what befalls one of them ends all in words.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use runtime::metrics::read_metrics;
use rustix::process::Signal;

use crate::process::{Front, num_lines, send, wait_until};
use crate::rollouts::Rollouts;
use crate::support::{
    Outcome, TRAINED, copy_of_finished_run, files_below, rlhf, rlhf_run, say, scratch, tiny,
};

/// Short stages in f64, without what is drawn anew for each layout of a batch.
const EXACT: [&str; 11] = [
    "stages.pretrain.dtype=f64",
    "stages.sft.dtype=f64",
    "stages.comparisons.dtype=f64",
    "stages.reward.dtype=f64",
    "stages.ppo.dtype=f64",
    "stages.sft.dropout=0",
    "stages.pretrain.steps=20",
    "stages.sft.steps=20",
    "stages.reward.steps=20",
    "stages.ppo.iterations=2",
    "stages.ppo.micro_batch=1",
];

/// `rlhf launch --ranks N OPTIONS -- run CONFIG --run-dir DIR`, on the CPU.
fn launch(ranks: usize, options: &[&str], run_dir: &Path) -> Command {
    let mut command = rlhf();
    command
        .args(["launch", "--ranks", &ranks.to_string()])
        .args(options)
        .args(["--", "run"])
        .arg(tiny())
        .arg("--run-dir")
        .arg(run_dir)
        .args(["--device", "cpu"]);
    command
}

pub fn set<'a>(command: &'a mut Command, keys: &[&str]) -> &'a mut Command {
    for key in keys {
        command.args(["--set", key]);
    }
    command
}

/// What depends on neither time nor machine.
fn curve(stage: &Path) -> Outcome<Vec<(u64, String, f64)>> {
    let compared = |name: &str| {
        let family = name.split('/').next().unwrap_or_default();
        ![
            "time",
            "memory",
            "tokens_per_second",
            "episodes_per_second",
            "mfu",
        ]
        .contains(&family)
    };
    let rows = read_metrics(&stage.join("metrics.jsonl"))?;
    let numbers = rows.into_iter().flat_map(|row| {
        let values = row.values.into_iter();
        values.map(move |(name, value)| (row.step, name, value))
    });
    Ok(numbers.filter(|(_, name, _)| compared(name)).collect())
}

fn assert_same_curve(label: &str, ours: &Path, theirs: &Path, bound: f64) -> Outcome {
    let (ours, theirs) = (curve(ours)?, curve(theirs)?);
    assert!(!ours.is_empty() && ours.len() == theirs.len(), "{label}");
    for (ours, theirs) in ours.iter().zip(theirs) {
        let near = (ours.2 - theirs.2).abs() <= bound * theirs.2.abs().max(1.0);
        assert!(
            near && (ours.0, &ours.1) == (theirs.0, &theirs.1),
            "{label}: {ours:?}, not {theirs:?}"
        );
    }
    Ok(())
}

#[test]
fn every_stage_on_two_and_four_ranks_learns_what_it_learns_on_one() -> Outcome {
    let folder = scratch()?;
    let alone = folder.path().join("alone");
    say(set(&mut rlhf_run(&tiny(), &alone), &EXACT))?.ended(0);
    for (ranks, sharding) in [(2, "none"), (2, "gradients"), (4, "parameters")] {
        let run = folder.path().join(sharding);
        let keys = TRAINED.map(|stage| format!("stages.{stage}.sharding={sharding}"));
        let keys: Vec<&str> = EXACT
            .into_iter()
            .chain(keys.iter().map(String::as_str))
            .collect();
        say(set(&mut launch(ranks, &[], &run), &keys))?.ended(0);
        for stage in ["pretrain", "sft", "comparisons", "reward", "ppo"] {
            let label = format!("{stage} on {ranks} ranks, {sharding}");
            assert_same_curve(&label, &run.join(stage), &alone.join(stage), 1e-9)?;
        }
        let rollouts =
            |run: &Path| Rollouts::read(&run.join("ppo/rollouts/iteration-000002.parquet"));
        assert_eq!(
            rollouts(&run)?.ids("response_ids"),
            rollouts(&alone)?.ids("response_ids")
        );
    }
    Ok(())
}

/// Adapters on one backbone with a quantised start, and a value head on the policy's trunk: models that share weights which
/// are divided.
#[test]
fn models_that_share_weights_divide_them_once() -> Outcome {
    let folder = scratch()?;
    let adapters = [
        "stages.reward.steps=6",
        "stages.reward.eval_every=2",
        "stages.reward.optimizer.lr=1.0",
        "stages.reward.dtype=f64",
        "stages.reward.lora.r=4",
        "stages.ppo.lora.r=4",
        "stages.ppo.lora.share_backbone=true",
    ];
    let on_trunk = crate::one_trunk::pipeline(folder.path())?;
    let cases = [
        ("adapters", tiny(), &adapters[..], "reward"),
        ("trunk", on_trunk, &[], "ppo"),
    ];
    for (name, config, keys, from) in cases {
        let runs = ["alone", "divided"].map(|kind| folder.path().join(format!("{name}-{kind}")));
        for (run, ranks) in runs.iter().zip([1, 2]) {
            fs::create_dir(run)?;
            let mut command = rlhf();
            if ranks > 1 {
                command.args(["launch", "--ranks", "2", "--"]);
            }
            command
                .arg("run")
                .arg(&config)
                .args(["--device", "cpu", "--restart", from]);
            command.arg("--run-dir").arg(copy_of_finished_run(run)?);
            let ppo = [
                "stages.ppo.iterations=2",
                "stages.ppo.dtype=f64",
                "stages.ppo.micro_batch=1",
            ];
            set(set(&mut command, keys), &ppo);
            if ranks > 1 {
                let divided = [
                    "stages.reward.sharding=parameters",
                    "stages.ppo.sharding=parameters",
                ];
                set(&mut command, &divided);
            }
            say(&mut command)?.ended(0);
        }
        let [alone, divided] = runs.map(|run| run.join("run"));
        if from == "reward" {
            // An earlier step's weights were taken back.
            let selected = runtime::manifest::Manifest::read(&divided.join("reward/final"))?;
            assert!(selected.is_some_and(|manifest| manifest.step < 6));
        }
        // The reward model's steps are so large that sums of another order show.
        let bound = if from == "reward" { 1e-7 } else { 1e-9 };
        assert_same_curve(name, &divided.join("ppo"), &alone.join("ppo"), bound)?;
    }
    Ok(())
}

const PRETRAIN: [&str; 2] = ["stages.pretrain.steps=60", "stages.pretrain.save_every=10"];

pub fn pretraining(options: &[&str], run_dir: &Path) -> Command {
    let mut command = launch(2, options, run_dir);
    set(command.args(["--until", "pretrain"]), &PRETRAIN);
    command
}

pub fn wait_for_lines(run: &Path, lines: usize) -> Outcome {
    let metrics = run.join("pretrain/metrics.jsonl");
    wait_until("some steps", || Ok(num_lines(&metrics) >= lines))
}

#[test]
fn a_rank_that_is_killed_ends_all_and_the_same_command_goes_on_to_the_bit() -> Outcome {
    let folder = scratch()?;
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    say(&mut pretraining(&[], &whole))?.ended(0);
    let front = Front::start(&mut pretraining(&[], &killed), folder.path())?;
    wait_for_lines(&killed, 12)?;
    send(front.rank(1)?, Signal::KILL)?;
    let started = Instant::now();
    let said = front.end()?.ended(1);
    assert!(started.elapsed() < Duration::from_secs(10));
    said.names(&["stage `pretrain` failed", "rank 1", "SIGKILL"]);
    assert!(!killed.join("pretrain/done.json").exists());
    // The other rank's log names who is gone, and where it was itself.
    let log = fs::read_to_string(killed.join("logs/pretrain.log"))?;
    assert!(log.contains("rank 0 of 2 at step"), "{log}");
    assert!(log.contains("rank 1 was last at step"), "{log}");
    say(&mut pretraining(&[], &killed))?.ended(0);
    let last = |run: &Path| run.join("pretrain/final");
    for file in files_below(&last(&whole))? {
        let same = fs::read(last(&whole).join(&file))? == fs::read(last(&killed).join(&file))?;
        assert!(same, "{} is another", file.display());
    }
    Ok(())
}

#[test]
fn a_rank_that_hangs_is_named_within_the_time_that_is_allowed() -> Outcome {
    let folder = scratch()?;
    let run = folder.path().join("run");
    let front = Front::start(&mut pretraining(&["--timeout", "3"], &run), folder.path())?;
    wait_for_lines(&run, 3)?;
    let hung = front.rank(1)?;
    send(hung, Signal::STOP)?;
    let started = Instant::now();
    let said = front.end()?.ended(1);
    assert!(started.elapsed() < Duration::from_secs(20));
    said.names(&["rank 0 of 2 at step", "rank 1 was last at step"]);
    Ok(())
}

#[test]
fn an_interrupt_saves_on_all_ranks_and_one_goes_on_alone() -> Outcome {
    let folder = scratch()?;
    let run = folder.path().join("run");
    let sharded = ["stages.pretrain.sharding=gradients"];
    let mut command = pretraining(&[], &run);
    let front = Front::start(set(&mut command, &sharded), folder.path())?;
    wait_for_lines(&run, 3)?;
    front.signal(Signal::INT)?;
    let again = "continue with: rlhf launch --ranks 2 -- run ";
    let said = front.end()?.ended(130);
    said.names(&["everything is saved", again]);
    let snapshots = files_below(&run.join("pretrain"))?;
    let is_slice = |file: &&std::path::PathBuf| {
        file.to_string_lossy()
            .ends_with("training/model-00002-of-00002.safetensors")
    };
    assert_eq!(
        snapshots.iter().filter(is_slice).count(),
        1,
        "{snapshots:?}"
    );
    let mut alone = rlhf_run(&tiny(), &run);
    say(set(alone.args(["--until", "pretrain"]), &PRETRAIN))?
        .ended(0)
        .names(&["continue at"]);
    Ok(())
}

#[test]
fn two_machines_run_one_pipeline() -> Outcome {
    let folder = scratch()?;
    let (together, alone) = (folder.path().join("together"), folder.path().join("alone"));
    let port = std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port();
    let master = format!("127.0.0.1:{port}");
    let start = |node: &str| -> Outcome<Front> {
        let nodes = ["--nodes", "2", "--node-rank", node, "--master", &master];
        let mut command = launch(1, &nodes, &together);
        set(command.args(["--until", "sft"]), &EXACT);
        let said = folder.path().join(node);
        fs::create_dir(&said)?;
        Front::start(&mut command, &said)
    };
    let fronts = [start("1")?, start("0")?];
    for front in fronts {
        front.end()?.ended(0);
    }
    say(set(
        rlhf_run(&tiny(), &alone).args(["--until", "sft"]),
        &EXACT,
    ))?
    .ended(0);
    assert_same_curve("sft", &together.join("sft"), &alone.join("sft"), 1e-9)
}

/// The others wait for what the first machine does alone; they hear at once that it has failed.
#[test]
fn a_failure_of_the_first_machine_is_learned_by_the_others() -> Outcome {
    let folder = scratch()?;
    let run = folder.path().join("run");
    let start = |node: &str| -> Outcome<Front> {
        let nodes = [
            "--nodes",
            "2",
            "--node-rank",
            node,
            "--master",
            "127.0.0.1:9",
        ];
        let mut command = launch(1, &nodes, &run);
        set(&mut command, &["tokenizer.vocab_size=60000"]);
        let said = folder.path().join(node);
        fs::create_dir(&said)?;
        Front::start(&mut command, &said)
    };
    let second = start("1")?;
    let log = run.join("logs/rlhf-rank1.log");
    wait_until("the second machine to wait", || Ok(num_lines(&log) >= 1))?;
    let started = Instant::now();
    let cause = "the texts give only";
    start("0")?
        .end()?
        .ended(1)
        .names(&["stage `tokenizer`", cause]);
    let said = second.end()?.ended(1);
    said.names(&["the first machine", cause]);
    assert!(started.elapsed() < Duration::from_secs(60));
    Ok(())
}

#[test]
fn two_machines_with_other_configurations_refuse_each_other() -> Outcome {
    let folder = scratch()?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port();
    let master = format!("127.0.0.1:{port}");
    let start = |node: &str, batch: &str| -> Outcome<Front> {
        let run = folder.path().join("run");
        let nodes = ["--nodes", "2", "--node-rank", node, "--master", &master];
        let options = [&nodes[..], &["--join-timeout", "20"]].concat();
        let mut command = launch(1, &options, &run);
        set(command.args(["--until", "pretrain"]), &PRETRAIN);
        let said = folder.path().join(node);
        fs::create_dir(&said)?;
        Front::start(set(&mut command, &[batch]), &said)
    };
    let first = start("0", "stages.pretrain.batch=16")?;
    let second = start("1", "stages.pretrain.batch=32")?;
    // The second machine sees what the first has begun, or the two meet and compare.
    let refused = second.end()?;
    let words = [
        "begun with other settings",
        "start all ranks from the same program",
    ];
    assert!(
        words.iter().any(|word| refused.err.contains(word)),
        "{}",
        refused.err
    );
    first
        .end()?
        .ended(1)
        .names(&["stage `pretrain` failed", "rank 1"]);
    Ok(())
}

#[test]
fn what_cannot_be_launched_is_said_at_once() -> Outcome {
    let folder = scratch()?;
    let run = folder.path().join("run");
    say(&mut launch(3, &[], &run))?
        .ended(2)
        .names(&["stages.pretrain.batch 16 does not divide among 3 ranks"]);
    say(&mut launch(2, &["--nodes", "2"], &run))?
        .ended(2)
        .names(&["where is the first machine?", "--master HOST:PORT"]);
    let plan = ["launch", "--ranks", "2", "--", "plan", "x.toml"];
    say(rlhf().args(plan))?
        .ended(2)
        .names(&["only `run` runs as several processes"]);
    let mut on_a_gpu = rlhf();
    on_a_gpu
        .args(["launch", "--ranks", "2", "--", "run"])
        .arg(tiny());
    on_a_gpu.arg("--run-dir").arg(&run);
    say(on_a_gpu.env("CUDA_VISIBLE_DEVICES", "0"))?
        .ended(2)
        .names(&["CUDA_VISIBLE_DEVICES=\"0\" shows 1 GPUs to --ranks 2"]);
    let step = [
        ("SLURM_STEP_ID", "0"),
        ("SLURM_STEP_NUM_NODES", "1"),
        ("SLURM_STEP_NUM_TASKS", "2"),
    ];
    say(launch(2, &[], &run).envs(step))?.ended(2).names(&[
        "2 tasks on 1 nodes",
        "srun --ntasks-per-node=1 rlhf launch --ranks 2",
    ]);
    say(rlhf_run(&tiny(), &run).env("RANK", "0"))?
        .ended(2)
        .names(&["RANK is set, and WORLD_SIZE is not"]);
    Ok(())
}
