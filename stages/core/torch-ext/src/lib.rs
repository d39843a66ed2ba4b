//! What tch lacks: libtorch's fused `AdamW`, the backward pass from given gradients, log-probabilities
//! that keep no logits, the product with a matrix of few bits, attention
//! over a cache in blocks, sampling without tensors between, the same as kernels for GPUs, steps that are recorded
//! and repeated there, tensors straight from a mapped file, a device choice that never falls back in silence, CUDA
//! statistics, communication between ranks, tensors whose memory comes and goes.
//!
//! In: tensors and small options. Out: tensors, numbers, or a [`TorchError`] with libtorch's words.
//!
//! **Architecture invariant.** The only crate with `unsafe` and C++; its face is safe. It knows
//! libtorch and nothing of models, data or training.
//!
//! Reading order: `error`, `ffi` (every foreign declaration), `ops`, `kind`, `quantized`, `fused`, `packed`, `row_attention`, `cached_attention`, `sample`,
//! `kernels`, `device_attention`, `bytes`, `device`, `deterministic`, `cuda`, `graph`, `collectives`, `storage`.
//! The C++ lies in `cpp/`: operators for the CPU, and the border to those for GPUs (`device.h`), which are a library of
//! their own (`cpp/cuda`). Their kernels also compile for the CPU, where tests run them (`cpp/cuda/emulate.h`).

mod bytes;
mod cached_attention;
mod collectives;
pub mod cuda;
mod deterministic;
mod device;
mod device_attention;
mod dynamic;
mod error;
mod ffi;
mod fused;
mod graph;
mod kernels;
mod kind;
mod library;
mod ops;
mod packed;
mod quantized;
mod row_attention;
mod sample;
mod storage;

pub use bytes::{Layout, MappedFile, tensor_from_bytes};
pub use cached_attention::{CACHE_BLOCK, CachedOptions, CachedRows, cached_attention};
pub use collectives::{Group, Member, Pending, Reduction, Store};
pub use deterministic::{is_deterministic, sums_so_far, use_deterministic};
pub use device::{DeviceChoice, gpu_expected, num_cuda_devices, resolve_device};
pub use device_attention::{DeviceRows, WIDEST_DEVICE_HEAD, device_attention};
pub use error::TorchError;
pub use fused::{RowNorm, gelu_tanh, is_fusible, rotate, swiglu};
pub use graph::Graph;
pub use kernels::{has_device_kernels, is_plain, use_emulated_kernels, use_plain_operators};
pub use kind::wide_kind;
pub use library::{give_back_tensors, libtorch_dir, libtorch_version, set_threads};
pub use ops::{AdamWStep, backward, free_grad, fused_adamw, token_logprobs};
pub use packed::PackedMatrix;
pub use quantized::{Codes, quantized_linear};
pub use row_attention::{RowSpans, row_attention, serves_rows};
pub use sample::{Cuts, LARGEST_DEVICE_VOCABULARY, device_sample, sample};
pub use storage::Lent;
