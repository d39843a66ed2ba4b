//! Gradients between the backward pass and the optimizer: accumulation, the global norm, clipping.

use std::collections::BTreeMap;

use tch::{Kind, Tensor, no_grad};
use torch_ext::free_grad;

use crate::error::TrainerError;

/// The gradients of named parameters over the micro-batches of one update.
///
/// Parameters in f32 and f64 accumulate in autograd's own `.grad`. Parameters in bf16 (or f16) add each
/// micro-batch's gradient to an f32 buffer, since the sum of many small bf16 numbers loses them.
/// Both are freed by the update that has used them, so that nothing of them is in memory while the next forward pass
/// fills it, nor, in PPO, beside those of another model.
#[derive(Debug)]
pub struct Gradients {
    params: Vec<(String, Tensor)>,
    /// Sums in f32, where parameters are in fewer bits; `None` before the first gradient.
    buffers: Option<Vec<Option<Tensor>>>,
    /// Every parameter has had a gradient before.
    all_reached: bool,
}

/// Whether parameters of this kind need f32 copies for accumulation and updates.
pub(crate) fn is_low_precision(kind: Kind) -> bool {
    matches!(kind, Kind::BFloat16 | Kind::Half)
}

impl Gradients {
    /// Gradients of `params`, in the map's order.
    pub fn new(params: &BTreeMap<String, Tensor>) -> Self {
        let low = params.values().any(|param| is_low_precision(param.kind()));
        let buffers = low.then(|| params.values().map(|_| None).collect());
        let params = params
            .iter()
            .map(|(name, param)| (name.clone(), param.shallow_clone()))
            .collect();
        Self {
            params,
            buffers,
            all_reached: false,
        }
    }

    /// Ends a micro-batch: moves low-precision gradients into the buffers and frees `.grad`.
    ///
    /// # Errors
    /// Where libtorch fails.
    pub fn accumulate(&mut self) -> Result<(), TrainerError> {
        let Some(buffers) = &mut self.buffers else {
            return Ok(());
        };
        no_grad(|| {
            for ((_, param), buffer) in self.params.iter().zip(buffers) {
                let grad = param.grad();
                if grad.defined() {
                    match buffer {
                        Some(buffer) => drop(buffer.f_add_(&grad)?),
                        None => *buffer = Some(grad.f_to_kind(Kind::Float)?),
                    }
                    free_grad(param)?;
                }
            }
            Ok(())
        })
    }

    /// The accumulated gradients, in order, sharing memory with what accumulates them. A parameter that this
    /// update's backward passes have not reached has zeros.
    ///
    /// # Errors
    /// [`TrainerError::NoGradient`] where no backward pass ever reached a parameter.
    pub fn collect(&mut self, step: u64) -> Result<Vec<Tensor>, TrainerError> {
        let mut grads = Vec::with_capacity(self.params.len());
        for (index, (name, param)) in self.params.iter().enumerate() {
            let grad = match &self.buffers {
                Some(buffers) => buffers[index].as_ref().map(Tensor::shallow_clone),
                None => Some(param.grad()).filter(Tensor::defined),
            };
            grads.push(match grad {
                Some(grad) => grad,
                None if self.all_reached => {
                    let kind = self.buffers.as_ref().map_or(param.kind(), |_| Kind::Float);
                    param.detach().f_zeros_like()?.f_to_kind(kind)?
                }
                None => {
                    let name = name.clone();
                    return Err(TrainerError::NoGradient { step, name });
                }
            });
        }
        self.all_reached = true;
        Ok(grads)
    }

    /// Frees every gradient.
    ///
    /// # Errors
    /// Where libtorch fails.
    pub fn clear(&mut self) -> Result<(), TrainerError> {
        for (_, param) in &self.params {
            free_grad(param)?;
        }
        for buffer in self.buffers.iter_mut().flatten() {
            *buffer = None;
        }
        Ok(())
    }

    /// The first parameter, in the map's order, with a gradient that is not finite.
    pub fn first_non_finite(&self, grads: &[Tensor]) -> Option<String> {
        let finite = |grad: &Tensor| no_grad(|| grad.isfinite().all().int64_value(&[]) != 0);
        let index = grads.iter().position(|grad| !finite(grad))?;
        Some(self.params[index].0.clone())
    }
}

/// Numbers of a gradient that are turned into f64 at once for its norm: libtorch makes a copy of them.
const NORM_NUMBERS: i64 = 1 << 20;

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
        let mut norms = Vec::new();
        for grad in grads {
            let flat = grad.f_reshape([-1])?;
            for part in flat.f_split(NORM_NUMBERS, 0)? {
                norms.push(norm_of(&part)?);
            }
        }
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
