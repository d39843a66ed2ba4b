//! Models in 8 and 4 bits: what `score` says of them, and stages whose frozen models they are.

use std::fs;
use std::path::Path;

use runtime::metrics::read_metrics;
use serde_json::Value;

use crate::support::{
    Outcome, copy_of_finished_run, finished_run, rlhf, rlhf_run, say, scratch, tiny,
};

/// Log-probabilities or rewards of two texts under a model of the finished run.
fn scores(model: &str, data: &Path, further: &[&str]) -> Outcome<Vec<f64>> {
    let mut command = rlhf();
    command
        .args(["score", "--device", "cpu", "--model"])
        .arg(finished_run().join(model).join("final"))
        .arg("--data")
        .arg(data)
        .args(further);
    let mut scores = Vec::new();
    for line in say(&mut command)?.ended(0).out.lines() {
        let row: Value = serde_json::from_str(line)?;
        let logprobs = row["logprobs"].as_array().into_iter().flatten();
        scores.extend(logprobs.chain(row.get("reward")).filter_map(Value::as_f64));
    }
    Ok(scores)
}

#[test]
fn fewer_bits_move_scores_a_little() -> Outcome {
    let folder = scratch()?;
    let data = folder.path().join("texts.jsonl");
    fs::write(
        &data,
        "{\"text\":\"the weather was lovely today\"}\n{\"text\":\"my sister liked the film\"}\n",
    )?;
    for model in ["sft", "reward"] {
        let exact = scores(model, &data, &[])?;
        let gap = |quantize| -> Outcome<f64> {
            let found = scores(model, &data, &["--quantize", quantize])?;
            assert_eq!(found.len(), exact.len(), "{model} {quantize}");
            let gaps = exact.iter().zip(&found).map(|(a, b)| (a - b).abs());
            Ok(gaps.sum::<f64>() / exact.len() as f64)
        };
        let (int8, int4) = (gap("int8")?, gap("int4")?);
        assert!(
            0.0 < int8 && int8 < int4 && int4 < 1.0,
            "{model}: int8 {int8}, int4 {int4}"
        );
    }
    let refused = ["score", "--model", ".", "--data", ".", "--quantize", "int3"];
    say(rlhf().args(refused))?
        .ended(2)
        .names(&["int3", "int8, int4"]);
    Ok(())
}

#[test]
fn frozen_models_of_stages_take_fewer_bits() -> Outcome {
    let folder = scratch()?;
    let run = copy_of_finished_run(folder.path())?;
    let quantized = [
        "stages.comparisons.quantize=int8",
        "stages.ppo.reference.quantize=int4",
        "stages.ppo.reward.0.quantize=int8",
    ];
    let short = [
        "stages.reward.steps=2",
        "stages.ppo.iterations=2",
        "stages.ppo.save_every=1",
    ];
    let mut command = rlhf_run(&tiny(), &run);
    command.args(["--restart", "comparisons"]);
    for set in quantized.iter().chain(&short) {
        command.args(["--set", set]);
    }
    say(&mut command)?.ended(0);
    let kl = |run: &Path| -> Outcome<f64> {
        let rows = read_metrics(&run.join("ppo/metrics.jsonl"))?;
        Ok(rows[0].values["heldout/kl"])
    };
    // The policy before its first update: exactly its own reference, unless that one is rounded.
    assert!(kl(finished_run())?.abs() < 1e-4);
    assert!(kl(&run)?.abs() > 1e-4, "{}", kl(&run)?);

    let memory = |sets: &[&str]| -> Outcome<Vec<String>> {
        let mut command = rlhf();
        command.arg("plan").arg(tiny());
        for set in sets {
            command.args(["--set", set]);
        }
        let out = say(&mut command)?.ended(0).out;
        let lines = out
            .lines()
            .filter(|line| line.contains("peak memory, predicted"));
        Ok(lines.map(str::to_owned).collect())
    };
    let (exact, fewer) = (memory(&[])?, memory(&quantized)?);
    let changed = exact.iter().zip(&fewer).filter(|(a, b)| a != b).count();
    assert_eq!((exact.len(), fewer.len(), changed), (5, 5, 2), "{fewer:?}");
    Ok(())
}
