//! Why PPO stopped.

use std::path::PathBuf;

/// Why PPO stopped.
#[derive(Debug, thiserror::Error)]
pub enum PpoError {
    /// The shared machinery of a stage failed.
    #[error(transparent)]
    Trainer(#[from] trainer::TrainerError),
    /// A model could not be loaded.
    #[error(transparent)]
    Model(#[from] model::ModelError),
    /// Prompts or text could not be read.
    #[error(transparent)]
    Data(#[from] datasets::DataError),
    /// The tokenizer refused a text.
    #[error(transparent)]
    Tokenizer(#[from] datasets::TokenizerError),
    /// Sampling failed.
    #[error(transparent)]
    Generation(#[from] generation::GenerationError),
    /// A reward model refused its input.
    #[error(transparent)]
    Judge(#[from] judge::JudgeError),
    /// libtorch failed.
    #[error(transparent)]
    Torch(#[from] torch_ext::TorchError),
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] runtime::files::FileError),
    /// The rollouts could not be put into columns.
    #[error("the rollouts do not fit their schema: {0}")]
    Arrow(#[from] arrow::error::ArrowError),
    /// The rollouts could not be encoded.
    #[error("the rollouts cannot be encoded: {0}")]
    Parquet(#[from] parquet::errors::ParquetError),
    /// Fewer prompts than an iteration needs.
    #[error(
        "{found} prompts are left in {path}, an iteration needs {batch}\n  hint: lower `batch`, \
         raise `max_prompt_tokens`, or bring more prompts",
        path = path.display()
    )]
    TooFewPrompts {
        /// Where they were read.
        path: PathBuf,
        /// Prompts there are.
        found: usize,
        /// Episodes per iteration.
        batch: usize,
    },
    /// Sampling and training disagree about the policy.
    #[error(
        "iteration {iteration}: sampled and recomputed log-probabilities differ by {gap:.3e} nats \
         on one token, at most {bound:.3e} is allowed\n  hint: the rollouts are not of the policy \
         that is trained; in bf16 raise `max_logprob_gap`, otherwise please report this"
    )]
    LogprobGap {
        /// The iteration.
        iteration: u64,
        /// The largest gap seen.
        gap: f64,
        /// `max_logprob_gap`.
        bound: f64,
    },
    /// The estimated KL divergence is negative beyond chance.
    #[error(
        "iteration {iteration}: the mean KL to the reference is {kl:.4} nats, more than three \
         standard errors below zero for the third iteration in a row\n  hint: a true KL is never \
         negative: the sampled distribution is not the one whose log-probabilities are used \
         (temperature, top-k or top-p on one side only)"
    )]
    NegativeKl {
        /// The iteration.
        iteration: u64,
        /// The mean of the k1 estimator.
        kl: f64,
    },
}
