//! Loading of shared libraries.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::TorchError;

const RTLD_NOW: c_int = 0x2;
const RTLD_GLOBAL: c_int = 0x100;

unsafe extern "C" {
    fn dlopen(filename: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(handle: *mut c_void, symbol: *const c_char) -> *mut c_void;
    fn dlerror() -> *const c_char;
}

/// A loaded library. It is never unloaded: its code may be running in other threads.
pub(crate) struct Library(*mut c_void);

// SAFETY: the handle is only read, and `dlsym` may be called from any thread.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

impl Library {
    /// Loads `path` with its symbols visible to libraries that are loaded later.
    pub(crate) fn open(path: &Path, hint: &'static str) -> Result<Self, TorchError> {
        let failed = |message: String| TorchError::Library {
            path: path.into(),
            message,
            hint,
        };
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|e| failed(e.to_string()))?;
        // SAFETY: `name` is NUL-terminated. The libraries opened here are libtorch's and our own;
        // their initialisers register kernels and have no other preconditions.
        let handle = unsafe { dlopen(name.as_ptr(), RTLD_NOW | RTLD_GLOBAL) };
        if handle.is_null() {
            Err(failed(last_error()))
        } else {
            Ok(Self(handle))
        }
    }

    /// The address of a function; an error when the library lacks it.
    pub(crate) fn symbol(&self, name: &CStr) -> Result<*mut c_void, String> {
        // SAFETY: the handle is from `dlopen` and never closed.
        let address = unsafe { dlsym(self.0, name.as_ptr()) };
        if address.is_null() {
            Err(last_error())
        } else {
            Ok(address)
        }
    }
}

fn last_error() -> String {
    // SAFETY: `dlerror` returns null or a NUL-terminated text that is valid until the next call in
    // this thread.
    unsafe {
        let text = dlerror();
        if text.is_null() {
            "unknown error of the loader".to_owned()
        } else {
            CStr::from_ptr(text).to_string_lossy().into_owned()
        }
    }
}
