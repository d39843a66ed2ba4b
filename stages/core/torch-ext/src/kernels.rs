//! Which operators run: kernels of our own, or libtorch's in their place.

use std::ffi::c_void;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use tch::Device;

use crate::TorchError;
use crate::dynamic::Library;
use crate::ffi;

static PLAIN: AtomicBool = AtomicBool::new(false);
/// Where the kernels of `cpp/cuda` run.
static DEVICE_KERNELS: AtomicI32 = AtomicI32::new(NOWHERE);
const NOWHERE: i32 = 0;
const ON_CUDA: i32 = 1;
const ON_CPU: i32 = 2;
/// How many blocks of threads a device runs at once, about: a part of few rows is split up to that.
static MULTIPROCESSORS: AtomicI32 = AtomicI32::new(1);

/// The kernels' emulation, for tests.
const EMULATED: &str = "librlhf_emulated.so";
const EMULATED_HINT: &str = "it is built beside the worker, for tests; keep the two together";

/// From now on this process computes blocks, decoding and sampling with libtorch's operators, as on a device for
/// which there is no kernel: slower, and equal up to rounding. For comparisons.
pub fn use_plain_operators() {
    PLAIN.store(true, Ordering::Relaxed);
}

/// Whether [`use_plain_operators`] was called.
pub fn is_plain() -> bool {
    PLAIN.load(Ordering::Relaxed)
}

/// From now on tensors on the CPU go the GPU's way: its kernels run on the CPU, one thread after another. Very
/// slow; for tests where no GPU is.
///
/// # Errors
/// When `librlhf_emulated.so` is not there.
pub fn use_emulated_kernels() -> Result<(), TorchError> {
    let path = beside_executable(EMULATED);
    let library = Library::open(&path, EMULATED_HINT)?;
    install(&library, &path, ON_CPU, EMULATED_HINT)?;
    MULTIPROCESSORS.store(6, Ordering::Relaxed);
    Ok(())
}

/// Takes the kernels of `librlhf_cuda.so` into use.
pub(crate) fn use_device_kernels(
    library: &Library,
    path: &std::path::Path,
    hint: &'static str,
    multiprocessors: i32,
) -> Result<(), TorchError> {
    install(library, path, ON_CUDA, hint)?;
    MULTIPROCESSORS.store(multiprocessors, Ordering::Relaxed);
    Ok(())
}

fn install(
    library: &Library,
    path: &std::path::Path,
    device: i32,
    hint: &'static str,
) -> Result<(), TorchError> {
    let address =
        library
            .symbol(c"rlhf_device_kernels")
            .map_err(|message| TorchError::Library {
                path: path.into(),
                message,
                hint,
            })?;
    // SAFETY: the symbol is a function of this type in `cpp/cuda/kernels.cu`; the table that it returns
    // lives as long as the library, which is never unloaded.
    unsafe {
        let table: unsafe extern "C" fn() -> *const c_void = std::mem::transmute(address);
        ffi::rlhf_use_device_kernels(table(), device == ON_CPU);
    }
    DEVICE_KERNELS.store(device, Ordering::Relaxed);
    Ok(())
}

/// Whether a device's tensors go through the GPU's kernels: not where [plain ones](use_plain_operators) are
/// wanted.
pub fn has_device_kernels(device: Device) -> bool {
    let there = match device {
        Device::Cuda(_) => ON_CUDA,
        Device::Cpu => ON_CPU,
        _ => return false,
    };
    DEVICE_KERNELS.load(Ordering::Relaxed) == there && !is_plain()
}

pub(crate) fn multiprocessors() -> i64 {
    i64::from(MULTIPROCESSORS.load(Ordering::Relaxed))
}

/// A library beside the executable, above it (test executables lie in `deps/`), or in `lib/` beside `bin/`.
pub(crate) fn beside_executable(file: &str) -> PathBuf {
    let exe = std::env::current_exe().unwrap_or_default();
    let dir = exe.parent().unwrap_or(&exe);
    let candidates = [
        dir.join(file),
        dir.join("..").join(file),
        dir.join("../lib").join(file),
    ];
    candidates
        .iter()
        .find(|path| path.exists())
        .unwrap_or(&candidates[0])
        .clone()
}
