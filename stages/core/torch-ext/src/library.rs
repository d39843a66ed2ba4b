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
