//! Objectives of pretraining beside next tokens: one pipeline that pretrains with each, is killed on the
//! way, and fine-tunes what comes of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use datasets::{Split, Text, Tokenizer};
use runtime::metrics::read_metrics;
use serde_json::Value;

use crate::process::{Front, num_lines, wait_until};
use crate::support::{Outcome, files_below, rlhf, rlhf_run, say, scratch};

const PIPELINE: &str = r#"name = "objectives"
seed = 1

[tokenizer]
kind = "bpe"
vocab_size = 320
data = "stage:corpus"

[stages.corpus]
kind = "import"
format = "synthetic"
conversations = 200
prompt_turns = 1

[stages.masked]
kind = "pretrain"
data = "stage:corpus"
objective = "masked"
model = { family = "llama", layers = 2, width = 32, heads = 2 }
context = 48
batch = 16
steps = 120
eval_every = 20
save_every = 10
optimizer = { lr = 5e-3 }

[stages.infill]
kind = "pretrain"
data = "stage:corpus"
objective = "infill"
model = { family = "gpt2", layers = 2, width = 32, heads = 2 }
context = 48
batch = 16
steps = 120
eval_every = 20
save_every = 10
optimizer = { lr = 5e-3 }

[stages.masked-sft]
kind = "sft"
model = "stage:masked"
data = "stage:corpus"
overlong = "left"
batch = 16
steps = 80
eval_every = 20
optimizer = { lr = 5e-3 }

[stages.infill-sft]
kind = "sft"
model = "stage:infill"
data = "stage:corpus"
overlong = "left"
batch = 16
steps = 80
eval_every = 20
optimizer = { lr = 5e-3 }
"#;

/// Adapters on the infilling model, in a run of their own.
const ADAPTED: &str = r#"
[stages.infill-lora]
kind = "sft"
model = "stage:infill"
data = "stage:corpus"
overlong = "left"
batch = 16
steps = 4
optimizer = { lr = 5e-3 }
lora = { r = 4 }
"#;

const PRETRAINED: [&str; 2] = ["masked", "infill"];

fn config(folder: &Path) -> Outcome<PathBuf> {
    let path = folder.join("pipeline.toml");
    fs::write(&path, format!("{PIPELINE}{ADAPTED}"))?;
    Ok(path)
}

/// Held-out losses in order.
fn heldout(run: &Path, stage: &str) -> Outcome<Vec<f64>> {
    let rows = read_metrics(&run.join(stage).join("metrics.jsonl"))?;
    let losses = rows.iter().filter_map(|row| row.values.get("loss/heldout"));
    Ok(losses.copied().collect())
}

fn train_losses(run: &Path, stage: &str) -> Outcome<Vec<(u64, f64)>> {
    let rows = read_metrics(&run.join(stage).join("metrics.jsonl"))?;
    let losses = rows.iter().map(|row| (row.step, row.values["loss/train"]));
    Ok(losses.collect())
}

#[test]
fn each_objective_is_learned_survives_kills_and_is_fine_tuned() -> Outcome {
    let folder = scratch()?;
    let config = config(folder.path())?;
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    say(&mut rlhf_run(&config, &whole))?.ended(0);

    for (stage, lines) in [
        ("masked", 13),
        ("masked", 17),
        ("infill", 13),
        ("infill", 17),
    ] {
        let metrics = killed.join(stage).join("metrics.jsonl");
        let before = num_lines(&metrics);
        let front = Front::start(&mut rlhf_run(&config, &killed), folder.path())?;
        wait_until("the moment to kill", || {
            Ok(num_lines(&metrics) >= before + lines)
        })?;
        front.kill_both()?;
        let done = killed.join(stage).join("done.json");
        assert!(!done.exists(), "{stage} was done before it was killed");
    }
    say(&mut rlhf_run(&config, &killed))?.ended(0);
    let is_final = |file: &PathBuf| file.iter().any(|part| part == "final");
    let finals: Vec<PathBuf> = files_below(&whole)?.into_iter().filter(is_final).collect();
    for stage in ["masked", "infill", "masked-sft", "infill-sft"] {
        assert!(finals.contains(&Path::new(stage).join("final/model.safetensors")));
    }
    for file in finals {
        let same = fs::read(whole.join(&file))? == fs::read(killed.join(&file))?;
        assert!(same, "{} is another", file.display());
    }
    for stage in PRETRAINED {
        assert_eq!(train_losses(&whole, stage)?, train_losses(&killed, stage)?);
    }
    check_learned(&whole)?;
    check_folders(&whole)?;
    check_use(&whole, folder.path())
}

/// Entropy of the held-out text's tokens, one by one, special ones aside: the least loss (nats) of whoever looks
/// at no other token.
fn unigram_entropy(run: &Path) -> Outcome<f64> {
    let tokenizer = Tokenizer::load(&run.join("masked/final"))?;
    let texts: Vec<Text> = datasets::load_split(&run.join("corpus/final"), Split::Heldout)?;
    let mut counts: BTreeMap<u32, f64> = BTreeMap::new();
    for text in texts {
        let ids = tokenizer.encode(&text.text)?.into_iter();
        for id in ids.filter(|id| !tokenizer.is_special(*id)) {
            *counts.entry(id).or_default() += 1.0;
        }
    }
    let all: f64 = counts.values().sum();
    let shares = counts.values().map(|count| count / all);
    Ok(shares.map(|share| -share * share.ln()).sum())
}

