//! Decoder-only transformers of every family that `recipe` knows, with a head for tokens or for one
//! scalar; their weights as Hugging Face folders.
//!
//! In: shapes, folders, padded token ids. Out: hidden states, logits, log-probabilities, gradients
//! in the parameters' `.grad()`, folders.
//!
//! **Architecture invariant.** A model is a list of blocks, put together from the parts that its shape
//! names; no code here asks for a family. It knows nothing of losses of a stage, of optimizers or of
//! sampling; parameters carry Hugging Face's names and layouts (`recipe::tensors`), so that folders need no
//! conversion; what has other names or layouts (`ChatGLM`, GGUF) is renamed and put in order as it is read.
//!
//! Reading order: `block`, `linear`, `attention`, `unpadded`, `positions` and `quantized` (the arithmetic), `parameters` (tensors,
//! codes and adapters), `transformer` ([`Model`]), `bucket` and `shards` (a model divided among ranks), `derived` (models made of others), `tape` (the backward pass), `adapter` (what is trained beside frozen
//! weights), `cache` and `step` (decoding), `losses`, then `weights` (files of tensors), `read`, `folder`, `peft`,
//! `checkpoint` and `gguf`.

mod adapter;
mod attention;
mod block;
mod bucket;
mod cache;
mod cached;
mod checkpoint;
mod context;
mod derived;
mod draw;
mod error;
mod folder;
mod gguf;
mod input;
mod linear;
pub mod losses;
mod mlp;
mod parameters;
mod peft;
mod positions;
mod quantized;
mod read;
mod shards;
mod step;
mod tape;
mod transformer;
mod unpadded;
pub mod weights;

pub use bucket::{Bucket, Slice, block_of};
pub use cache::{CachedRow, KvCache};
pub use checkpoint::{Checkpoint, write_folder};
pub use error::ModelError;
pub use input::{Input, Wanted};
pub use losses::{response_logprobs, token_logprobs};
pub use recipe::tensors::Head;
pub use shards::Whole;
pub use step::StepTables;
pub use tape::{RecordOptions, Tape};
pub use transformer::Model;
