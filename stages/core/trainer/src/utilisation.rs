//! Model FLOPs utilisation: how much of the device's arithmetic a step makes use of
//! (Chowdhery et al. 2022, appendix B).

use std::time::Instant;

use tch::{Device, Kind, Tensor};

/// Rounds of products that are timed; the fastest counts.
const ROUNDS: usize = 3;

/// What the device can do at most, as measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peak {
    /// Floating-point operations a second.
    pub flops_per_second: f64,
}

impl Peak {
    /// Times large square matrix products in this format: some 30 ms on two cores in f32.
    pub fn measure(device: Device, kind: Kind) -> Self {
        // A GPU is given several in a row, so that it does not wait for the next.
        let (size, products): (i64, u32) = if device.is_cuda() {
            (8192, 8)
        } else {
            (768, 1)
        };
        let _guard = tch::no_grad_guard();
        let a = scattered(size, device).to_kind(kind);
        let round = || {
            let started = Instant::now();
            let mut product = a.matmul(&a);
            for _ in 1..products {
                product = a.matmul(&a);
            }
            // Reading one number waits for the device.
            let corner = product.double_value(&[0, 0]);
            (started.elapsed().as_secs_f64(), corner)
        };
        round();
        let fastest = (0..ROUNDS).map(|_| round().0).fold(f64::INFINITY, f64::min);
        Self {
            flops_per_second: f64::from(products) * 2.0 * (size as f64).powi(3) / fastest,
        }
    }

    /// The share of the peak that `flops` operations in `seconds` are (metric `mfu`).
    pub fn utilisation(self, flops: f64, seconds: f64) -> f64 {
        flops / seconds / self.flops_per_second
    }
}

/// A square of numbers that differ as random ones do: a GPU is slower with those than with ones, which would show more than
/// any model gets. libtorch's generator, which is the whole process', is left alone.
fn scattered(size: i64, device: Device) -> Tensor {
    let numbers = Tensor::arange(size * size, (Kind::Float, device)) * 12.9898;
    numbers.sin().view([size, size])
}