/// Each is better than frequencies of tokens alone would be, and none counts bytes that it does not predict.
fn check_learned(run: &Path) -> Outcome {
    let entropy = unigram_entropy(run)?;
    for stage in ["masked", "infill", "masked-sft", "infill-sft"] {
        let losses = heldout(run, stage)?;
        let last = *losses.last().ok_or("no held-out loss")?;
        assert!(
            last < entropy,
            "{stage}: {losses:?}, frequencies alone give {entropy}"
        );
        let bits = "loss/heldout_bits_per_byte";
        let rows = read_metrics(&run.join(stage).join("metrics.jsonl"))?;
        assert!(!rows.iter().any(|row| row.values.contains_key(bits)));
    }
    Ok(())
}

/// What the folders say: the second table of positions stays with the model that was trained with it.
fn check_folders(run: &Path) -> Outcome {
    let json = |path: &str| -> Outcome<Value> {
        Ok(serde_json::from_str(&fs::read_to_string(run.join(path))?)?)
    };
    assert_eq!(json("infill/final/config.json")?["span_positions"], 40);
    for stage in ["masked", "infill-sft"] {
        let config = json(&format!("{stage}/final/config.json"))?;
        assert!(config.get("span_positions").is_none(), "{config}");
    }
    let tokenizer = json("infill-sft/final/tokenizer_config.json")?;
    assert_eq!(tokenizer["mask_token"], "<|mask|>");
    for stage in PRETRAINED {
        let manifest = json(&format!("{stage}/final/manifest.json"))?;
        assert_eq!(manifest["config"]["objective"], stage);
    }
    Ok(())
}

/// What they can be used for: nothing that continues a text, until they are fine-tuned. That stays with
/// what is written again.
fn check_use(run: &Path, folder: &Path) -> Outcome {
    let of = |stage: &str| run.join(stage).join("final");
    for stage in PRETRAINED {
        let copy = folder.join(stage);
        let mut convert = rlhf();
        convert.args(["model", "convert", "--model"]).arg(of(stage));
        say(convert.arg("--out").arg(&copy))?.ended(0);
        let read = |file: &str| fs::read(copy.join(file));
        assert_eq!(
            read("config.json")?,
            fs::read(of(stage).join("config.json"))?
        );
        for model in [&of(stage), &copy] {
            refuses_to_continue(model, stage, folder)?;
        }
        say(&mut generate(&of(&format!("{stage}-sft"))))?.ended(0);
    }
    let adapter = of("infill-lora").join("adapter");
    say(generate(&of("infill")).arg("--adapter").arg(&adapter))?.ended(0);
    let merged = folder.join("merged");
    let mut merge = rlhf();
    merge.args(["model", "merge", "--model"]).arg(of("infill"));
    merge
        .arg("--adapter")
        .arg(adapter)
        .arg("--out")
        .arg(&merged);
    say(&mut merge)?.ended(0);
    for file in ["config.json", "model.safetensors"] {
        let same = fs::read(merged.join(file))? == fs::read(of("infill-lora").join(file))?;
        assert!(same, "{file} is another");
    }
    say(&mut generate(&merged))?.ended(0);
    Ok(())
}

fn generate(model: &Path) -> Command {
    let mut command = rlhf();
    command.arg("generate").arg("--model").arg(model);
    command.args(["--prompt", "hello", "--max-new-tokens", "4"]);
    command.args(["--device", "cpu"]);
    command
}

fn refuses_to_continue(model: &Path, objective: &str, folder: &Path) -> Outcome {
    let rows = folder.join("rows.jsonl");
    fs::write(&rows, "{\"text\":\"hello\"}\n")?;
    let mut score = rlhf();
    score.arg("score").arg("--model").arg(model);
    score.arg("--data").arg(&rows);
    let mut chat = rlhf();
    chat.arg("chat").arg("--model").arg(model);
    let mut retrieval = rlhf();
    retrieval.args(["eval", "retrieval", "--lengths", "40", "--model"]);
    retrieval.arg(model);
    let named = format!("objective = \"{objective}\"");
    for mut command in [generate(model), score, chat, retrieval] {
        say(&mut command)?
            .ended(2)
            .names(&["continues no text", &named, "hint: fine-tune"]);
    }
    Ok(())
}

#[test]
fn a_plan_shows_the_objectives_and_refuses_a_family_that_cannot() -> Outcome {
    let folder = scratch()?;
    let config = config(folder.path())?;
    let mut plan = rlhf();
    let said = say(plan.arg("plan").arg(&config))?.ended(0);
    for objective in PRETRAINED {
        let shown = said.out.lines().any(|line| {
            let mut words = line.split_whitespace();
            (words.next(), words.next()) == (Some("objective"), Some(objective))
        });
        assert!(shown, "{objective} is not in\n{}", said.out);
    }
    assert!(said.out.contains("<|startofpiece|>"), "{}", said.out);
    let model = "stages.infill.model.family=\"llama\"";
    let mut refused = rlhf_run(&config, &folder.path().join("run"));
    let said = say(refused.args(["--set", model]))?.ended(2);
    said.names(&[
        "stages.infill.objective",
        "learned positions",
        "\"llama\"",
        "hint: ",
    ]);
    Ok(())
}
