//! PPO with a value head on the policy's own trunk: killed and continued, and what lies in its folders.

use std::fs;
use std::path::{Path, PathBuf};

use runtime::manifest::Manifest;
use runtime::metrics::read_metrics;
use serde_json::Value;

use crate::process::{Front, num_lines, wait_until};
use crate::rollouts::Rollouts;
use crate::support::{
    Outcome, copy_of_finished_run, files_below, rlhf, rlhf_run, say, scratch, tiny,
};

const ITERATIONS: u64 = 6;

/// The tests' pipeline, whose PPO is short and has no value model of its own.
pub fn pipeline(folder: &Path) -> Outcome<PathBuf> {
    let text = fs::read_to_string(tiny())?;
    let own = "value_optimizer = { lr = 5e-4 }\n";
    assert!(
        text.contains(own),
        "the tests' pipeline has another optimizer"
    );
    let path = folder.join("pipeline.toml");
    let shared = "value_model = \"shared\"\nvf_coef = 0.5\n";
    let short = [
        ("iterations = 24", "iterations = 6"),
        ("save_every = 3", "save_every = 1"),
    ];
    let text = short
        .iter()
        .fold(text.replace(own, shared), |text, (from, to)| {
            text.replace(from, to)
        });
    fs::write(&path, text)?;
    Ok(path)
}

#[test]
fn a_run_on_one_trunk_that_is_killed_makes_the_same_bytes() -> Outcome {
    let (whole_at, killed_at) = (scratch()?, scratch()?);
    let config = pipeline(whole_at.path())?;
    let whole = copy_of_finished_run(whole_at.path())?;
    say(rlhf_run(&config, &whole).args(["--restart", "ppo"]))?.ended(0);
    check_metrics(&whole.join("ppo"))?;
    check_folders(&whole.join("ppo"))?;

    let killed = copy_of_finished_run(killed_at.path())?;
    let mut first = rlhf_run(&config, &killed);
    let front = Front::start(first.args(["--restart", "ppo"]), killed_at.path())?;
    let (metrics, done) = (
        killed.join("ppo/metrics.jsonl"),
        killed.join("ppo/done.json"),
    );
    wait_until("some iterations", || {
        Ok(!done.exists() && num_lines(&metrics) >= 4)
    })?;
    front.kill_both()?;
    assert!(!done.exists(), "it was done before");
    say(&mut rlhf_run(&config, &killed))?.ended(0);
    for part in ["final", "final-raw", "rollouts"] {
        let (ours, theirs) = (killed.join("ppo").join(part), whole.join("ppo").join(part));
        assert_eq!(files_below(&ours)?, files_below(&theirs)?);
        for file in files_below(&theirs)? {
            let same = fs::read(ours.join(&file))? == fs::read(theirs.join(&file))?;
            assert!(same, "{part}/{} is another", file.display());
        }
    }
    Ok(())
}

/// Metrics mean what they do with two models; a gradient norm of the value model there is none.
fn check_metrics(stage: &Path) -> Outcome {
    let rows = read_metrics(&stage.join("metrics.jsonl"))?;
    for iteration in 1..=ITERATIONS {
        let row = rows.iter().find(|row| row.step == iteration);
        let values = &row.ok_or(format!("no iteration {iteration}"))?.values;
        assert!(values["ppo/logprob_gap_max"] < 1e-3, "{values:?}");
        assert!(values["ppo/value_loss"] > 0.0, "{values:?}");
        assert!(!values.contains_key("ppo/value_grad_norm"), "{values:?}");
        let path = stage.join(format!("rollouts/iteration-{iteration:06}.parquet"));
        let rollouts = Rollouts::read(&path)?;
        let (values, ids) = (rollouts.lists("values"), rollouts.lists("logprobs"));
        let lengths = |lists: &[Vec<f64>]| lists.iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(lengths(&values), lengths(&ids), "a value for each token");
        // Untrained, a head of zeros says nothing.
        let is_zero = values.concat().iter().all(|value| *value == 0.0);
        assert_eq!(is_zero, iteration == 1, "values of {iteration}");
    }
    Ok(())
}

/// The value model is the policy under another head, averaged as it is, and can be read alone.
fn check_folders(stage: &Path) -> Outcome {
    let snapshot = stage.join(format!("step-{ITERATIONS:06}/training"));
    assert!(snapshot.join("policy.safetensors").exists());
    assert!(!snapshot.join("value.safetensors").exists());
    let notes = Manifest::verify(&stage.join("final"))?
        .ok_or("no manifest")?
        .notes;
    assert_eq!(notes["value"], "the policy's, under a head of its own");
    for folder in ["final", "final-raw"] {
        let (policy, value) = (stage.join(folder), stage.join(folder).join("value"));
        let paths = [&policy, &value].map(|path| path.to_string_lossy().into_owned());
        let said = say(rlhf().args(["model", "diff", &paths[0], &paths[1]]))?.ended(1);
        // Nothing but the heads is another.
        assert!(!said.out.contains("layers."), "{}", said.out);
        assert!(said.out.contains("score.weight"), "{}", said.out);
        let rows = stage.join("rows.jsonl");
        fs::write(&rows, "{\"input_ids\": [5, 70, 33, 100]}\n")?;
        let data = rows.to_string_lossy();
        let said = say(rlhf().args(["score", "--model", &paths[1], "--data", &data]))?.ended(0);
        let row: Value = serde_json::from_str(said.out.trim())?;
        assert!(row["reward"].as_f64().is_some_and(|value| value != 0.0));
    }
    Ok(())
}

#[test]
fn adapters_and_a_value_head_are_trained_on_one_trunk() -> Outcome {
    let folder = scratch()?;
    let config = pipeline(folder.path())?;
    let run = copy_of_finished_run(folder.path())?;
    let mut command = rlhf_run(&config, &run);
    command.args(["--restart", "ppo"]);
    for setting in [
        "stages.ppo.lora.r=4",
        "stages.ppo.quantize=int8",
        "stages.ppo.optimizer.lr=3e-3",
        "stages.ppo.iterations=2",
    ] {
        command.args(["--set", setting]);
    }
    say(&mut command)?.ended(0);
    let values =
        Rollouts::read(&run.join("ppo/rollouts/iteration-000002.parquet"))?.lists("values");
    assert!(values.concat().iter().any(|value| *value != 0.0));
    let adapter = |of: &str| fs::read(run.join("ppo/final").join(of).join("adapter_config.json"));
    let [policy, value] = ["adapter", "value/adapter"].map(adapter);
    let [policy, value]: [Value; 2] = [
        serde_json::from_slice(&policy?)?,
        serde_json::from_slice(&value?)?,
    ];
    assert_eq!(
        (policy["r"].as_u64(), value["r"].as_u64()),
        (Some(4), Some(4))
    );
    assert_eq!(value["task_type"], "SEQ_CLS");
    Ok(())
}
