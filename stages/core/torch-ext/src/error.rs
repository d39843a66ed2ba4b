//! What can go wrong between Rust and libtorch.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum TorchError {
    /// libtorch threw.
    #[error("libtorch: {operation}: {message}")]
    Libtorch {
        /// What was asked of it.
        operation: &'static str,
        /// Its words.
        message: String,
    },
    /// Ranks did not get through to each other.
    #[error("libtorch: {operation}: {message}")]
    Communication {
        /// The collective operation.
        operation: &'static str,
        /// c10d's words.
        message: String,
    },
    /// Lists that belong together have different lengths.
    #[error("{operation}: {name} has {found} tensors, expected {expected}")]
    Lengths {
        /// What was called.
        operation: &'static str,
        /// The list.
        name: &'static str,
        /// Its length.
        found: usize,
        /// The length of the first list.
        expected: usize,
    },
    /// An argument has the wrong shape or type.
    #[error("{operation}: {name} is {found}, expected {expected}")]
    Argument {
        /// What was called.
        operation: &'static str,
        /// The argument.
        name: &'static str,
        /// Its shape and type.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// A GPU was asked for, and none can be used.
    #[error("device cuda cannot be used: {cause}\n  hint: {hint}")]
    CudaUnusable {
        /// Why.
        cause: String,
        /// What to do.
        hint: &'static str,
    },
    /// `auto` on a machine that has a GPU which torch cannot use.
    #[error(
        "device auto: this machine has an NVIDIA device ({evidence}), but torch cannot use it: {cause}\n  \
         hint: repair the driver, or say `--device cpu` to run on the processor on purpose"
    )]
    GpuIgnored {
        /// How we know of the device.
        evidence: String,
        /// Why it cannot be used.
        cause: String,
    },
    /// A shared library does not load.
    #[error("cannot load {path}: {message}\n  hint: {hint}")]
    Library {
        /// The library.
        path: PathBuf,
        /// The loader's words.
        message: String,
        /// What to do.
        hint: &'static str,
    },
    /// The word is no device.
    #[error("unknown device `{0}`\n  hint: known devices: auto, cpu, cuda")]
    UnknownDevice(String),
}
