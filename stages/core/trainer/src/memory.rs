//! How much memory a stage has held at most: what `rlhf plan` predicts, as measured.

use std::fs;

use tch::Device;

use crate::error::TrainerError;

/// Bytes held at most since the process began: on a GPU by tensors; on the CPU by the process as a whole, some
/// 0.45 GiB of libtorch's own among them. `None` where the system does not say (it does on Linux).
///
/// # Errors
/// CUDA's.
pub fn peak_bytes(device: Device) -> Result<Option<u64>, TrainerError> {
    if let (Device::Cuda(index), Some(cuda)) = (device, torch_ext::cuda::load()?) {
        return Ok(Some(cuda.peak_bytes(index)?));
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    Ok(high_water_mark(&status))
}

/// The line `VmHWM` of `proc_pid_status(5)`, in bytes.
fn high_water_mark(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_read_where_there_is_one() {
        let status = "Name:\trlhf-worker\nVmHWM:\t  123456 kB\nVmRSS:\t  100 kB\n";
        assert_eq!(high_water_mark(status), Some(123_456 * 1024));
        assert_eq!(high_water_mark("Name:\trlhf-worker\n"), None);
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
