//! What tch lacks: libtorch's fused `AdamW`, the backward pass from given gradients, log-probabilities
//! that keep no logits, the product with a matrix of few bits, attention
//! over a cache in blocks, sampling without tensors between, tensors straight from a mapped file, a device choice that never falls back in
//! silence, CUDA statistics.
//!
//! In: tensors and small options. Out: tensors, numbers, or a [`TorchError`] with libtorch's words.
//!
//! **Architecture invariant.** The only crate with `unsafe` and C++; its face is safe. It knows
//! libtorch and nothing of models, data or training.
//!
//! Reading order: `error`, `ffi` (every foreign declaration), `ops`, `quantized`, `fused`, `packed`, `cached_attention`, `sample`, `bytes`, `device`, `cuda`.
//! The C++ lies in `cpp/`; what needs CUDA headers is `cpp/cuda.cpp`, a library of its own.

mod bytes;
mod cached_attention;
pub mod cuda;
mod device;
mod dynamic;
mod error;
mod ffi;
mod fused;
mod library;
mod ops;
mod packed;
mod plain;
mod quantized;
mod sample;

pub use bytes::{Layout, MappedFile, tensor_from_bytes};
pub use cached_attention::{CACHE_BLOCK, CachedOptions, CachedRows, cached_attention};
pub use device::{DeviceChoice, gpu_expected, num_cuda_devices, resolve_device};
pub use error::TorchError;
pub use fused::{gelu_tanh, is_fusible, rms_norm, rotate, swiglu};
pub use library::{libtorch_dir, libtorch_version, set_threads};
pub use ops::{AdamWStep, backward, fused_adamw, token_logprobs};
pub use packed::PackedMatrix;
pub use plain::{is_plain, use_plain_operators};
pub use quantized::{Codes, quantized_linear};
pub use sample::{Cuts, sample};
