//! A pipeline of adapters: SFT, a reward model and PPO on one backbone, killed and continued; what lies in
//! its folders, and the commands that read it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use runtime::manifest::Manifest;
use runtime::metrics::read_metrics;
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Front, num_lines, wait_until};
use crate::support::{
    Outcome, copy_of_finished_run, files_below, rlhf, rlhf_run, say, scratch, tiny,
};

/// What makes the tests' pipeline one of adapters, and short.
const SETTINGS: [&str; 12] = [
    "stages.sft.lora.r=4",
    "stages.sft.lora.target_modules=[\"q\", \"v\"]",
    "stages.sft.steps=30",
    "stages.sft.eval_every=15",
    "stages.reward.lora.r=4",
    "stages.reward.lora.dropout=0.1",
    "stages.reward.steps=20",
    "stages.ppo.lora.share_backbone=true",
    "stages.ppo.optimizer.lr=3e-3",
    "stages.ppo.iterations=6",
    "stages.ppo.eval_every=6",
    "stages.ppo.save_every=1",
];

/// What puts the weights under those adapters into few bits.
const FEW_BITS: [&str; 3] = [
    "stages.sft.quantize=int4",
    "stages.reward.quantize=int8",
    "stages.ppo.quantize=int4",
];

fn adapted(run: &Path, more: &[&str]) -> Command {
    let mut command = rlhf_run(&tiny(), run);
    for setting in SETTINGS.iter().chain(more) {
        command.args(["--set", setting]);
    }
    command
}

fn finished(more: &[&str]) -> Outcome<(TempDir, PathBuf)> {
    let folder = scratch()?;
    let run = copy_of_finished_run(folder.path())?;
    say(adapted(&run, more).args(["--restart", "sft"]))?.ended(0);
    Ok((folder, run))
}

/// A finished run of adapters on the tiny pipeline's base model. Nobody changes it.
fn adapted_run() -> &'static Path {
    static RUN: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    &RUN.get_or_init(|| finished(&[]).expect("a run of adapters"))
        .1
}

/// The same on weights of few bits.
fn quantized_run() -> &'static Path {
    static RUN: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    &RUN.get_or_init(|| finished(&FEW_BITS).expect("a run of adapters on few bits"))
        .1
}

#[test]
fn a_run_of_adapters_that_is_killed_makes_the_same_bytes() -> Outcome {
    let kills = [("sft", 7), ("reward", 4), ("ppo", 3)];
    killed_makes_the_same(adapted_run(), &[], &kills)
}

#[test]
fn a_run_of_adapters_on_few_bits_that_is_killed_makes_the_same_bytes() -> Outcome {
    killed_makes_the_same(quantized_run(), &FEW_BITS, &[("reward", 4), ("ppo", 3)])
}

/// Kills a run once in each stage of `kills`, when its metrics have so many lines.
fn killed_makes_the_same(expected: &Path, more: &[&str], kills: &[(&str, usize)]) -> Outcome {
    let folder = scratch()?;
    let run = copy_of_finished_run(folder.path())?;
    for (index, (stage, lines)) in kills.iter().enumerate() {
        let metrics = run.join(stage).join("metrics.jsonl");
        let mut command = adapted(&run, more);
        if index == 0 {
            command.args(["--restart", "sft"]);
        }
        let front = Front::start(&mut command, folder.path())?;
        let running = run.join(stage).join("done.json");
        wait_until("some steps", || {
            Ok(!running.exists() && num_lines(&metrics) >= *lines)
        })?;
        front.kill_both()?;
        assert!(!running.exists(), "{stage} was done before");
    }
    say(&mut adapted(&run, more))?.ended(0);
    for stage in ["sft", "reward", "ppo"] {
        for part in ["final", "final-raw", "rollouts"] {
            let (ours, theirs) = (run.join(stage).join(part), expected.join(stage).join(part));
            if !theirs.exists() {
                continue;
            }
            assert_eq!(files_below(&ours)?, files_below(&theirs)?);
            for file in files_below(&theirs)? {
                let same = fs::read(ours.join(&file))? == fs::read(theirs.join(&file))?;
                assert!(same, "{stage}/{part}/{} is another", file.display());
            }
        }
    }
    Ok(())
}

