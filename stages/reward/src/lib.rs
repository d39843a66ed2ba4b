//! Reward-model training on ranked comparisons (Ouyang et al. 2022, section 3.5 and C.2): all pairs of
//! a prompt's K responses are one batch element, with K forward passes.
//!
//! In: a language model whose trunk it starts from, and comparisons. Out: `final/`, a scalar model
//! (`...ForSequenceClassification`) with the lowest held-out loss, shifted so that demonstrations
//! score 0 on average.
//!
//! *Architecture invariant*: this crate knows of no other stage, and not who ranked the responses.
//!
//! Reading order: [`run`] (the loop), [`loss`], `data`, `evaluate`.

mod data;
mod evaluate;
pub mod loss;
mod run;

pub use run::run;

/// Why reward-model training stopped.
#[derive(Debug, thiserror::Error)]
pub enum RewardError {
    /// The shared machinery of a stage failed.
    #[error(transparent)]
    Trainer(#[from] trainer::TrainerError),
    /// Comparisons or demonstrations could not be read.
    #[error(transparent)]
    Data(#[from] datasets::DataError),
    /// The model refused its input.
    #[error(transparent)]
    Judge(#[from] judge::JudgeError),
    /// libtorch or the model's backward pass failed.
    #[error(transparent)]
    Model(#[from] model::ModelError),
    /// There are fewer comparisons than an update or an evaluation needs.
    #[error(
        "the {split} split of {path} has {found} prompts with an ordered pair ({ties} pairs are \
         ties), at least {needed} are needed\n  hint: bring more comparisons, lower `batch`, or \
         choose another `overlong`",
        path = path.display()
    )]
    TooFew {
        /// `train` or `held-out`.
        split: &'static str,
        /// Where they were read.
        path: std::path::PathBuf,
        /// Prompts that are left.
        found: usize,
        /// Pairs without an order.
        ties: usize,
        /// Prompts needed.
        needed: usize,
    },
}
