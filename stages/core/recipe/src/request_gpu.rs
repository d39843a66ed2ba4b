//! What `rlhf gpu-check` asks of the worker, and the answers.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::request::Compute;
use crate::shape::ModelShape;

/// One measurement, or what is needed for one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum GpuRequest {
    /// What the device can do at most; the answer is a [`DeviceReport`].
    Device {
        /// The device, and the type of the numbers.
        compute: Compute,
    },
    /// Writes a model with random weights; no answer.
    RandomModel {
        /// Its shape.
        shape: Box<ModelShape>,
        /// A reward model, not a language model.
        scalar: bool,
        /// The folder of its tokenizer.
        tokenizer: PathBuf,
        /// The folder that is made.
        out: PathBuf,
        /// Where it is made, and the type of its weights.
        compute: Compute,
    },
    /// Samples from random prompts, no token of which ends a response; the answer is a [`SamplingReport`].
    Sample {
        /// A language model's folder.
        model: PathBuf,
        /// Prompts of a turn.
        prompts: usize,
        /// Tokens of each.
        prompt_tokens: usize,
        /// Tokens of each response.
        new_tokens: usize,
        /// Turns that are timed, after one that is not.
        turns: usize,
        /// How it is computed; `batch` rows are decoded together.
        compute: Compute,
    },
}

/// What a device can do at most, as measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceReport {
    /// A GPU's name; `None` on the CPU.
    pub name: Option<String>,
    /// A GPU's memory, bytes.
    pub memory_bytes: Option<u64>,
    /// Floating-point operations a second of a large product of random matrices.
    pub flops_per_second: f64,
    /// Bytes read and written a second by a large copy.
    pub bytes_per_second: f64,
}

/// How long sampling took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplingReport {
    /// Of each turn.
    pub seconds: Vec<f64>,
    /// The most that a GPU's tensors held, bytes; `None` on the CPU.
    pub peak_bytes: Option<u64>,
}
