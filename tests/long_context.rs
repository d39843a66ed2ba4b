//! A model that is lengthened in two stages: what is planned, written, continued after a kill, and asked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::process::{Front, num_lines, wait_until};
use crate::support::{Outcome, rlhf, rlhf_run, say, scratch};

const PIPELINE: &str = r#"
name = "lengthened"

[tokenizer]
kind = "bpe"
vocab_size = 330
data = "stage:near"

[stages.near]
kind = "import"
format = "passkey"
conversations = 150
sentences = 4
heldout = 0.2

[stages.far]
kind = "import"
format = "passkey"
conversations = 150
sentences = 40
heldout = 0.2

[stages.short]
kind = "pretrain"
data = "stage:near"
model = { family = "llama", layers = 1, width = 32, heads = 2 }
context = 64
batch = 4
steps = 4
eval_examples = 4

[stages.long]
kind = "pretrain"
model = "stage:short"
data = "stage:far"
rope = { scaling = "linear", factor = 4.0 }
batch = 2
steps = 4
eval_examples = 4

[stages.longer]
kind = "pretrain"
model = "stage:long"
data = "stage:far"
rope = { factor = 2.0, theta = 5e4 }
batch = 2
steps = 16
eval_examples = 4
save_every = 2
"#;

fn config(folder: &Path) -> Outcome<PathBuf> {
    let path = folder.join("pipeline.toml");
    fs::write(&path, PIPELINE)?;
    Ok(path)
}

fn json(path: &Path) -> Outcome<Value> {
    Ok(serde_json::from_str(&fs::read_to_string(path)?)?)
}

fn retrieval(model: &Path, lengths: &str, more: &[&str]) -> Command {
    let mut command = rlhf();
    command.args(["eval", "retrieval", "--device", "cpu", "--model"]);
    command.arg(model).args(["--lengths", lengths]);
    command.args(["--depths", "3", "--samples", "2"]).args(more);
    command
}

#[test]
fn two_stages_lengthen_a_model_and_a_killed_one_goes_on_exactly() -> Outcome {
    let folder = scratch()?;
    let (config, run) = (config(folder.path())?, folder.path().join("run"));
    let plan = say(rlhf().arg("plan").arg(&config))?.ended(0);
    for line in ["max_positions", "peak memory, predicted"] {
        assert!(plan.out.contains(line), "{line} is not in\n{}", plan.out);
    }
    say(&mut rlhf_run(&config, &run))?.ended(0);
    for (stage, positions, factor, theta) in [("long", 256, 4.0, 1e4), ("longer", 512, 8.0, 5e4)] {
        let written = json(&run.join(stage).join("final/config.json"))?;
        assert_eq!(written["max_position_embeddings"], positions, "{stage}");
        let rope = &written["rope_parameters"];
        assert_eq!(rope["rope_type"], "linear", "{stage}");
        assert_eq!(rope["factor"], factor, "{stage}");
        assert_eq!(rope["rope_theta"], theta, "{stage}");
    }
    let manifest = json(&run.join("longer/final/manifest.json"))?;
    assert!(manifest["parents"]["stage:long"].is_string(), "{manifest}");

    let again = folder.path().join("again");
    let metrics = again.join("longer/metrics.jsonl");
    let mut front = Front::start(&mut rlhf_run(&config, &again), folder.path())?;
    wait_until("the second lengthening to be under way", || {
        if !front.is_running()? {
            return Err("the run ended before".into());
        }
        Ok(num_lines(&metrics) >= 3)
    })?;
    front.kill_both()?;
    say(&mut rlhf_run(&config, &again))?.ended(0);
    for file in ["model.safetensors", "config.json"] {
        let of = |run: &Path| fs::read(run.join("longer/final").join(file));
        assert!(of(&run)? == of(&again)?, "{file} differs after a kill");
    }
    asks_for_numbers(&run)
}

/// A model of a few updates finds nothing, within its window and beyond.
fn asks_for_numbers(run: &Path) -> Outcome {
    let model = run.join("long/final");
    let said = say(&mut retrieval(&model, "96,300", &[]))?.ended(0);
    let report: Value = serde_json::from_str(&said.out)?;
    assert_eq!(report["max_positions"], 256);
    let lengths = report["lengths"].as_array().ok_or("no lengths")?;
    assert_eq!(lengths.len(), 2, "{report}");
    for (length, expected) in lengths.iter().zip([96, 300]) {
        assert_eq!(length["length"], expected);
        let depths = length["depths"].as_array().ok_or("no depths")?;
        let places: Vec<f64> = depths
            .iter()
            .filter_map(|it| it["depth"].as_f64())
            .collect();
        assert_eq!(places, [0.0, 0.5, 1.0]);
        let accuracy = |of: &Value| of["accuracy"].as_f64().unwrap_or(f64::NAN);
        let mean = depths.iter().map(accuracy).sum::<f64>() / 3.0;
        assert!((accuracy(length) - mean).abs() < 1e-9, "{report}");
    }
    let failed = say(&mut retrieval(&model, "96", &["--at-least", "0.9"]))?.ended(1);
    failed.names(&["less than --at-least 0.9", "hint: "]);
    let too_short = say(&mut retrieval(&model, "8", &[]))?.ended(1);
    too_short.names(&["a text that hides a number takes at least", "hint: "]);
    Ok(())
}
