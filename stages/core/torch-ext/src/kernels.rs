//! Which operators run: kernels of our own, or libtorch's in their place.

use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError};

use tch::Device;

use crate::dynamic::Library;
use crate::ffi;
use crate::{CACHE_BLOCK, LARGEST_DEVICE_VOCABULARY, TorchError, WIDEST_DEVICE_HEAD};

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
/// When `librlhf_emulated.so` is not there or of other sources, or a GPU's kernels are in use.
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
    path: &Path,
    hint: &'static str,
    multiprocessors: i32,
) -> Result<(), TorchError> {
    install(library, path, ON_CUDA, hint)?;
    MULTIPROCESSORS.store(multiprocessors, Ordering::Relaxed);
    Ok(())
}

/// What a worker and a library of kernels must have in common; mirrors `Terms` in `cpp/device.h`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Terms {
    version: i64,
    widest_head: i64,
    largest_vocabulary: i64,
    cache_block: i64,
}

impl Terms {
    const OURS: Self = Self {
        version: 1,
        widest_head: WIDEST_DEVICE_HEAD as i64,
        largest_vocabulary: LARGEST_DEVICE_VOCABULARY as i64,
        cache_block: CACHE_BLOCK as i64,
    };

    fn named(self) -> [(&'static str, i64); 4] {
        [
            ("version", self.version),
            ("widest head", self.widest_head),
            ("largest vocabulary", self.largest_vocabulary),
            ("cache's block", self.cache_block),
        ]
    }

    /// In words, where they are not ours.
    fn check(self) -> Result<(), String> {
        let pairs = self.named().into_iter().zip(Self::OURS.named());
        for ((name, found), (_, expected)) in pairs {
            if found != expected {
                let ours = format!("this program's {expected}");
                return Err(format!("the {name} of its kernels is {found}, and {ours}"));
            }
        }
        Ok(())
    }
}

const REBUILD: &str = "build the worker and its libraries anew, together (`make build`)";
const ONE_AT_A_TIME: &str = "a process computes with the GPU's kernels or with their emulation; \
                             `RLHF_KERNELS=emulated` goes with `--device cpu`";

fn install(
    library: &Library,
    path: &Path,
    device: i32,
    hint: &'static str,
) -> Result<(), TorchError> {
    static TURN: Mutex<()> = Mutex::new(());
    let failed = |hint| {
        move |message| TorchError::Library {
            path: path.into(),
            message,
            hint,
        }
    };
    let address = library
        .symbol(c"rlhf_device_kernels")
        .map_err(failed(hint))?;
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let there = DEVICE_KERNELS.load(Ordering::Relaxed);
    if there != NOWHERE && there != device {
        let message = "other kernels are in use".to_owned();
        return Err(failed(ONE_AT_A_TIME)(message));
    }
    // SAFETY: the symbol is a function of this type in `cpp/cuda/kernels.cu`; the table that it returns
    // begins with its terms, and lives as long as the library, which is never unloaded.
    unsafe {
        let table: unsafe extern "C" fn() -> *const c_void = std::mem::transmute(address);
        let table = table();
        let terms = *table.cast::<Terms>();
        terms.check().map_err(failed(REBUILD))?;
        ffi::rlhf_use_device_kernels(table, device == ON_CPU);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_on_other_terms_are_refused() {
        assert_eq!(Terms::OURS.check(), Ok(()));
        let other = Terms {
            cache_block: 32,
            ..Terms::OURS
        };
        let words = "the cache's block of its kernels is 32, and this program's 16";
        assert_eq!(other.check(), Err(words.to_owned()));
    }
}
