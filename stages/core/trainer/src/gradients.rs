//! Gradients between the backward pass and the optimizer: accumulation, the global norm, clipping.

use std::collections::BTreeMap;

use tch::{Kind, Tensor, no_grad};

use crate::error::TrainerError;

/// The gradients of named parameters over the micro-batches of one update.
///
/// Parameters in f32 and f64 accumulate in autograd's own `.grad`. Parameters in bf16 (or f16) add each
/// micro-batch's gradient to an f32 buffer, since the sum of many small bf16 numbers loses them.
/// A `.grad` that was cleared to zeros and one that does not exist yet give the same sums (but for the
/// sign of a zero, which no later computation sees), so a resumed run may start without them.
#[derive(Debug)]
pub struct Gradients {
    params: Vec<(String, Tensor)>,
    buffers: Option<Vec<Tensor>>,
}

/// Whether parameters of this kind need f32 copies for accumulation and updates.
pub(crate) fn is_low_precision(kind: Kind) -> bool {
    matches!(kind, Kind::BFloat16 | Kind::Half)
}

impl Gradients {
    /// Gradients of `params`, in the map's order.
    pub fn new(params: &BTreeMap<String, Tensor>) -> Self {
        let low = params.values().any(|param| is_low_precision(param.kind()));
        let buffers = low.then(|| {
            let zeros = |param: &Tensor| param.detach().to_kind(Kind::Float).zeros_like();
            params.values().map(zeros).collect()
        });
        let params = params
            .iter()
            .map(|(name, param)| (name.clone(), param.shallow_clone()))
            .collect();
        Self { params, buffers }
    }

    /// Ends a micro-batch: moves low-precision gradients into the buffers and clears `.grad`.
    pub fn accumulate(&mut self) {
        let Some(buffers) = &mut self.buffers else {
            return;
        };
        no_grad(|| {
            for ((_, param), buffer) in self.params.iter_mut().zip(buffers) {
                let grad = param.grad();
                if grad.defined() {
                    let _ = buffer.g_add_(&grad);
                    param.zero_grad();
                }
            }
        });
    }

    /// The accumulated gradients, in order, sharing memory with what accumulates them.
    ///
    /// # Errors
    /// [`TrainerError::NoGradient`] where the backward pass never reached a parameter.
    pub fn collect(&self, step: u64) -> Result<Vec<Tensor>, TrainerError> {
        let mut grads = Vec::with_capacity(self.params.len());
        for (index, (name, param)) in self.params.iter().enumerate() {
            let grad = param.grad();
            if !grad.defined() {
                return Err(TrainerError::NoGradient {
                    step,
                    name: name.clone(),
                });
            }
            grads.push(match &self.buffers {
                Some(buffers) => buffers[index].shallow_clone(),
                None => grad,
            });
        }
        Ok(grads)
    }

    /// Sets every gradient to zero.
    pub fn clear(&mut self) {
        no_grad(|| {
            for (_, param) in &mut self.params {
                param.zero_grad();
            }
            for buffer in self.buffers.iter_mut().flatten() {
                let _ = buffer.zero_();
            }
        });
    }

    /// The first parameter, in the map's order, with a gradient that is not finite.
    pub fn first_non_finite(&self, grads: &[Tensor]) -> Option<String> {
        let finite = |grad: &Tensor| no_grad(|| grad.isfinite().all().int64_value(&[]) != 0);
        let index = grads.iter().position(|grad| !finite(grad))?;
        Some(self.params[index].0.clone())
    }
}

/// The 2-norm of all gradients together, computed in f64 (finite gradients never overflow it).
///
/// # Errors
/// Where libtorch fails.
pub fn global_norm(grads: &[Tensor]) -> Result<f64, TrainerError> {
    if grads.is_empty() {
        return Ok(0.0);
    }
    no_grad(|| {
        // Over all elements, whatever the dimensions: `linalg_norm` would give a matrix norm.
        let norm_of = |tensor: &Tensor| tensor.f_norm_scalaropt_dtype(2.0, Kind::Double);
        let norms = grads.iter().map(norm_of).collect::<Result<Vec<_>, _>>()?;
        let total = norm_of(&Tensor::f_stack(&norms, 0)?)?;
        Ok(total.f_double_value(&[])?)
    })
}

/// Scales gradients in place by `min(1, max_norm / (norm + 1e-6))`, where `norm` is their
/// [`global_norm`]: `torch.nn.utils.clip_grad_norm_`.
pub fn clip(grads: &mut [Tensor], norm: f64, max_norm: f64) {
    let scale = max_norm / (norm + 1e-6);
    if scale < 1.0 {
        no_grad(|| {
            for grad in grads {
                let _ = grad.g_mul_scalar_(scale);
            }
        });
    }
}
