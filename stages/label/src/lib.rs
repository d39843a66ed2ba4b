//! Labelling: a model responds K times to each prompt, and a labeler ranks the responses.
//!
//! In: a checkpoint and prompts. Out: `final/comparisons.parquet` and
//! `final/comparisons.heldout.parquet`, in the schema that the reward stage reads.
//!
//! *Architecture invariant*: this crate trains nothing, and knows of no stage but itself. A prompt's
//! responses depend on the seed and the prompt's place alone, so a run that was killed goes on with
//! the part that it was writing.
//!
//! Reading order: [`run()`], [`ranks`].

mod rank;
mod run;

pub use rank::ranks;
pub use run::run;

/// Why labelling stopped.
#[derive(Debug, thiserror::Error)]
pub enum LabelError {
    /// The shared machinery of a stage failed.
    #[error(transparent)]
    Trainer(#[from] trainer::TrainerError),
    /// Prompts could not be read, or comparisons not written.
    #[error(transparent)]
    Data(#[from] datasets::DataError),
    /// The tokenizer refused a text.
    #[error(transparent)]
    Tokenizer(#[from] datasets::TokenizerError),
    /// Sampling failed.
    #[error(transparent)]
    Generation(#[from] generation::GenerationError),
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] runtime::files::FileError),
    /// There are fewer prompts than were asked for.
    #[error(
        "the {split} split has {found} prompts, {wanted} are asked for\n  hint: lower \
         `{key}`, or import more prompts"
    )]
    TooFewPrompts {
        /// `train` or `held-out`.
        split: &'static str,
        /// Prompts there are.
        found: usize,
        /// Prompts wanted.
        wanted: usize,
        /// The key that says so.
        key: &'static str,
    },
}
