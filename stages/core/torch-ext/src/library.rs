//! Questions about the libtorch that is loaded.

use std::path::PathBuf;

use crate::TorchError;
use crate::ffi::{self, check, take_text};

/// The version of the libtorch that is loaded, as `2.11.0`.
///
/// # Errors
/// When libtorch throws, or its build configuration does not name a version.
pub fn libtorch_version() -> Result<String, TorchError> {
    let mut text = std::ptr::null_mut();
    // SAFETY: `text` is a valid place for one pointer.
    check("show_config", unsafe {
        ffi::rlhf_show_config(&raw mut text)
    })?;
    let config = take_text(text);
    let version = config
        .split("TORCH_VERSION=")
        .nth(1)
        .and_then(|rest| rest.split(',').next());
    version
        .map(|v| v.trim().to_owned())
        .ok_or_else(|| TorchError::Libtorch {
            operation: "show_config",
            message: "the build configuration has no TORCH_VERSION".to_owned(),
        })
}

/// The folder that libtorch was loaded from.
///
/// # Errors
/// When the loader does not know.
pub fn libtorch_dir() -> Result<PathBuf, TorchError> {
    let mut text = std::ptr::null_mut();
    // SAFETY: `text` is a valid place for one pointer.
    check("dladdr", unsafe { ffi::rlhf_libtorch_path(&raw mut text) })?;
    let path = PathBuf::from(take_text(text));
    Ok(path.parent().map_or_else(PathBuf::new, PathBuf::from))
}

/// Sets the number of threads of one operation on the CPU. Sums may round differently with another
/// number.
pub fn set_threads(num_threads: usize) {
    tch::set_num_threads(num_threads as i32);
}

/// From now on glibc takes memory of this many bytes and more (64 KiB to 32 MiB) from the system for one tensor alone, and
/// gives it back as soon as the tensor is freed. False where another library allocates.
///
/// Otherwise the bound moves up to 32 MiB, and what is freed below stays in pieces into which the next tensor often does not
/// fit. Memory that is given back costs page faults when it is taken again.
pub fn give_back_tensors(from_bytes: usize) -> bool {
    #[cfg(target_env = "gnu")]
    {
        const M_MMAP_THRESHOLD: i32 = -3;
        let bytes = from_bytes.clamp(64 << 10, 32 << 20) as i32;
        // SAFETY: it takes two numbers and a lock of its own.
        unsafe { ffi::mallopt(M_MMAP_THRESHOLD, bytes) == 1 }
    }
    #[cfg(not(target_env = "gnu"))]
    {
        let _ = from_bytes;
        false
    }
}
