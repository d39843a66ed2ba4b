//! A run that can be continued: `step-000400/`.
//!
//! ```text
//! step-000400/
//!   config.json model.safetensors tokenizer.json ...   the first model, a Hugging Face folder; with adapters
//!                                                      these alone, a folder of peft
//!   value/config.json ...                              further models by name
//!   training/policy.safetensors value.safetensors      masters, moments, averages: whole logical tensors
//!   training/state.json                                counters, and what the stage needs
//!   manifest.json                                      hashes of all of it
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use datasets::Tokenizer;
use model::{Model, weights};
use runtime::files::{FileError, WholeFolder, ensure_space, read_json, write_json};
use runtime::manifest::Manifest;
use runtime::run_folder::StageFolder;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::ema::Ema;
use crate::error::TrainerError;
use crate::folder::{trained_bytes, write_trained};
use crate::stepper::Stepper;
use crate::tensor_file::{data_bytes, read_tensors_into};

/// Version of `training/`.
const FORMAT_VERSION: u32 = 1;

/// One trained model of a snapshot to be written.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotPart<'a> {
    /// Its name: `training/<name>.safetensors`, and `<name>/` unless it is the first.
    pub name: &'a str,
    /// The model.
    pub model: &'a Model,
    /// Its optimizer.
    pub stepper: &'a Stepper,
    /// Its moving average, if it has one.
    pub ema: Option<&'a Ema>,
}

/// One trained model to be restored. The stepper shares what is trained of it.
#[derive(Debug)]
pub struct RestorePart<'a> {
    /// The name under which it was saved.
    pub name: &'a str,
    /// The optimizer of a model of the same shape.
    pub stepper: &'a mut Stepper,
    /// The moving average, if one was saved.
    pub ema: Option<&'a mut Ema>,
}

/// `training/state.json`.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    format_version: u32,
    step: u64,
    /// Updates skipped, by part.
    skipped: BTreeMap<String, u64>,
    stage: serde_json::Value,
}

/// Writes `step-NNNNNN/` whole, or nothing; an older snapshot of the same step is replaced.
///
/// `step` counts updates (PPO: iterations) that are done. `state` is whatever else the stage needs to
/// continue: counters, data cursor, KL controller, best metric. The returned path is the folder's.
///
/// # Errors
/// A full disk (known before the first byte is written) or a failed write; earlier snapshots stay.
///
/// # Panics
/// Where `parts` is empty.
pub fn save_snapshot(
    stage: &StageFolder,
    step: u64,
    parts: &[SnapshotPart],
    tokenizer: &Tokenizer,
    state: &serde_json::Value,
    manifest: Manifest,
) -> Result<PathBuf, TrainerError> {
    assert!(!parts.is_empty(), "a snapshot of at least one model");
    let dir = stage.snapshot_dir(step);
    ensure_space(stage.root(), snapshot_bytes(parts, tokenizer))?;
    let folder = WholeFolder::create(&dir)?;
    let training = folder.path().join("training");
    fs::create_dir(&training).map_err(FileError::io("create", &training))?;
    for (index, part) in parts.iter().enumerate() {
        let below = if index == 0 { "" } else { part.name };
        write_trained(&folder.path().join(below), part.model, tokenizer)?;
        weights::write(&state_path(&training, part.name), &part.tensors())?;
    }
    let skipped = parts
        .iter()
        .map(|part| (part.name.to_owned(), part.stepper.skipped()))
        .collect();
    let state = State {
        format_version: FORMAT_VERSION,
        step,
        skipped,
        stage: state.clone(),
    };
    write_json(&training.join("state.json"), &state)?;
    manifest.seal(folder.path())?;
    folder.commit()?;
    Ok(dir)
}

/// Bytes that a snapshot of `parts` takes at most.
pub fn snapshot_bytes(parts: &[SnapshotPart], tokenizer: &Tokenizer) -> u64 {
    let part_bytes = |part: &SnapshotPart| {
        trained_bytes(part.model, tokenizer) + data_bytes(part.tensors().values())
    };
    parts.iter().map(part_bytes).sum()
}

/// Restores optimizers, weights and averages to the bit, and returns what the stage gave as its state.
///
/// The folder's hashes were checked by [`crate::latest_valid_snapshot`]; here names, shapes and formats
/// are.
///
/// # Errors
/// A file that is missing or of another format, and any tensor that is missing, unexpected, or of
/// another shape.
pub fn restore_snapshot(
    dir: &Path,
    parts: &mut [RestorePart],
) -> Result<serde_json::Value, TrainerError> {
    let training = dir.join("training");
    let path = training.join("state.json");
    let state: State = read_json(&path)?;
    let mismatch = |what, found: String, expected: String| TrainerError::State {
        path: path.clone(),
        what,
        found,
        expected,
    };
    if state.format_version != FORMAT_VERSION {
        let (found, expected) = (state.format_version.to_string(), FORMAT_VERSION.to_string());
        return Err(mismatch("format_version", found, expected));
    }
    let mut names: Vec<String> = parts.iter().map(|part| part.name.to_owned()).collect();
    names.sort();
    if !state.skipped.keys().eq(&names) {
        let found = state.skipped.into_keys().collect::<Vec<_>>().join(", ");
        return Err(mismatch(
            "the set of trained models",
            found,
            names.join(", "),
        ));
    }
    for part in parts {
        let ema = part.ema.as_deref();
        read_tensors_into(
            &state_path(&training, part.name),
            &tensors(part.stepper, ema),
        )?;
        part.stepper.restored(state.skipped[part.name])?;
    }
    Ok(state.stage)
}

fn state_path(training: &Path, name: &str) -> PathBuf {
    training.join(format!("{name}.safetensors"))
}

impl SnapshotPart<'_> {
    fn tensors(&self) -> BTreeMap<String, Tensor> {
        tensors(self.stepper, self.ema)
    }
}

fn tensors(stepper: &Stepper, ema: Option<&Ema>) -> BTreeMap<String, Tensor> {
    let mut tensors = stepper.optimizer().state();
    tensors.extend(ema.map(Ema::state).into_iter().flatten());
    tensors
}
