//! Work of a GPU that is recorded once and queued again in one go: a CUDA graph.

use tch::Device;

use crate::TorchError;
use crate::cuda::{self, Cuda, Recorded};

/// Recorded work. It reads and writes the memory that it was recorded with, and owns what it needs in between.
#[derive(Debug)]
pub struct Graph {
    recorded: Recorded,
}

impl Graph {
    /// Records what `body` queues on `device`; nothing of it runs yet. `body` must neither wait for the device nor
    /// copy from or to the host, and tensors that it makes must not outlive it.
    ///
    /// # Errors
    /// CUDA's, as for work that cannot be recorded.
    ///
    /// # Panics
    /// When the device is no GPU.
    pub fn record(device: Device, body: impl FnOnce()) -> Result<Self, TorchError> {
        let Device::Cuda(index) = device else {
            panic!("{device:?} records nothing")
        };
        let recorded = library()?.record(index, body)?;
        Ok(Self { recorded })
    }

    /// Queues all of it.
    ///
    /// # Errors
    /// CUDA's.
    pub fn replay(&self) -> Result<(), TorchError> {
        library()?.replay(&self.recorded)
    }
}

fn library() -> Result<&'static Cuda, TorchError> {
    cuda::load()?.ok_or_else(|| TorchError::CudaUnusable {
        cause: "no GPU can be used".to_owned(),
        hint: "say `--device cpu`",
    })
}
