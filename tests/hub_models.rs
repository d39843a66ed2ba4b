//! Models on the hub where a model's folder is expected: sampled from, looked at, and trained on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use runtime::Manifest;
use runtime::manifest::files_below;
use serde_json::{Value, json};

use crate::hub_server::{Cache, Files, Reply, Server};
use crate::support::{Outcome, Said, finished_run, say};

const REPO: &str = "org/tiny";

/// A stage's checkpoint as the files of a repository.
fn served(stage: &str) -> Outcome<Files> {
    let folder = finished_run().join(stage).join("final");
    let mut files = Files::new();
    for path in files_below(&folder)? {
        let name = path.strip_prefix(&folder)?.to_string_lossy().into_owned();
        files.insert(name, fs::read(&path)?);
    }
    Ok(files)
}

/// A configuration that fine-tunes a model on synthetic dialogue.
struct Pipeline<'a> {
    cache: &'a Cache,
    config: PathBuf,
}

impl<'a> Pipeline<'a> {
    fn new(cache: &'a Cache, model: &str) -> Outcome<Self> {
        let text = format!(
            r#"name = "hub"

[stages.corpus]
kind = "import"
format = "synthetic"
conversations = 200
prompt_turns = 1

[stages.sft]
kind = "sft"
model = "{model}"
data = "stage:corpus"
context = 64
overlong = "left"
batch = 4
steps = 3
optimizer = {{ lr = 1e-3 }}
"#
        );
        let config = cache.folder.path().join("pipeline.toml");
        fs::write(&config, text)?;
        Ok(Self { cache, config })
    }

    fn plan(&self) -> Outcome<Said> {
        say(self
            .cache
            .rlhf()
            .arg("plan")
            .arg(&self.config)
            .current_dir(self.cache.folder.path()))
    }

    fn run(&self, run_dir: &Path) -> Command {
        let mut command = self.cache.rlhf();
        command
            .arg("run")
            .arg(&self.config)
            .arg("--run-dir")
            .arg(run_dir);
        command.args(["--device", "cpu"]);
        command
    }
}

