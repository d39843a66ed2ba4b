//! Supervised fine-tuning on demonstrations (Ouyang et al. 2022, C.1): the loss of the assistant's
//! turns alone, EOS included.
//!
//! Optionally a share of each batch is pretraining text (C.3: the model that PPO starts from).
//!
//! In: a base model and demonstrations. Out: `final/`, the checkpoint with the lowest held-out loss.
//!
//! *Architecture invariant*: this crate knows of no other stage. The examples of an update are a
//! function of (seed, step), so a run that was killed goes on as if it had not been.
//!
//! Reading order: [`run`] (the loop), `data` (masked dialogues).

mod data;
mod run;

pub use run::run;

/// Why fine-tuning stopped.
#[derive(Debug, thiserror::Error)]
pub enum SftError {
    /// The shared machinery of a stage failed.
    #[error(transparent)]
    Trainer(#[from] trainer::TrainerError),
    /// Demonstrations could not be read.
    #[error(transparent)]
    Data(#[from] datasets::DataError),
    /// There are fewer demonstrations than an update or an evaluation needs.
    #[error(
        "the {split} split of {path} has {found} demonstrations, at least {needed} are needed\n  \
         hint: bring more, lower `batch`, or choose another `overlong`",
        path = path.display()
    )]
    TooFew {
        /// `train` or `held-out`.
        split: &'static str,
        /// Where they were read.
        path: std::path::PathBuf,
        /// Demonstrations that are left.
        found: usize,
        /// Demonstrations needed.
        needed: usize,
    },
}
