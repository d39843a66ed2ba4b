//! `rlhf-worker probe`: what libtorch and devices there are.

use anyhow::Result;
use recipe::request::{GpuReport, ProbeReport};
use runtime::events::{Event, emit};

/// Prints a [`ProbeReport`].
pub fn run() -> Result<()> {
    let extension = torch_ext::cuda::load();
    let mut gpus = Vec::new();
    if let Ok(Some(cuda)) = &extension {
        for index in 0..cuda.device_count()? {
            let properties = cuda.properties(index)?;
            let (major, minor) = properties.capability;
            gpus.push(GpuReport {
                name: properties.name,
                capability: format!("{major}.{minor}"),
                memory_bytes: properties.total_bytes,
            });
        }
    }
    let report = ProbeReport {
        libtorch_version: torch_ext::libtorch_version()?,
        libtorch_dir: torch_ext::libtorch_dir()?,
        num_threads: tch::get_num_threads() as usize,
        cuda_problem: crate::compute::device("cuda")
            .err()
            .map(|error| format!("{error:#}")),
        gpu_expected: torch_ext::gpu_expected(),
        extension_problem: extension.err().map(|error| format!("{error:#}")),
        gpus,
    };
    emit(&Event::Output {
        line: serde_json::to_string(&report)?,
    });
    Ok(())
}
