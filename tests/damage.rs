//! Artefacts that are damaged or do not fit, and disks that are full.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use runtime::metrics::read_metrics;
use runtime::{Manifest, RunFolder};
use serde_json::json;

use crate::support::{
    Outcome, assert_nothing_trained, copy_of_finished_run, copy_tree, files_below, finished_run,
    rlhf, rlhf_run, say, scratch, tiny,
};

/// A pipeline whose only stage labels prompts with a model from outside.
fn label_config(folder: &Path, model: &Path, overlong: &str) -> Outcome<PathBuf> {
    let config = folder.join("label.toml");
    let (model, folder) = (model.display(), folder.display());
    let text = format!(
        r#"
name = "label"

[stages.comparisons]
kind = "label"
model = "path:{model}"
prompts = "path:{folder}/prompts.jsonl"
num_prompts = 8
num_heldout = 1
responses = 2
max_prompt_tokens = 32
max_new_tokens = 4
overlong = "{overlong}"
labeler = {{ kind = "gold", rule = "vader" }}
"#
    );
    fs::write(&config, text)?;
    Ok(config)
}

fn write_prompts(folder: &Path, long: &str) -> Outcome {
    let row = |i: usize| {
        let content = if i == 77 {
            long.to_owned()
        } else {
            format!("hello {i}")
        };
        json!({"id": format!("p{i}"), "messages": [{"role": "user", "content": content}]})
    };
    let lines: Vec<String> = (0..200).map(|i| row(i).to_string()).collect();
    Ok(fs::write(folder.join("prompts.jsonl"), lines.join("\n"))?)
}

#[test]
fn a_prompt_longer_than_the_limit_is_an_error_that_names_it_unless_dropping_is_asked_for() -> Outcome
{
    let folder = scratch()?;
    let model = finished_run().join("sft/final");
    write_prompts(folder.path(), &"a long story ".repeat(40))?;
    let run = folder.path().join("run");
    let config = label_config(folder.path(), &model, "error")?;
    let said = say(&mut rlhf_run(&config, &run))?;
    assert!(matches!(said.code, Some(1 | 2)), "{said:?}");
    said.names(&[
        "`p77`",
        "tokens",
        "32",
        "max_prompt_tokens",
        "hint: ",
        "overlong",
    ]);
    assert!(!run.join("comparisons/final").exists());

    let config = label_config(folder.path(), &model, "drop")?;
    say(&mut rlhf_run(&config, &folder.path().join("another-run")))?.ended(0);
    Ok(())
}

/// Changes one bit in the middle of a file.
fn flip_a_bit(path: &Path) -> Outcome {
    let mut bytes = fs::read(path)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    Ok(fs::write(path, bytes)?)
}

#[test]
fn a_checkpoint_with_a_flipped_bit_is_refused() -> Outcome {
    let folder = scratch()?;
    let model = folder.path().join("model");
    copy_tree(&finished_run().join("sft/final"), &model)?;
    flip_a_bit(&model.join("model.safetensors"))?;
    let damaged = model.join("model.safetensors");
    let words = [&damaged.to_string_lossy()[..], "sha256", "hint: "];

    // From outside: before anything starts.
    write_prompts(folder.path(), "hi")?;
    let config = label_config(folder.path(), &model, "error")?;
    let run = folder.path().join("outside");
    say(&mut rlhf_run(&config, &run))?.ended(2).names(&words);
    assert_nothing_trained(&run);
    let mut generate = rlhf();
    generate
        .arg("generate")
        .arg("--model")
        .arg(&model)
        .args(["--prompt", "hi"]);
    let said = say(&mut generate)?.ended(1).names(&words);
    assert!(said.out.is_empty(), "{}", said.out);

    // Inside a run: by the stage that reads it, before it trains.
    let run = copy_of_finished_run(folder.path())?;
    let damaged = run.join("sft/final/model.safetensors");
    flip_a_bit(&damaged)?;
    let said = say(rlhf_run(&tiny(), &run).args(["--restart", "ppo"]))?;
    assert!(matches!(said.code, Some(1 | 2)), "{said:?}");
    said.names(&[&damaged.to_string_lossy(), "sha256", "hint: "]);
    assert!(
        !run.join("ppo/metrics.jsonl").exists(),
        "PPO ran on a damaged model"
    );
    Ok(())
}

