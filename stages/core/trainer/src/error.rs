//! What can go wrong while training, saving and continuing.

use std::path::PathBuf;

use crate::rank_error::RankError;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum TrainerError {
    /// A file could not be written or read, or the disk is full.
    #[error(transparent)]
    File(#[from] runtime::files::FileError),
    /// A folder's manifest is unreadable or does not match its files.
    #[error(transparent)]
    Manifest(#[from] runtime::manifest::ManifestError),
    /// A model could not be read, written or run.
    #[error(transparent)]
    Model(#[from] model::ModelError),
    /// A tokenizer could not be read or written.
    #[error(transparent)]
    Tokenizer(#[from] datasets::TokenizerError),
    /// A dataset could not be read.
    #[error(transparent)]
    Data(#[from] datasets::DataError),
    /// An operation that tch lacks failed.
    #[error(transparent)]
    Torch(#[from] torch_ext::TorchError),
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] tch::TchError),
    /// The loss or a gradient is NaN or infinite; nothing was updated.
    #[error(
        "step {step}: loss {loss}, gradient norm {grad_norm}; first tensor with a non-finite gradient: \
         {tensor}\n  hint: this update was not applied ({skipped} of {allowed} allowed skips used); \
         lower the learning rate, lengthen the warm-up, look at the batch (nonfinite-NNNNNN.json in the stage folder), or allow a few \
         such updates with `nonfinite = {{ skip = N }}`",
        tensor = tensor.as_deref().unwrap_or("none (the loss alone, or the norm overflowed)")
    )]
    NonFinite {
        /// The step, counted from 0.
        step: u64,
        /// Sum of the losses reported for this update ([`crate::Stepper::observe_loss`]).
        loss: f64,
        /// Global gradient norm before clipping.
        grad_norm: f64,
        /// Name of the first parameter, in alphabetical order, whose gradient is not finite.
        tensor: Option<String>,
        /// Updates skipped so far.
        skipped: u64,
        /// Skips allowed.
        allowed: u64,
    },
    /// A parameter took no part in the backward pass.
    #[error(
        "step {step}: parameter {name} has no gradient\n  hint: run a forward and backward pass on every \
         parameter before the update"
    )]
    NoGradient {
        /// The step.
        step: u64,
        /// The parameter.
        name: String,
    },
    /// A snapshot's state is of another stage, or of another version.
    #[error(
        "{path} does not hold this stage's state: {source}\n  hint: rerun the stage with --restart",
        path = path.display()
    )]
    StageState {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        source: serde_json::Error,
    },
    /// The newest snapshot cannot be trusted.
    #[error(
        "snapshot {path} is damaged: {source}\n  hint: delete this folder to continue from the snapshot \
         before it, or rerun the stage with --restart",
        path = path.display()
    )]
    DamagedSnapshot {
        /// The snapshot.
        path: PathBuf,
        /// What does not verify.
        source: runtime::manifest::ManifestError,
    },
    /// A folder that looks like a snapshot has no manifest.
    #[error(
        "snapshot {path} has no manifest.json\n  hint: this folder was not written by a training stage, or \
         it was changed; delete it to continue from the snapshot before it",
        path = path.display()
    )]
    NoManifest {
        /// The folder.
        path: PathBuf,
    },
    /// A snapshot's `training/state.json` is of another format or step.
    #[error("{path}: {what} is {found}, expected {expected}\n  hint: rerun the stage with --restart", path = path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// The field.
        what: &'static str,
        /// What the file says.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// A training state lacks a tensor, or has one too many.
    #[error(
        "{path}: tensor {name} is {problem}\n  hint: the snapshot is of another model, or a moving average \
         was switched on or off; rerun the stage with --restart",
        path = path.display()
    )]
    TensorName {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// "missing" or "unexpected".
        problem: &'static str,
    },
    /// The list of a training state's files is empty.
    #[error("{path} names no files\n  hint: rerun the stage with --restart", path = path.display())]
    NoSlices {
        /// The list.
        path: PathBuf,
    },
    /// A tensor of a training state has another shape or number format than the one it replaces.
    #[error(
        "{path}: tensor {name} is {found}, expected {expected}\n  hint: the snapshot is of another model or \
         was trained with another dtype (f32 and bf16 interchange, f64 does not)",
        path = path.display()
    )]
    TensorShape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Format and shape in the file.
        found: String,
        /// Format and shape of the running model.
        expected: String,
    },
    /// Other processes of the job failed, or cannot be reached.
    #[error(transparent)]
    Ranks(#[from] Box<RankError>),
}
