//! Model FLOPs utilisation: how much of the device's arithmetic a step makes use of
//! (Chowdhery et al. 2022, appendix B).

use std::time::Instant;

use tch::{Device, Kind, Tensor};

/// Products that are timed; the fastest counts.
const TRIALS: usize = 3;

/// What the device can do at most, as measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peak {
    /// Floating-point operations a second.
    pub flops_per_second: f64,
}

impl Peak {
    /// Times a large square matrix product in this format: less than 0.1 s on two cores.
    pub fn measure(device: Device, kind: Kind) -> Self {
        let size: i64 = if device.is_cuda() { 8192 } else { 1024 };
        let _guard = tch::no_grad_guard();
        let a = Tensor::ones([size, size], (kind, device));
        let product = || {
            let started = Instant::now();
            // Reading one number waits for the device.
            let corner = a.matmul(&a).double_value(&[0, 0]);
            (started.elapsed().as_secs_f64(), corner)
        };
        product();
        let fastest = (0..TRIALS)
            .map(|_| product().0)
            .fold(f64::INFINITY, f64::min);
        Self {
            flops_per_second: 2.0 * (size as f64).powi(3) / fastest,
        }
    }

    /// The share of the peak that `flops` operations in `seconds` are (metric `mfu`).
    pub fn utilisation(self, flops: f64, seconds: f64) -> f64 {
        flops / seconds / self.flops_per_second
    }
}