#[test]
fn ppo_starts_at_its_reference_and_agrees_with_what_it_sampled() -> Outcome {
    for run in [adapted_run(), quantized_run()] {
        starts_at_its_reference(run)?;
    }
    Ok(())
}

fn starts_at_its_reference(run: &Path) -> Outcome {
    let rows = read_metrics(&run.join("ppo/metrics.jsonl"))?;
    let at = |step: u64, name: &str| -> Outcome<f64> {
        let row = rows
            .iter()
            .find(|row| row.step == step && row.values.contains_key(name));
        Ok(row.ok_or(format!("no {name} at {step}"))?.values[name])
    };
    let first = at(1, "objective/kl")?;
    assert!(
        first.abs() < 1e-4,
        "the first rollouts are {first} nats away"
    );
    let last = at(6, "objective/kl")?;
    assert!(
        last.abs() > 10.0 * first.abs(),
        "nothing was learned: {first} {last}"
    );
    for step in 1..=6 {
        let gap = at(step, "ppo/logprob_gap_max")?;
        assert!(gap < 1e-3, "iteration {step}: {gap}");
    }
    Ok(())
}

/// The numbers that `rlhf score` prints of some rows.
fn scores(arguments: &[&str], key: &str) -> Outcome<Vec<f64>> {
    let folder = scratch()?;
    let data = folder.path().join("rows.jsonl");
    fs::write(
        &data,
        "{\"input_ids\": [5, 70, 33, 100]}\n{\"input_ids\": [9, 260]}\n",
    )?;
    let data = data.to_string_lossy();
    let said = say(rlhf().arg("score").args(arguments).args(["--data", &data]))?.ended(0);
    let mut numbers = Vec::new();
    for line in said.out.lines() {
        let row: Value = serde_json::from_str(line)?;
        match &row[key] {
            Value::Array(items) => numbers.extend(items.iter().filter_map(Value::as_f64)),
            single => numbers.extend(single.as_f64()),
        }
    }
    assert!(numbers.len() > 1, "{}", said.out);
    Ok(numbers)
}

#[track_caller]
fn assert_near(ours: &[f64], theirs: &[f64]) {
    assert_eq!(ours.len(), theirs.len());
    for (one, other) in ours.iter().zip(theirs) {
        assert!((one - other).abs() < 1e-4, "{one} and {other}");
    }
}

#[test]
fn final_is_the_adapters_merged_into_what_they_stand_on() -> Outcome {
    let run = adapted_run();
    let path = |name: &str| run.join(name).to_string_lossy().into_owned();
    let sft = path("sft/final");
    for (folder, base, key) in [
        ("sft/final", "pretrain/final", "logprobs"),
        ("ppo/final", "sft/final", "logprobs"),
        ("reward/final", "sft/final", "reward_normalized"),
    ] {
        let (model, base) = (path(folder), path(base));
        let adapter = path(&format!("{folder}/adapter"));
        let notes = Manifest::verify(Path::new(&model))?
            .ok_or("no manifest")?
            .notes;
        assert_eq!(notes["adapter"], "adapter", "{folder}");
        let merged = scores(&["--model", &model], key)?;
        assert_near(
            &scores(&["--model", &base, "--adapter", &adapter], key)?,
            &merged,
        );
    }
    let value = run.join("ppo/final/value/adapter/adapter_config.json");
    let value: Value = serde_json::from_str(&fs::read_to_string(value)?)?;
    // On a shared backbone the value model stands where the reward model does, with its rank.
    assert_eq!(value["base_model_name_or_path"], "sft/final");
    assert_eq!(
        (value["r"].as_u64(), value["task_type"].as_str()),
        (Some(4), Some("SEQ_CLS"))
    );

    let folder = scratch()?;
    let out = folder.path().join("merged").to_string_lossy().into_owned();
    let adapter = path("ppo/final/adapter");
    let merge = [
        "model",
        "merge",
        "--model",
        &sft,
        "--adapter",
        &adapter,
        "--out",
        &out,
    ];
    say(rlhf().args(merge))?.ended(0);
    let said = say(rlhf().args(["model", "diff", &out, &path("ppo/final")]))?.ended(0);
    assert!(said.out.starts_with("equal: "), "{}", said.out);
    say(rlhf().args(merge))?
        .ended(2)
        .names(&["is there already", "hint:"]);
    let shown = say(rlhf().args(["model", "show", &out]))?.ended(0);
    assert!(shown.out.contains("merge"), "{}", shown.out);

    // Nothing but the chosen matrices has moved.
    let said = say(rlhf().args(["model", "diff", &path("pretrain/final"), &sft]))?.ended(1);
    let moved: Vec<&str> = said
        .out
        .lines()
        .filter(|line| line.starts_with("numbers"))
        .collect();
    assert!(!moved.is_empty(), "{}", said.out);
    for line in moved {
        assert!(
            line.contains(".q_proj") || line.contains(".v_proj"),
            "{line}"
        );
    }
    Ok(())
}

