//! How much memory a stage holds, and has held at most: what `rlhf plan` predicts, as measured.

use std::fs;

use tch::Device;
use torch_ext::cuda::{self, Cuda};

use crate::error::TrainerError;

/// Bytes held at most since the process began: on a GPU by tensors; on the CPU by the process as a whole, some
/// 380 MB of libtorch's own among them. `None` where the system does not say (it does on Linux).
///
/// # Errors
/// CUDA's.
pub fn peak_bytes(device: Device) -> Result<Option<u64>, TrainerError> {
    match of_gpu(device)? {
        Some((cuda, index)) => Ok(Some(cuda.peak_bytes(index)?)),
        None => Ok(of_process("VmHWM:")),
    }
}

/// What is in memory at the start of a stage, bytes, beside which its model and all else is counted. On a GPU the peak
/// begins anew.
///
/// # Errors
/// CUDA's.
pub fn begin_peak(device: Device) -> Result<Option<u64>, TrainerError> {
    if let Some((cuda, index)) = of_gpu(device)? {
        cuda.empty_cache()?;
        cuda.reset_peak(index)?;
    }
    peak_bytes(device)
}

/// Bytes held now: on a GPU by tensors, on the CPU by the process as a whole. `None` as for [`peak_bytes`].
///
/// # Errors
/// CUDA's.
pub fn resident_bytes(device: Device) -> Result<Option<u64>, TrainerError> {
    match of_gpu(device)? {
        Some((cuda, index)) => Ok(Some(cuda.memory(index)?.current_bytes as u64)),
        None => Ok(of_process("VmRSS:")),
    }
}

/// CUDA and the index of a GPU. Who computes on the CPU loads nothing for a GPU that the machine has beside it.
fn of_gpu(device: Device) -> Result<Option<(&'static Cuda, usize)>, TrainerError> {
    let Device::Cuda(index) = device else {
        return Ok(None);
    };
    Ok(cuda::load()?.map(|cuda| (cuda, index)))
}

fn of_process(name: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    line(&status, name)
}

/// A line of `proc_pid_status(5)`, in bytes.
fn line(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_read_where_there_is_one() {
        let status = "Name:\trlhf-worker\nVmHWM:\t  123456 kB\nVmRSS:\t  100 kB\n";
        assert_eq!(line(status, "VmHWM:"), Some(123_456 * 1024));
        assert_eq!(line(status, "VmRSS:"), Some(100 * 1024));
        assert_eq!(line("Name:\trlhf-worker\n", "VmHWM:"), None);
    }

    #[test]
    fn what_was_held_stays_in_the_peak() -> Result<(), TrainerError> {
        let before = peak_bytes(Device::Cpu)?;
        let size = 256 << 20;
        drop(tch::Tensor::ones([size], (tch::Kind::Uint8, Device::Cpu)));
        // Other tests hold memory too; the peak is at least this tensor.
        let after = peak_bytes(Device::Cpu)?;
        assert!(before.is_none() || after >= Some(size as u64), "{after:?}");
        Ok(())
    }
}
