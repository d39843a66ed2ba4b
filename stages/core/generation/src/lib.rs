//! Sampling from a language model.
//!
//! In: a model with a token head, the token ids of prompts ([`Request`]) and [`SamplingOptions`].
//! Out: a [`Sample`] per request, in order: the tokens, and the log-probability of each under the
//! distribution that it was sampled from; where a scalar head stands on the model's trunk, also its numbers.
//!
//! **Architecture invariant.** This crate knows neither text nor rewards: prompts come as ids and samples
//! leave as ids. A sample is a function of model, prompt, options and the request's `episode` alone: batch
//! size, batch mates and the order of requests change nothing, since the token at position `t`
//! is the inverse CDF at one number made from the key (seed, purpose, episode, t).
//!
//! Reading order: [`options`] (what may be asked), `sampler` (one token), [`decode`] (the loop over
//! rows with their KV cache), `recorded` (its steps on a GPU), [`beams`] (the likeliest responses in place of samples).

pub mod beams;
pub mod decode;
pub mod options;
mod recorded;
mod sampler;

pub use beams::{BeamOptions, beam_search};
pub use decode::{generate, generate_with_values};
pub use options::{Finish, GenerationError, Request, Sample, SamplingOptions};
