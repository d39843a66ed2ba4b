//! `rlhf eval`: what it measures of a finished run, what it keeps, and what it refuses.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::{Outcome, copy_of_finished_run, rlhf, say, scratch};

fn eval(run: &Path, more: &[&str]) -> Command {
    let mut command = rlhf();
    command.arg("eval").arg(run).args(["--samples", "24"]);
    command.args(more);
    command
}

fn findings(run: &Path) -> Outcome<Value> {
    Ok(serde_json::from_str(&fs::read_to_string(
        run.join("ppo/eval.json"),
    )?)?)
}

/// A number that was measured of a model.
fn measured(findings: &Value, model: &str, key: &str) -> Outcome<f64> {
    let number = findings["models"][model][key].as_f64();
    Ok(number.ok_or(format!("{model}.{key} is no number: {findings}"))?)
}

#[test]
fn it_compares_base_sft_and_policy_on_the_same_prompts() -> Outcome {
    let folder = scratch()?;
    let run = copy_of_finished_run(folder.path())?;
    let said = say(&mut eval(&run, &["--show", "2"]))?.ended(0);
    assert_eq!(said.out.matches("\n  user  ").count(), 2, "{}", said.out);
    for part in ["24 held-out prompts", "KL to SFT at most 8 nats", "gold: "] {
        assert!(said.out.contains(part), "{part} is not in\n{}", said.out);
    }
    let found = findings(&run)?;
    let of = |model: &str, key: &str| measured(&found, model, key);
    for model in ["base", "sft", "ppo"] {
        assert_eq!(found["models"][model]["samples"], 24);
        assert!(of(model, "gold")?.abs() <= 1.0 && of(model, "gold_se")? > 0.0);
        assert!((1.0..=16.0).contains(&of(model, "length")?), "{found}");
        assert!(of(model, "base_perplexity")? > 1.0 && of(model, "pretraining_loss")? > 0.0);
        for share in [
            "eos_rate",
            "distinct_2",
            "repeated_trigrams",
            "most_frequent_share",
            "true_prompt_preferred",
        ] {
            assert!((0.0..=1.0).contains(&of(model, share)?), "{share}: {found}");
        }
    }
    assert!(of("sft", "kl")?.abs() < 1e-4, "SFT against itself: {found}");
    assert!(of("base", "kl")?.abs() > 0.01 && of("ppo", "kl")?.abs() > 0.01);
    assert!(found["reward_accuracy"].as_f64().is_some_and(|a| a > 0.5));
    let shown = say(rlhf().arg("inspect").arg(&run))?.ended(0);
    assert!(shown.out.contains("24 held-out prompts"), "{}", shown.out);
    Ok(())
}

#[test]
fn what_was_measured_is_kept_until_the_question_changes() -> Outcome {
    let folder = scratch()?;
    let run = copy_of_finished_run(folder.path())?;
    let first = say(&mut eval(&run, &[]))?.ended(0);
    let before = findings(&run)?;
    let again = say(&mut eval(&run, &[]))?.ended(0);
    assert_eq!(again.out, first.out);
    assert!(!again.err.contains("sampling"), "{}", again.err);
    say(&mut eval(&run, &["--seed", "9"]))?
        .ended(0)
        .names(&["sampling"]);
    let after = findings(&run)?;
    assert_ne!(after["inputs"], before["inputs"]);
    assert_ne!(after["models"]["ppo"]["kl"], before["models"]["ppo"]["kl"]);
    Ok(())
}

#[test]
fn it_refuses_what_it_cannot_compare() -> Outcome {
    let folder = scratch()?;
    let nowhere = folder.path().join("nowhere");
    let said = say(&mut eval(&nowhere, &[]))?.ended(2);
    said.names(&["nowhere", "not a run folder", "hint: name a folder"]);
    assert!(!nowhere.exists(), "asking makes no folder");

    let run = copy_of_finished_run(folder.path())?;
    let mut too_many = rlhf();
    too_many.arg("eval").arg(&run);
    too_many.args(["--samples", "100000"]);
    let said = say(&mut too_many)?;
    assert_ne!(said.code, Some(0));
    said.names(&["100000", "held-out prompts", "hint: say `--samples"]);

    let weights = run.join("sft/final/model.safetensors");
    let mut bytes = fs::read(&weights)?;
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&weights, bytes)?;
    let said = say(&mut eval(&run, &[]))?;
    assert_ne!(said.code, Some(0));
    said.names(&["sft/final/model.safetensors"]);

    fs::remove_dir_all(run.join("ppo/final"))?;
    fs::remove_dir_all(run.join("sft/final"))?;
    let said = say(&mut eval(&run, &[]))?.ended(2);
    said.names(&["sft/final has no model yet", "hint: finish the run first"]);
    Ok(())
}
