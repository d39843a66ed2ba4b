//! Evaluation of language models on held-out prompts: gold score, KL to a reference, and whether the
//! text was sacrificed for the score.
//!
//! In: models with one tokenizer, prompts, held-out text. Out: a [`ModelReport`](recipe::request::ModelReport) of each model.
//!
//! *Architecture invariant*: this crate trains nothing and knows of no stage. Every model is sampled
//! with the same random numbers.
//!
//! Reading order: [`evaluate()`]; the checks of the text itself are [`judge::text`].

mod evaluate;

pub use evaluate::{Evaluation, Sampled, evaluate, sample};

/// Why an evaluation stopped.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// The tokenizer refused a text.
    #[error(transparent)]
    Tokenizer(#[from] datasets::TokenizerError),
    /// Sampling failed.
    #[error(transparent)]
    Generation(#[from] generation::GenerationError),
    /// A forward pass failed.
    #[error(transparent)]
    Trainer(#[from] trainer::TrainerError),
}
