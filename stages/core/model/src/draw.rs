//! Random numbers of libtorch's own generator: how parameters start, and dropout.

use std::sync::{Mutex, PoisonError};

use recipe::tensors::{Init, TensorSpec};
use tch::{Device, Kind, Tensor};

/// Runs `draw` on libtorch's generator, seeded with `key`. There is one generator for the whole
/// process, so only one thread may draw at a time.
pub(crate) fn seeded<T>(key: u64, draw: impl FnOnce() -> T) -> T {
    static GENERATOR: Mutex<()> = Mutex::new(());
    let _guard = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(key as i64);
    draw()
}

/// A tensor as it starts, f32 on the CPU.
pub(crate) fn draw(spec: &TensorSpec, seed: u64) -> Tensor {
    let options = (Kind::Float, Device::Cpu);
    let key = runtime::seeds::key(seed, &spec.name, 0, 0);
    match spec.init {
        Init::Zeros => Tensor::zeros(&spec.dims, options),
        Init::Ones => Tensor::ones(&spec.dims, options),
        Init::Normal(std) => seeded(key, || Tensor::randn(&spec.dims, options) * std),
        Init::Uniform(bound) => seeded(key, || {
            Tensor::empty(&spec.dims, options).uniform_(-bound, bound)
        }),
    }
}