#[test]
fn commands_take_a_model_by_its_name_and_say_the_same_as_of_its_folder() -> Outcome {
    let server = Server::start()?;
    let commit = server.push(REPO, served("sft")?);
    let cache = Cache::of(&server)?;
    let folder = finished_run().join("sft/final");
    let folder = folder.to_string_lossy();
    let by_name = format!("hub:{REPO}");
    let said = |arguments: &[&str]| {
        Ok::<_, Box<dyn std::error::Error>>(say(cache.rlhf().args(arguments))?.ended(0).out)
    };
    let sampled = |model: &str| {
        said(&[
            "generate",
            "--model",
            model,
            "--prompt",
            "How was your day?",
            "--max-new-tokens",
            "16",
            "--device",
            "cpu",
        ])
    };
    assert_eq!(sampled(&by_name)?, sampled(&folder)?);
    let data = cache.folder.path().join("rows.jsonl");
    fs::write(&data, r#"{"text": "How was your day?"}"#)?;
    let data = data.to_string_lossy();
    let scored = |model: &str| {
        said(&[
            "score", "--model", model, "--data", &data, "--device", "cpu",
        ])
    };
    assert_eq!(scored(&format!("{by_name}@{commit}"))?, scored(&folder)?);
    assert!(said(&["model", "diff", &by_name, &folder])?.starts_with("equal: "));
    assert!(said(&["model", "show", &by_name])?.contains("model.safetensors: "));
    let out = cache.folder.path().join("half");
    let out = out.to_string_lossy();
    said(&[
        "model", "convert", "--model", &by_name, "--out", &out, "--dtype", "bf16",
    ])?;
    assert!(Path::new(&*out).join("config.json").exists());
    let lines = cache.folder.path().join("lines");
    fs::write(&lines, "hello\n")?;
    let mut chat = cache.rlhf();
    chat.args([
        "chat",
        "--model",
        &by_name,
        "--max-new-tokens",
        "4",
        "--device",
        "cpu",
    ]);
    say(chat.stdin(fs::File::open(&lines)?))?.ended(0);
    let refused = say(cache
        .rlhf()
        .args(["generate", "--model", "hub:org/none", "--prompt", "x"]))?;
    refused
        .ended(2)
        .names(&["org/none", "hint: check the name"]);
    Ok(())
}

#[test]
fn a_plan_needs_no_weights_and_a_run_fetches_them_and_records_the_commit() -> Outcome {
    let server = Server::start()?;
    let commit = server.push(REPO, served("pretrain")?);
    let cache = Cache::of(&server)?;
    let pipeline = Pipeline::new(&cache, "hub:org/tiny")?;
    let planned = pipeline.plan()?.ended(0);
    for words in [&commit[..], "org/tiny", "parameters"] {
        assert!(
            planned.out.contains(words),
            "`{words}` is not in\n{}",
            planned.out
        );
    }
    let lines = server.lines();
    assert!(
        !lines.iter().any(|line| line.contains("safetensors")),
        "{lines:?}"
    );
    assert_eq!(
        lines.iter().filter(|line| line.contains("/api/")).count(),
        1,
        "{lines:?}"
    );

    let run = cache.folder.path().join("run");
    say(&mut pipeline.run(&run))?.ended(0);
    let lines = server.lines();
    assert_eq!(
        lines.iter().filter(|line| line.contains("/store/")).count(),
        1,
        "{lines:?}"
    );
    let manifest = Manifest::verify(&run.join("sft/final"))?.ok_or("no manifest")?;
    assert_eq!(manifest.parents[&format!("hub:{REPO}@{commit}")], commit);
    let model = json!({"from": "hub", "repo": REPO, "commit": commit});
    assert_eq!(manifest.config["model"], model);
    let record: Value = serde_json::from_slice(&fs::read(run.join("sft/done.json"))?)?;
    assert_eq!(record["config"]["model"], model);

    // The same weights from a folder train to the same bytes.
    let folder = finished_run().join("pretrain/final");
    let other = Pipeline::new(&cache, &format!("path:{}", folder.display()))?;
    let other_run = cache.folder.path().join("other-run");
    say(&mut other.run(&other_run))?.ended(0);
    let weights = |run: &Path| fs::read(run.join("sft/final/model.safetensors"));
    assert!(weights(&run)? == weights(&other_run)?);
    Ok(())
}

#[test]
fn a_run_keeps_its_commit_when_the_branch_moves() -> Outcome {
    let server = Server::start()?;
    let first = server.push(REPO, served("pretrain")?);
    let cache = Cache::of(&server)?;
    let run = cache.folder.path().join("run");
    let pipeline = Pipeline::new(&cache, "hub:org/tiny")?;
    say(&mut pipeline.run(&run))?.ended(0);
    let second = server.push(REPO, served("sft")?);
    say(&mut pipeline.run(&run))?
        .ended(0)
        .names(&["0 of 2 stages to run"]);
    assert!(
        pipeline.plan()?.ended(0).out.contains(&second),
        "another run begins with the new one"
    );

    // Without a network, too.
    let mut offline = pipeline.run(&run);
    server.seen();
    say(offline.env("HF_HUB_OFFLINE", "1"))?.ended(0);
    assert!(server.seen().is_empty());

    let pinned = Pipeline::new(&cache, &format!("hub:org/tiny@{first}"))?;
    say(&mut pinned.run(&run))?
        .ended(0)
        .names(&["0 of 2 stages to run"]);
    let moved = Pipeline::new(&cache, &format!("hub:org/tiny@{second}"))?;
    let said = say(&mut moved.run(&run))?.ended(2);
    said.names(&["model.commit: ", &first, &second, "--restart sft"]);
    Ok(())
}

#[test]
fn a_mistake_is_told_with_its_place_before_anything_starts() -> Outcome {
    let server = Server::start()?;
    server.push(REPO, served("reward")?);
    let cache = Cache::of(&server)?;
    let run = cache.folder.path().join("run");
    let refused = |model: &str, code: i32, words: &[&str]| {
        let pipeline = Pipeline::new(&cache, model)?;
        let said = say(&mut pipeline.run(&run))?.ended(code).names(words);
        said.names(&["pipeline.toml:11:9: stages.sft.model: ", "hint: "]);
        assert!(!run.exists(), "nothing was begun");
        Ok::<_, Box<dyn std::error::Error>>(())
    };
    refused("hub:org/tyni", 2, &["no such model"])?;
    refused("hub:org/tiny@v9", 2, &["has no revision \"v9\""])?;
    refused(
        "hub:org/tiny",
        2,
        &["must be a language model", "LlamaForSequenceClassification"],
    )?;
    server.twist(|_, _| Reply::new(503, ""));
    refused("hub:org/tiny", 1, &["answers 503"])?;
    Ok(())
}
