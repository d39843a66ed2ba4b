//! Exact resume: whatever kills a run at whatever moment, the same command goes on, and what comes
//! out is byte for byte what an uninterrupted run makes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use runtime::RunFolder;
use runtime::metrics::{MetricRow, read_metrics};
use rustix::process::Signal;

use crate::process::{Front, num_lines, wait_until};
use crate::support::{
    Outcome, TRAINED, copy_of_finished_run, files_below, finished_run, rlhf_run, say, scratch, tiny,
};

/// When a run is hit.
#[derive(Debug, Clone, Copy)]
enum When {
    /// Once a stage has logged this many lines in this process, and after this share of a step.
    Lines(usize, f64),
    /// While a snapshot is being written.
    Saving,
}

/// Who is hit.
#[derive(Debug, Clone, Copy)]
enum Whom {
    Both,
    Front,
    Worker,
}

/// Several in each stage, at varying moments. In PPO a step is an iteration: sampling and scoring
/// come first, the update takes its second half.
const BLOWS: [(&str, When, Whom); 15] = [
    ("pretrain", When::Lines(4, 0.5), Whom::Both),
    ("pretrain", When::Lines(33, 0.1), Whom::Front),
    ("pretrain", When::Saving, Whom::Both),
    ("pretrain", When::Lines(27, 0.8), Whom::Worker),
    ("sft", When::Lines(3, 0.3), Whom::Both),
    ("sft", When::Lines(26, 0.6), Whom::Both),
    ("sft", When::Saving, Whom::Front),
    ("reward", When::Lines(2, 0.9), Whom::Both),
    ("reward", When::Lines(13, 0.4), Whom::Worker),
    ("reward", When::Lines(8, 0.7), Whom::Both),
    ("ppo", When::Lines(2, 0.3), Whom::Both),
    ("ppo", When::Lines(4, 0.75), Whom::Both),
    ("ppo", When::Saving, Whom::Both),
    ("ppo", When::Lines(1, 0.9), Whom::Front),
    ("ppo", When::Lines(2, 0.6), Whom::Both),
];

#[test]
fn a_run_that_is_killed_again_and_again_makes_the_same_bytes() -> Outcome {
    let expected = finished_run();
    let folder = scratch()?;
    let run = folder.path().join("run");
    for (stage, when, whom) in BLOWS {
        let front = Front::start(&mut rlhf_run(&tiny(), &run), folder.path())?;
        let landed = strike(
            front,
            &run.join(stage),
            when,
            whom,
            step_time(expected, stage)?,
        );
        landed.map_err(|error| format!("{stage}, {when:?}, {whom:?}: {error}"))?;
        assert!(
            !run.join(stage).join("done.json").exists(),
            "{stage} was done before {when:?}"
        );
    }
    say(&mut rlhf_run(&tiny(), &run))?.ended(0);
    assert_same_artefacts(&run, expected)?;
    for stage in TRAINED {
        assert_same_metrics(&run.join(stage), &expected.join(stage))?;
    }
    let left: Vec<PathBuf> = files_below(&run)?
        .into_iter()
        .filter(|file| {
            file.iter()
                .any(|part| part.to_string_lossy().starts_with('.'))
        })
        .collect();
    assert!(
        left.is_empty(),
        "what killed processes left behind is still there: {left:?}"
    );
    Ok(())
}

/// Waits for the moment, and kills.
fn strike(mut front: Front, stage: &Path, when: When, whom: Whom, step: Duration) -> Outcome {
    let metrics = stage.join("metrics.jsonl");
    let before = num_lines(&metrics);
    wait_until("the moment to kill", || {
        if !front.is_running()? {
            return Err("the run ended before".into());
        }
        Ok(match when {
            When::Lines(lines, _) => num_lines(&metrics) >= before + lines,
            When::Saving => num_lines(&metrics) > before && is_saving(stage),
        })
    })?;
    if let When::Lines(_, share) = when {
        sleep(step.mul_f64(share));
    }
    match whom {
        Whom::Both => front.kill_both()?,
        Whom::Front => {
            let lived_on = front.kill_front()?;
            assert!(
                lived_on < Duration::from_secs(5),
                "the worker lived on for {lived_on:?}"
            );
        }
        Whom::Worker => {
            let said = front.kill_worker()?.ended(1);
            said.names(&["stage `", "memory", "hint:"]);
        }
    }
    Ok(())
}

fn is_saving(stage: &Path) -> bool {
    let entries = fs::read_dir(stage).into_iter().flatten().flatten();
    entries
        .into_iter()
        .any(|entry| entry.file_name().to_string_lossy().starts_with(".step-"))
}

/// The time between two lines of a stage's metrics.
fn step_time(run: &Path, stage: &str) -> Outcome<Duration> {
    let rows = read_metrics(&run.join(stage).join("metrics.jsonl"))?;
    let times: Vec<f64> = rows
        .iter()
        .filter_map(|row| row.values.get("time/step").copied())
        .collect();
    Ok(Duration::from_secs_f64(
        times.iter().sum::<f64>() / times.len() as f64,
    ))
}

/// Every file of every artefact: weights, tokenizers, data, and the manifests that vouch for them.
fn assert_same_artefacts(run: &Path, expected: &Path) -> Outcome {
    let artefacts = |root: &Path| -> Outcome<Vec<PathBuf>> {
        let is_final = |file: &PathBuf| {
            file.iter()
                .any(|part| part == "final" || part == "final-raw" || part == "rollouts")
        };
        Ok(files_below(root)?.into_iter().filter(is_final).collect())
    };
    let files = artefacts(expected)?;
    assert_eq!(artefacts(run)?, files);
    for stage in TRAINED {
        assert!(
            files.contains(&Path::new(stage).join("final/model.safetensors")),
            "{stage}"
        );
    }
    assert!(files.contains(&PathBuf::from("ppo/final/value/model.safetensors")));
    for file in files {
        let same = fs::read(run.join(&file))? == fs::read(expected.join(&file))?;
        assert!(same, "{} is another", file.display());
    }
    Ok(())
}

