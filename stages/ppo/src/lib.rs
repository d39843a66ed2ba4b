//! Proximal policy optimisation from a reward model (Ouyang et al. 2022, section 3.5 and C.4).
//!
//! In: an SFT checkpoint (policy and reference), reward models (the first that reads the policy's ids is
//! also where the value model starts; one with a tokenizer of its own is shown the text), prompts, and
//! text for PPO-ptx. Out: `final/` (the policy, or its moving average),
//! `final-raw/` where the average is on, `final/value/` (also where it is a head on the policy's trunk: a model that can
//! be read alone), every iteration's rollouts in Parquet, and
//! the metrics.
//!
//! *Architecture invariant*: this crate knows of no other stage; how a batch is padded, sampled,
//! differentiated or stepped is the business of the crates below. All its randomness is keyed by
//! (seed, episode, token), so a run that was killed goes on as if it had not been.
//!
//! Reading order: [`run`] (the loop: collect, score, shape, estimate, update, observe), [`rollout`],
//! [`scoring`], [`advantage`], [`update`], [`backward`], [`loss`], [`evaluate`], [`record`].

pub mod advantage;
pub mod backward;
pub mod data;
mod error;
pub mod evaluate;
pub mod kl;
pub mod loss;
pub mod record;
pub mod rollout;
mod run;
pub mod scoring;
pub mod update;

pub use error::PpoError;
pub use run::run;
