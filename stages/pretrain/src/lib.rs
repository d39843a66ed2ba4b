//! Base pretraining over packed text: on next tokens, on masked tokens (BERT) or on blanks to be filled
//! in (GLM).
//!
//! In: text and a tokenizer. Out: `final/`, a language model as a Hugging Face folder, and the loss per
//! predicted token (causal: also per byte) on held-out text, whose hidden tokens are the same in every
//! evaluation.
//!
//! *Architecture invariant*: this crate knows of no other stage. The rows of an update, and what is hidden
//! of them, are a function of (seed, step), so a run that was killed goes on as if it had not been.
//!
//! Reading order: [`run`] (the loop), `data` (rows of the token stream as tasks; `datasets::objective` makes
//! them).

mod data;
mod run;

pub use run::run;

/// Why pretraining stopped.
#[derive(Debug, thiserror::Error)]
pub enum PretrainError {
    /// The shared machinery of a stage failed.
    #[error(transparent)]
    Trainer(#[from] trainer::TrainerError),
    /// Text could not be read.
    #[error(transparent)]
    Data(#[from] datasets::DataError),
    /// The tokenizer lacks what the objective needs.
    #[error(transparent)]
    Tokenizer(#[from] datasets::TokenizerError),
    /// The text fills no update, or no evaluation.
    #[error(
        "the {split} text in {path} fills {rows} rows of {context} tokens, at least {needed} are \
         needed\n  hint: bring more text, or lower `batch` or `context`",
        path = path.display()
    )]
    TooLittleText {
        /// `train` or `held-out`.
        split: &'static str,
        /// Where it was read.
        path: std::path::PathBuf,
        /// Rows it fills.
        rows: usize,
        /// Tokens per row.
        context: usize,
        /// Rows needed.
        needed: usize,
    },
    /// The tokenizer makes ids that the model has no embedding for.
    #[error(
        "the tokenizer has {tokens} tokens, the model only {vocab_size}\n  hint: set the model's \
         `vocab_size` to at least {tokens}"
    )]
    Vocabulary {
        /// Tokens of the tokenizer.
        tokens: usize,
        /// Rows of the embedding.
        vocab_size: usize,
    },
}
