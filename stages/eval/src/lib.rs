//! Evaluation of language models: on held-out prompts (gold score, KL to a reference, and whether the
//! text was sacrificed for the score), and on long texts that hide a number.
//!
//! In: models with one tokenizer, prompts, held-out text. Out: a [`ModelReport`](recipe::request::ModelReport) of each model.
//!
//! *Architecture invariant*: this crate trains nothing and knows of no stage. Every model is sampled
//! with the same random numbers.
//!
//! Reading order: [`evaluate()`]; the checks of the text itself are [`judge::text`]; [`Retrieval`].

mod evaluate;
mod retrieval;

pub use evaluate::{Evaluation, Sampled, evaluate, sample};
pub use retrieval::Retrieval;

/// Why an evaluation stopped.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// The tokenizer refused a text.
    #[error(transparent)]
    Tokenizer(#[from] datasets::TokenizerError),
    /// Sampling failed.
    #[error(transparent)]
    Generation(#[from] generation::GenerationError),
    /// A text that hides a number does not fit, even without filler.
    #[error(
        "a text that hides a number takes at least {needed} tokens, {length} are given\n  hint: ask for \
         longer --lengths"
    )]
    TooShort {
        /// Tokens given.
        length: usize,
        /// Tokens needed.
        needed: usize,
    },
    /// The tokenizer joins the end of a question with the start of its answer.
    #[error(
        "the tokenizer does not keep {question:?} and {answer:?} apart\n  hint: retrieval needs a tokenizer \
         that splits at spaces"
    )]
    Joined {
        /// The question.
        question: String,
        /// The answer.
        answer: String,
    },
    /// A forward pass failed.
    #[error(transparent)]
    Trainer(#[from] trainer::TrainerError),
}
