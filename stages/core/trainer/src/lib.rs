//! The mechanics of a training step, shared by every stage: the optimizer and its schedule, gradient
//! accumulation, clipping and the finite check, moving averages, chunked token losses, and the
//! snapshots from which a run continues.
//!
//! In go a [`model::Model`], a [`recipe::plan::OptimizerPlan`] and gradients; out come updated
//! parameters, metrics, and folders that appear whole or not at all: [`Snapshot`s](snapshot) (a run
//! that can be continued) and checkpoints (weights that can be used, written by [`finish()`]).
//!
//! **Architecture invariant.** This crate knows nothing of any stage: no loss but that of predicted
//! tokens, no choice of batches, no loop. A stage owns its loop and calls what is here. Nothing here draws
//! a random number.
//!
//! Reading order: [`schedule`], [`gradients`], [`adamw`], [`stepper`] (one update), [`mod@token_loss`] (one
//! micro-batch) and [`language`] (many), [`pretrain_text`], [`ema`], [`snapshot`] and [`retention`], [`mod@finish`], then
//! what ties a stage to its run folder: [`context`], [`persist`], [`progress`], [`utilisation`], and
//! [`session`] for the supervised stages.

pub mod adamw;
pub mod context;
pub mod ema;
mod error;
pub mod exchange;
pub mod finish;
mod folder;
pub mod gradients;
mod identity;
pub mod language;
pub mod memory;
pub mod persist;
pub mod pretrain_text;
pub mod progress;
mod rank_error;
pub mod ranks;
pub mod retention;
pub mod schedule;
pub mod session;
pub mod snapshot;
pub mod stepper;
mod tensor_file;
#[cfg(test)]
mod tests;
pub mod token_loss;
mod trained;
pub mod utilisation;

pub use adamw::AdamW;
pub use context::StageContext;
pub use datasets::LmRow;
pub use ema::Ema;
pub use error::TrainerError;
pub use exchange::Division;
pub use finish::finish;
pub use folder::ADAPTER;
pub use identity::Identity;
pub use language::{LmLoss, LmOptions, lm_backward, lm_evaluate};
pub use persist::Outcome;
pub use pretrain_text::PretrainText;
pub use progress::Progress;
pub use rank_error::RankError;
pub use ranks::{Patience, Ranks};
pub use retention::{latest_valid_snapshot, retain};
pub use schedule::learning_rate;
pub use session::{Session, num_steps};
pub use snapshot::{Contents, RestorePart, SnapshotPart, restore_snapshot, save_snapshot};
pub use stepper::{Stepper, Update};
pub use token_loss::{Targets, lm_micro_step, token_loss};
pub use trained::Trained;
pub use utilisation::Peak;
