//! A run that can be continued: `step-000400/`.
//!
//! ```text
//! step-000400/
//!   config.json model.safetensors tokenizer.json ...   the first model, a Hugging Face folder; with adapters
//!                                                      these alone, a folder of peft
//!   value/config.json ...                              further models by name
//!   training/policy.safetensors value.safetensors      masters, moments, averages: whole logical tensors; where ranks
//!                                                      keep slices a file of each, and policy.slices.json
//!   training/state.json                                counters, and what the stage needs
//!   manifest.json                                      hashes of all of it
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use datasets::Tokenizer;
use model::Model;
use runtime::files::{FileError, WholeFolder, ensure_space, read_json, write_json};
use runtime::manifest::Manifest;
use runtime::run_folder::StageFolder;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::ema::Ema;
use crate::error::TrainerError;
use crate::folder::{trained_bytes, write_trained};
use crate::ranks::Ranks;
use crate::stepper::Stepper;
use crate::tensor_file::{Piece, data_bytes, read_into, write_slices, write_whole};

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

/// What a snapshot holds.
#[derive(Debug)]
pub struct Contents<'a> {
    /// What is trained, the policy first.
    pub parts: &'a [SnapshotPart<'a>],
    /// The tokenizer beside each model.
    pub tokenizer: &'a Tokenizer,
    /// Whatever else the stage needs to continue.
    pub state: serde_json::Value,
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
/// All ranks call this: each writes its slices, the first all else.
///
/// `step` counts updates (PPO: iterations) that are done. The stage's state is whatever else it
/// needs to continue: counters, data cursor, KL controller, best metric. The returned path is the folder's.
///
/// # Errors
/// A full disk (known before the first byte is written) or a failed write; earlier snapshots stay.
///
/// # Panics
/// Where `parts` is empty.
pub fn save_snapshot(
    ranks: &Ranks,
    stage: &StageFolder,
    step: u64,
    contents: &Contents,
    manifest: Manifest,
) -> Result<PathBuf, TrainerError> {
    assert!(
        !contents.parts.is_empty(),
        "a snapshot of at least one model"
    );
    let dir = stage.snapshot_dir(step);
    let folder = if ranks.is_first() {
        ensure_space(stage.root(), snapshot_bytes(contents))?;
        let folder = WholeFolder::create(&dir)?;
        let training = folder.path().join("training");
        fs::create_dir(&training).map_err(FileError::io("create", &training))?;
        Some(folder)
    } else {
        None
    };
    let path = folder.as_ref().map(|folder| folder.path().to_owned());
    let path = ranks.word_of_first(path.unwrap_or_default())?;
    for (index, part) in contents.parts.iter().enumerate() {
        let division = part.stepper.division();
        let training = path.join("training");
        // Of a model with adapters these alone are written.
        let whole = (!part.model.has_adapter()).then(|| part.model.whole());
        let whole = whole.transpose()?;
        if ranks.is_first() {
            let below = if index == 0 { "" } else { part.name };
            write_trained(&path.join(below), part.model, contents.tokenizer)?;
        }
        drop(whole);
        if division.slices() > 1 {
            let place = (division.slice(), division.slices());
            write_slices(&training, part.name, &part.pieces(), place)?;
        } else if ranks.is_first() {
            write_whole(&training, part.name, &part.pieces())?;
        }
    }
    ranks.barrier()?;
    if let Some(folder) = folder {
        write_state(folder.path(), step, contents)?;
        manifest.seal(folder.path())?;
        folder.commit()?;
    }
    ranks.barrier()?;
    Ok(dir)
}

fn write_state(folder: &Path, step: u64, contents: &Contents) -> Result<(), TrainerError> {
    let skipped = |part: &SnapshotPart| (part.name.to_owned(), part.stepper.skipped());
    let state = State {
        format_version: FORMAT_VERSION,
        step,
        skipped: contents.parts.iter().map(skipped).collect(),
        stage: contents.state.clone(),
    };
    Ok(write_json(&folder.join("training/state.json"), &state)?)
}

/// Bytes that a snapshot of `parts` takes at most.
pub fn snapshot_bytes(contents: &Contents) -> u64 {
    let part_bytes = |part: &SnapshotPart| {
        let own: Vec<Tensor> = part.pieces().into_values().map(|p| p.tensor).collect();
        let slices = part.stepper.division().slices() as u64;
        trained_bytes(part.model, contents.tokenizer) + slices * data_bytes(&own)
    };
    contents.parts.iter().map(part_bytes).sum()
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
        read_into(&training, part.name, &pieces(part.stepper, ema))?;
        part.stepper.restored(state.skipped[part.name])?;
    }
    Ok(state.stage)
}

impl SnapshotPart<'_> {
    fn pieces(&self) -> BTreeMap<String, Piece> {
        pieces(self.stepper, self.ema)
    }
}

/// The optimizer's state and the averages, by key.
fn pieces(stepper: &Stepper, ema: Option<&Ema>) -> BTreeMap<String, Piece> {
    let division = stepper.division();
    let slices: BTreeMap<&str, (&[i64], usize)> = stepper.optimizer().slices().collect();
    let mut tensors = stepper.optimizer().state();
    tensors.extend(ema.map(Ema::state).into_iter().flatten());
    let piece = |(key, tensor): (String, Tensor)| {
        let param = key.rsplit_once('.').map_or("", |(param, _)| param);
        let slice = slices.get(param).filter(|_| !tensor.size().is_empty());
        let piece = match slice {
            Some((shape, start)) if division.slices() > 1 => Piece {
                tensor,
                shape: shape.to_vec(),
                start: Some(*start),
            },
            _ => Piece {
                shape: tensor.size(),
                tensor,
                start: None,
            },
        };
        (key, piece)
    };
    tensors.into_iter().map(piece).collect()
}