#[test]
fn a_snapshot_with_a_flipped_bit_is_refused_and_nothing_starts_over_in_silence() -> Outcome {
    let folder = scratch()?;
    let run = copy_of_finished_run(folder.path())?;
    fs::remove_file(run.join("reward/done.json"))?;
    fs::remove_dir_all(run.join("reward/final"))?;
    let stage = RunFolder::open_or_create(&run)?.stage("reward");
    let (_, snapshot) = stage.snapshots()?.pop().ok_or("no snapshot")?;
    let damaged = snapshot.join("training/model.safetensors");
    flip_a_bit(&damaged)?;
    let lines = fs::read(stage.metrics_path())?;
    let said = say(rlhf_run(&tiny(), &run).args(["--only", "reward"]))?.ended(1);
    said.names(&[
        "stage `reward`",
        &damaged.to_string_lossy(),
        "sha256",
        "hint: ",
    ]);
    assert!(
        fs::read(stage.metrics_path())? == lines,
        "the stage started over"
    );
    Ok(())
}

/// `rlhf run` in a shell where no file grows beyond some KiB: writing fails there as on a full disk,
/// with an error of the system.
fn on_a_small_disk(run: &Command, kib: u64) -> Command {
    let mut shell = Command::new("sh");
    // dash counts blocks of 512 bytes. An ignored signal stays ignored in what is started.
    let limits = format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", kib * 2);
    shell
        .args(["-c", &limits, "sh"])
        .arg(run.get_program())
        .args(run.get_args());
    if let Some(folder) = run.get_current_dir() {
        shell.current_dir(folder);
    }
    shell
}

#[test]
fn a_disk_that_is_full_while_saving_costs_nothing_but_the_new_snapshot() -> Outcome {
    let folder = scratch()?;
    let run = copy_of_finished_run(folder.path())?;
    // Back to the first snapshot that is left of reward modelling.
    fs::remove_file(run.join("reward/done.json"))?;
    fs::remove_dir_all(run.join("reward/final"))?;
    let stage = RunFolder::open_or_create(&run)?.stage("reward");
    let mut snapshots = stage.snapshots()?;
    let (step, first) = snapshots.remove(0);
    for (_, later) in &snapshots {
        fs::remove_dir_all(later)?;
    }
    assert!(
        !snapshots.is_empty() && step < 40,
        "there is something left to do after {step}"
    );
    let largest = fs::metadata(first.join("training/model.safetensors"))?.len();
    let lines = read_metrics(&stage.metrics_path())?.len();

    let mut command = rlhf_run(&tiny(), &run);
    command.args(["--only", "reward"]);
    let said = say(&mut on_a_small_disk(&command, largest / 1024 / 2))?.ended(1);
    said.names(&[
        "stage `reward` failed",
        "cannot write",
        &stage.root().to_string_lossy(),
    ]);
    let (survivor, path) = stage.snapshots()?.pop().ok_or("the snapshot is gone")?;
    assert_eq!((survivor, &path), (step, &first));
    assert!(Manifest::verify(&first)?.is_some(), "it is whole");
    let is_partial = |file: &PathBuf| file.to_string_lossy().contains(".partial-");
    assert!(
        !files_below(stage.root())?.iter().any(is_partial),
        "half a snapshot is left behind"
    );

    say(&mut command)?
        .ended(0)
        .names(&[&format!("continue at {step}")]);
    assert_eq!(read_metrics(&stage.metrics_path())?.len(), lines);
    let weights = "reward/final/model.safetensors";
    assert!(fs::read(run.join(weights))? == fs::read(finished_run().join(weights))?);
    Ok(())
}
