//! Decoder-only transformers of the GPT-2 and Llama families, with a head for tokens or for one
//! scalar; their weights as Hugging Face folders.
//!
//! In: shapes, folders, padded token ids. Out: hidden states, logits, log-probabilities, gradients
//! in the parameters' `.grad()`, folders.
//!
//! **Architecture invariant.** A model is a list of blocks. It knows nothing of losses of a stage,
//! of optimizers or of sampling; parameters carry Hugging Face's names and layouts, so that no
//! converter exists.
//!
//! Reading order: `layout` (every tensor's name and shape), `block` and `attention` (the
//! arithmetic), `transformer` ([`Model`]), `tape` (the backward pass), `cache` (decoding), `losses`,
//! then `weights`, `folder` and `checkpoint` (files).

mod attention;
mod block;
mod cache;
mod checkpoint;
mod error;
mod folder;
mod input;
mod layout;
pub mod losses;
mod tape;
mod transformer;
pub mod weights;

pub use cache::KvCache;
pub use checkpoint::{Checkpoint, write_folder};
pub use error::ModelError;
pub use input::Input;
pub use layout::{Head, Init, TensorSpec, tensors};
pub use losses::{response_logprobs, token_logprobs};
pub use tape::{RecordOptions, Tape};
pub use transformer::Model;