#[test]
fn adapters_on_few_bits_are_merged_into_the_weights_as_they_were() -> Outcome {
    let run = quantized_run();
    let path = |name: &str| run.join(name).to_string_lossy().into_owned();
    for (base, folder) in [("pretrain/final", "sft/final"), ("sft/final", "ppo/final")] {
        let scratch = scratch()?;
        let out = scratch.path().join("merged").to_string_lossy().into_owned();
        let (base, model) = (path(base), path(folder));
        let adapter = path(&format!("{folder}/adapter"));
        let merge = [
            "model",
            "merge",
            "--model",
            &base,
            "--adapter",
            &adapter,
            "--out",
            &out,
        ];
        say(rlhf().args(merge))?.ended(0);
        let said = say(rlhf().args(["model", "diff", &out, &model]))?.ended(0);
        assert!(said.out.starts_with("equal: "), "{}", said.out);

        let on_codes = [
            "--model",
            &base,
            "--adapter",
            &adapter,
            "--quantize",
            "int4",
        ];
        let on_codes = scores(&on_codes, "logprobs")?;
        let merged = scores(&["--model", &model], "logprobs")?;
        let gaps = on_codes.iter().zip(&merged).map(|(a, b)| (a - b).abs());
        let gap = gaps.fold(0.0, f64::max);
        assert!(1e-4 < gap && gap < 2.0, "{folder}: {gap}");
    }
    let said = say(rlhf()
        .arg("plan")
        .arg(tiny())
        .args(["--set", "stages.sft.quantize=int4"]))?;
    said.ended(2)
        .names(&["stages.sft.quantize: needs lora", "hint: add lora = "]);
    Ok(())
}

#[test]
fn an_adapter_that_is_none_is_refused_before_anything_starts() -> Outcome {
    let run = adapted_run();
    let sft = run.join("sft/final").to_string_lossy().into_owned();
    let generate = [
        "generate",
        "--model",
        &sft,
        "--prompt",
        "x",
        "--adapter",
        &sft,
    ];
    say(rlhf().args(generate))?.ended(2).names(&[
        "--adapter",
        "has no adapter_config.json",
        "hint:",
    ]);
    let adapter = run.join("ppo/final/adapter").to_string_lossy().into_owned();
    say(rlhf().args(["chat", "--model", &adapter]))?
        .ended(2)
        .names(&["has no config.json", "with --adapter"]);
    let sampled = say(rlhf().args([
        "generate",
        "--model",
        &sft,
        "--prompt",
        "Hello",
        "--max-new-tokens",
        "4",
        "--adapter",
        &adapter,
    ]))?;
    sampled.ended(0);
    Ok(())
}
