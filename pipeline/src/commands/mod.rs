//! A file per command, and what those have in common that put one request to the worker.

pub mod bench;
pub mod cancel;
pub mod chat;
mod cluster;
pub mod conduct;
pub mod doctor;
pub mod eval;
pub mod generate;
pub mod gpu_check;
pub mod launch;
mod measured;
pub mod model;
pub mod model_files;
pub mod plan;
pub mod pull;
pub mod retrieval;
pub mod run;
mod run_words;
pub mod score;
pub mod status;
pub mod submit;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::anyhow;
use recipe::plan::Objective;
use runtime::Event;
use serde::Serialize;

use crate::failure::{Failure, Outcome};
use crate::hub::Models;
use crate::libtorch::{self, Libtorch, Places};
use crate::worker::{Incoming, Worker, WorkerError};

/// How long to wait for the worker before looking at other things.
const TICK: Duration = Duration::from_millis(100);

fn find_libtorch() -> Outcome<Libtorch> {
    libtorch::find(&Places::of_this_process()).map_err(Failure::run)
}

fn start(command: &str, request: &impl Serialize) -> Outcome<Worker> {
    let request = serde_json::to_string(request).map_err(Failure::run)?;
    Worker::start(&find_libtorch()?, &[command, &request], None).map_err(Failure::run)
}

/// Puts a request to the worker, and its data on standard output. Ctrl-C ends the front, and by that
/// the worker: there is nothing to save.
fn relay(command: &str, request: &impl Serialize) -> Outcome {
    let mut worker = start(command, request)?;
    loop {
        match worker.receive(TICK) {
            Some(Incoming::Event(Event::Output { line })) => match print(&line) {
                Ok(()) => {}
                // Whoever read the output has seen enough (`| head`).
                Err(_) => return Ok(()),
            },
            Some(Incoming::Event(Event::Note { text })) => eprintln!("{text}"),
            Some(Incoming::Closed) => return worker.finish().map_err(Failure::run),
            _ => {}
        }
    }
}

/// Puts a request to the worker and returns the last line of its data.
fn ask(command: &str, request: &impl Serialize) -> Outcome<String> {
    last_line(start(command, request)?).map_err(Failure::run)
}

/// Waits for the worker's end; returns the last line of its data.
fn last_line(mut worker: Worker) -> Result<String, WorkerError> {
    let mut answer = String::new();
    loop {
        match worker.receive(TICK) {
            Some(Incoming::Event(Event::Output { line })) => answer = line,
            Some(Incoming::Event(Event::Note { text })) => eprintln!("{text}"),
            Some(Incoming::Closed) => {
                worker.finish()?;
                return Ok(answer);
            }
            _ => {}
        }
    }
}

/// The file that was named, or one of the project's own: here, or beside the programs' folder.
fn default_file(named: Option<&Path>, usual: &str) -> Outcome<PathBuf> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.parent()?.join(usual)));
    let candidates: Vec<PathBuf> = match named {
        Some(named) => vec![named.to_owned()],
        None => std::iter::once(PathBuf::from(usual))
            .chain(beside)
            .collect(),
    };
    let found = candidates.iter().find(|path| path.is_file()).cloned();
    found.ok_or_else(|| {
        Failure::Usage(anyhow!(
            "{} is not there\n  hint: say --config FILE",
            candidates[0].display()
        ))
    })
}

pub(crate) fn print(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// The folder that a `--model` names; a model on the hub is fetched first.
fn model_folder(words: &Path) -> Outcome<PathBuf> {
    let dir = Models::default().path(words)?;
    check_model(&dir)?;
    Ok(dir)
}

/// The folder of a `--model` that is asked what a text says or how it goes on: with an adapter, if not by
/// itself, since adapters are trained on next tokens alone.
fn text_model(words: &Path, adapter: Option<&Path>) -> Outcome<PathBuf> {
    let dir = model_folder(words)?;
    if adapter.is_none() {
        check_continues_text(&dir)?;
    }
    check_adapter(adapter)?;
    Ok(dir)
}

/// Checks a `--model` before anything is started for it.
fn check_model(dir: &Path) -> Outcome {
    let hint = if dir.join("final/config.json").exists() {
        format!("its model is in {}", dir.join("final").display())
    } else if dir.join("adapter_config.json").exists() {
        "name the model that these adapters stand on, and them with --adapter".to_owned()
    } else if is_gguf(dir) {
        let file = dir.display();
        format!("make a folder of it first: rlhf model convert --model {file} --out DIR")
    } else {
        "give the folder of a Hugging Face model, such as runs/demo/sft/final, or hub:ORG/NAME"
            .to_owned()
    };
    let problem = if dir.is_dir() {
        "has no config.json"
    } else {
        "is not a folder"
    };
    if dir.join("config.json").exists() {
        return Ok(());
    }
    Err(Failure::Usage(anyhow!(
        "--model {} {problem}\n  hint: {hint}",
        dir.display()
    )))
}

/// Checks an `--adapter` before anything is started for it.
fn check_adapter(dir: Option<&Path>) -> Outcome {
    match dir {
        Some(dir) if !dir.join("adapter_config.json").exists() => Err(Failure::Usage(anyhow!(
            "--adapter {} has no adapter_config.json\n  hint: give a folder of peft, such as \
             runs/demo/sft/final/adapter",
            dir.display()
        ))),
        _ => Ok(()),
    }
}

/// Checks an `--out` before anything is started for it.
fn check_out(dir: &Path) -> Outcome {
    if dir.exists() {
        return Err(Failure::Usage(anyhow!(
            "--out {} is there already\n  hint: give the name of a new folder",
            dir.display()
        )));
    }
    Ok(())
}

/// Refuses a model that was trained on hidden tokens alone: none of its probabilities is of a next token.
fn check_continues_text(dir: &Path) -> Outcome {
    let objective = recipe::trained_objective(dir).map_err(Failure::run)?;
    if objective == Objective::Causal {
        return Ok(());
    }
    Err(Failure::Usage(anyhow!(
        "{} continues no text: it was pretrained with objective = {:?}\n  \
         hint: fine-tune it first (a stage of kind sft) and take what that makes",
        dir.display(),
        objective.word()
    )))
}

/// Whether this is a file that says `.gguf`.
fn is_gguf(path: &Path) -> bool {
    path.is_file() && path.extension().is_some_and(|end| end == "gguf")
}

/// Checks a `--data` before anything is started for it.
fn check_data(file: &Path) -> Outcome {
    if !file.is_file() {
        return Err(Failure::Usage(anyhow!(
            "--data {} is not a file\n  hint: name a .jsonl or .parquet file",
            file.display()
        )));
    }
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("jsonl" | "parquet") => Ok(()),
        _ => Err(Failure::Usage(anyhow!(
            "--data {}: its kind is not known by its name\n  \
             hint: JSON lines end in .jsonl, Parquet ends in .parquet",
            file.display()
        ))),
    }
}
