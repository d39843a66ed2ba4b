//! Which device a run uses. Never the CPU in silence on a machine with a GPU.

use std::path::Path;
use std::str::FromStr;
use std::sync::OnceLock;

use tch::Device;

use crate::dynamic::Library;
use crate::{TorchError, cuda, libtorch_dir};

/// What the user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first GPU where there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The first GPU, or an error.
    Cuda,
}

impl FromStr for DeviceChoice {
    type Err = TorchError;

    fn from_str(word: &str) -> Result<Self, TorchError> {
        match word {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda),
            _ => Err(TorchError::UnknownDevice(word.to_owned())),
        }
    }
}

/// The device to run on. Call it before anything else of libtorch: libtorch asks once whether CUDA
/// exists, and remembers the answer from before `libtorch_cuda.so` was loaded.
///
/// # Errors
/// `cuda` without a usable GPU; `auto` where the machine has a GPU that torch cannot use.
pub fn resolve_device(choice: DeviceChoice) -> Result<Device, TorchError> {
    if choice == DeviceChoice::Cpu {
        return Ok(Device::Cpu);
    }
    let evidence = gpu_evidence(Path::new("/"));
    match (usable_gpus(), choice, evidence) {
        (Ok(_), ..) => cuda::load().map(|_| Device::Cuda(0)),
        (Err(cause), DeviceChoice::Cuda, evidence) => Err(TorchError::CudaUnusable {
            cause,
            hint: if evidence.is_some() {
                "`nvidia-smi` shows the driver; CUDA 13 needs driver 580 or newer"
            } else {
                "this machine shows no NVIDIA device; say `--device cpu`"
            },
        }),
        (Err(cause), _, Some(evidence)) => Err(TorchError::GpuIgnored { evidence, cause }),
        (Err(_), _, None) => Ok(Device::Cpu),
    }
}

/// True where the machine shows an NVIDIA device or driver, usable or not.
pub fn gpu_expected() -> bool {
    gpu_evidence(Path::new("/")).is_some()
}

/// The number of GPUs that torch can use; 0 where it cannot use any.
pub fn num_cuda_devices() -> usize {
    usable_gpus().unwrap_or(0)
}

/// The number of GPUs, at least 1, or why there is none.
fn usable_gpus() -> Result<usize, String> {
    load_libtorch_cuda().as_ref().map_err(Clone::clone)?;
    if tch::Cuda::is_available() {
        return Ok(tch::Cuda::device_count().max(1) as usize);
    }
    Err(cuda::why_unavailable())
}

/// The linker drops `libtorch_cuda.so` (nothing refers to its symbols), so it is loaded here; its
/// initialisers register the CUDA kernels.
fn load_libtorch_cuda() -> &'static Result<(), String> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    LOADED.get_or_init(|| {
        let dir = libtorch_dir().map_err(|e| e.to_string())?;
        let path = dir.join("libtorch_cuda.so");
        if !path.exists() {
            return Err(format!(
                "{} does not exist: this libtorch is for CPUs alone",
                path.display()
            ));
        }
        Library::open(&path, "")
            .map(drop)
            .map_err(|error| match error {
                TorchError::Library { message, .. } => message,
                other => other.to_string(),
            })
    })
}

/// Signs of an NVIDIA device under `root` (`/`, but for tests).
fn gpu_evidence(root: &Path) -> Option<String> {
    let driver = root.join("proc/driver/nvidia/version");
    if driver.exists() {
        return Some(driver.display().to_string());
    }
    let entries = std::fs::read_dir(root.join("dev")).ok()?;
    let mut nodes: Vec<String> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| {
            let number = name.strip_prefix("nvidia");
            number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        })
        .collect();
    nodes.sort();
    nodes
        .first()
        .map(|name| root.join("dev").join(name).display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_name_devices() {
        assert_eq!(
            "cuda".parse::<DeviceChoice>().ok(),
            Some(DeviceChoice::Cuda)
        );
        let error = "gpu".parse::<DeviceChoice>().expect_err("no device");
        assert!(error.to_string().contains("auto, cpu, cuda"), "{error}");
    }

    #[test]
    fn evidence_is_a_numbered_node_or_a_driver() {
        let root = std::env::temp_dir().join(format!("torch-ext-evidence-{}", std::process::id()));
        std::fs::create_dir_all(root.join("dev")).expect("temporary folder");
        assert_eq!(gpu_evidence(&root), None);
        std::fs::write(root.join("dev/nvidia-caps"), "").expect("write");
        assert_eq!(gpu_evidence(&root), None, "no device by itself");
        std::fs::write(root.join("dev/nvidia1"), "").expect("write");
        assert!(gpu_evidence(&root).is_some_and(|e| e.ends_with("dev/nvidia1")));
        std::fs::create_dir_all(root.join("proc/driver/nvidia")).expect("temporary folder");
        std::fs::write(root.join("proc/driver/nvidia/version"), "").expect("write");
        assert!(gpu_evidence(&root).is_some_and(|e| e.ends_with("nvidia/version")));
        std::fs::remove_dir_all(root).expect("clean up");
    }

    #[test]
    fn auto_agrees_with_the_machine() {
        let resolved = resolve_device(DeviceChoice::Auto);
        match (gpu_evidence(Path::new("/")), num_cuda_devices()) {
            (_, 1..) => assert_eq!(resolved.expect("a usable GPU"), Device::Cuda(0)),
            (None, 0) => {
                assert_eq!(resolved.expect("no GPU"), Device::Cpu);
                let error = resolve_device(DeviceChoice::Cuda)
                    .expect_err("no GPU")
                    .to_string();
                assert!(
                    error.contains("cannot be used") && error.contains("hint"),
                    "{error}"
                );
            }
            (Some(_), 0) => {
                let error = resolved
                    .expect_err("an unusable GPU is an error")
                    .to_string();
                assert!(error.contains("hint: repair"), "{error}");
            }
        }
    }
}