/// The same curves, but for times and memory.
fn assert_same_metrics(stage: &Path, expected: &Path) -> Outcome {
    let rows = |folder: &Path| -> Outcome<Vec<(u64, BTreeMap<String, f64>)>> {
        let timeless = |(name, _): &(String, f64)| {
            let of_the_machine = ["time/", "memory/", "mfu"];
            !of_the_machine.iter().any(|start| name.starts_with(start))
                && !name.contains("_per_second")
        };
        let row = |row: MetricRow| (row.step, row.values.into_iter().filter(timeless).collect());
        Ok(read_metrics(&folder.join("metrics.jsonl"))?
            .into_iter()
            .map(row)
            .collect())
    };
    assert_eq!(rows(stage)?, rows(expected)?, "{}", stage.display());
    Ok(())
}

/// SIGTERM and SIGINT save and end; meanwhile nobody else may use the folder; `--restart` keeps what
/// was there.
#[test]
fn a_stop_saves_a_snapshot_and_the_same_command_goes_on() -> Outcome {
    let folder = scratch()?;
    let run = copy_of_finished_run(folder.path())?;
    let ppo = run.join("ppo");
    let mut command = rlhf_run(&tiny(), &run);
    let front = Front::start(command.args(["--restart", "ppo"]), folder.path())?;
    let old = run.join("ppo.old-1");
    wait_until("--restart to move the old folder", || Ok(old.exists()))?;
    assert!(old.join("final/model.safetensors").exists());
    wait_until("two iterations", || {
        Ok(num_lines(&ppo.join("metrics.jsonl")) >= 3)
    })?;

    let holder = format!("process {}", front.pid());
    let started = Instant::now();
    let run_path = run.to_string_lossy();
    let refused = say(&mut rlhf_run(&tiny(), &run))?.ended(1);
    refused.names(&["in use by", &holder, "rlhf run", &run_path, "hint:"]);
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "a live holder is not waited for"
    );

    front.signal(Signal::TERM)?;
    front
        .end()?
        .ended(130)
        .names(&["everything is saved", "rlhf run", "--run-dir"]);
    assert_saved_up_to_the_last_line(&run)?;

    let front = Front::start(&mut rlhf_run(&tiny(), &run), folder.path())?;
    let before = num_lines(&ppo.join("metrics.jsonl"));
    wait_until("an iteration", || {
        Ok(num_lines(&ppo.join("metrics.jsonl")) > before)
    })?;
    front.signal(Signal::INT)?;
    front.end()?.ended(130);
    assert_saved_up_to_the_last_line(&run)?;

    say(&mut rlhf_run(&tiny(), &run))?
        .ended(0)
        .names(&["continue at"]);
    assert_same_metrics(&ppo, &finished_run().join("ppo"))?;
    let weights = "ppo/final/model.safetensors";
    assert!(fs::read(run.join(weights))? == fs::read(finished_run().join(weights))?);
    Ok(())
}

fn assert_saved_up_to_the_last_line(run: &Path) -> Outcome {
    let stage = RunFolder::open_or_create(run)?.stage("ppo");
    let last_line = read_metrics(&stage.metrics_path())?
        .pop()
        .ok_or("no metrics")?;
    let (step, _) = stage.snapshots()?.pop().ok_or("no snapshot")?;
    assert_eq!(step, last_line.step);
    Ok(())
}

#[test]
fn what_is_done_is_skipped_and_what_changed_is_refused() -> Outcome {
    let folder = scratch()?;
    let run = copy_of_finished_run(folder.path())?;
    let state = |run: &Path| -> Outcome<Vec<(PathBuf, Vec<u8>)>> {
        let stages = TRAINED.map(PathBuf::from);
        let kept = |file: &PathBuf| stages.iter().any(|stage| file.starts_with(stage));
        let files = files_below(run)?.into_iter().filter(kept);
        files
            .map(|file| Ok((file.clone(), fs::read(run.join(file))?)))
            .collect()
    };
    let before = state(&run)?;
    let said = say(&mut rlhf_run(&tiny(), &run))?.ended(0);
    said.names(&["0 of", "done"]);

    for (setting, key, values) in [
        (
            "stages.sft.optimizer.lr=2e-3",
            "optimizer.lr",
            "0.001 -> 0.002",
        ),
        ("stages.ppo.kl.coef=0.06", "kl.coef", "0.05 -> 0.06"),
    ] {
        let stage = setting.split('.').nth(1).unwrap_or_default();
        let restart = format!("--restart {stage}");
        let said = say(rlhf_run(&tiny(), &run).args(["--set", setting]))?.ended(2);
        let said = said.names(&[&format!("`{stage}`"), key, values, "hint:", &restart]);
        assert!(said.out.is_empty(), "{}", said.out);
    }
    // What does not change the result is no change.
    for setting in ["stages.sft.save_every=7", "stages.ppo.keep=9"] {
        say(rlhf_run(&tiny(), &run).args(["--set", setting]))?.ended(0);
    }
    assert!(
        state(&run)? == before,
        "something in the run folder was changed"
    );
    Ok(())
}
