//! Gradients between the backward pass and the optimizer: accumulation, the global norm, clipping.

use std::collections::BTreeMap;

use tch::{Kind, Tensor, no_grad};
use torch_ext::free_grad;

use crate::error::TrainerError;
use crate::exchange::{Division, Exchange};
use crate::trained::{Cut, Trained};

/// The gradients of named parameters over the micro-batches of one update, and over all ranks.
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
    /// Which parameters have had a gradient before.
    reached: Vec<bool>,
    /// Whether all were found to have had one, on some rank.
    is_checked: bool,
    /// Which parameters their models keep divided.
    kept: Vec<bool>,
    /// Sums over ranks, where there are several.
    exchange: Option<Exchange>,
}

/// Whether parameters of this kind need f32 copies for accumulation and updates.
pub(crate) fn is_low_precision(kind: Kind) -> bool {
    matches!(kind, Kind::BFloat16 | Kind::Half)
}

impl Gradients {
    /// Gradients of what is trained, in the map's order; all ranks have `cut` it alike.
    pub(crate) fn divided(trained: &Trained, cut: Cut, division: &Division) -> Self {
        let params = &trained.params;
        let low = params.values().any(|param| is_low_precision(param.kind()));
        let exchange = params.values().next().filter(|_| division.ranks.size() > 1);
        let exchange = exchange.map(|first| {
            let kind = if low { Kind::Float } else { first.kind() };
            Exchange::new(division.clone(), cut.buckets, kind, first.device())
        });
        Self {
            buffers: low.then(|| params.values().map(|_| None).collect()),
            reached: vec![false; params.len()],
            params: params
                .iter()
                .map(|(name, param)| (name.clone(), param.shallow_clone()))
                .collect(),
            kept: params
                .keys()
                .map(|name| trained.kept.contains_key(name))
                .collect(),
            is_checked: false,
            exchange,
        }
    }

    /// Says that the update comes after so many backward passes, so that the last one's gradients can travel while
    /// others are made.
    pub fn expect(&mut self, passes: usize) {
        if let Some(exchange) = &mut self.exchange {
            exchange.expect(passes);
        }
    }

    /// A block's backward pass has ended: its gradients of this micro-batch are whole.
    ///
    /// # Errors
    /// Where libtorch or another rank fails.
    pub fn block_done(&mut self, block: usize) -> Result<(), TrainerError> {
        let Some(exchange) = self.exchange.as_ref().filter(|e| e.is_due()) else {
            return Ok(());
        };
        for bucket in exchange.waiting(Some(block)) {
            self.send(bucket)?;
        }
        Ok(())
    }

    /// Ends a micro-batch (several ranks end as many): moves low-precision gradients into the buffers and frees `.grad`.
    ///
    /// # Errors
    /// Where libtorch or another rank fails.
    pub fn accumulate(&mut self) -> Result<(), TrainerError> {
        if self.buffers.is_some() {
            for index in 0..self.params.len() {
                self.take_up(index)?;
            }
        }
        if self.exchange.as_ref().is_some_and(Exchange::is_due) {
            self.send_all()?;
        }
        match &mut self.exchange {
            Some(exchange) => no_grad(|| exchange.end_pass()),
            None => Ok(()),
        }
    }

    /// Adds a parameter's gradient to its buffer, where it has one.
    fn take_up(&mut self, index: usize) -> Result<(), TrainerError> {
        let param = &self.params[index].1;
        let grad = param.grad();
        if !grad.defined() {
            return Ok(());
        }
        self.reached[index] = true;
        if let Some(buffers) = &mut self.buffers {
            no_grad(|| -> Result<(), TrainerError> {
                match &mut buffers[index] {
                    Some(buffer) => drop(buffer.f_add_(&grad)?),
                    none => *none = Some(grad.f_to_kind(Kind::Float)?),
                }
                Ok(free_grad(param)?)
            })?;
        }
        Ok(())
    }

    fn send_all(&mut self) -> Result<(), TrainerError> {
        let waiting: Vec<usize> = self.exchange.iter().flat_map(Exchange::not_sent).collect();
        waiting.into_iter().try_for_each(|bucket| self.send(bucket))
    }

    /// Sends a bucket's gradients on their way, and frees them here.
    fn send(&mut self, bucket: usize) -> Result<(), TrainerError> {
        let Some(indices) = self.exchange.as_ref().map(|e| e.params(bucket)) else {
            return Ok(());
        };
        let mut grads = BTreeMap::new();
        for index in indices {
            self.take_up(index)?;
            grads.extend(self.present(index).map(|grad| (index, grad)));
            free_grad(&self.params[index].1)?;
            if let Some(buffers) = &mut self.buffers {
                buffers[index] = None;
            }
        }
        match &mut self.exchange {
            Some(exchange) => no_grad(|| exchange.send(bucket, |index| grads.get(&index))),
            None => Ok(()),
        }
    }

    /// What was accumulated here of a parameter's gradient.
    fn present(&self, index: usize) -> Option<Tensor> {
        match &self.buffers {
            Some(buffers) => buffers[index].as_ref().map(Tensor::shallow_clone),
            None => Some(self.params[index].1.grad()).filter(Tensor::defined),
        }
    }

    /// The accumulated gradients, in order, sharing memory with what accumulates them: those of all ranks, of which
    /// this one has its slices where they are sharded. A parameter that this update's backward passes have not reached has
    /// zeros.
    ///
    /// # Errors
    /// [`TrainerError::NoGradient`] where no backward pass ever reached a parameter; where another rank fails.
    pub fn collect(&mut self, step: u64) -> Result<Vec<Tensor>, TrainerError> {
        for index in 0..self.params.len() {
            self.take_up(index)?;
        }
        self.check_reached(step)?;
        if self.exchange.is_some() {
            return self.collect_sums();
        }
        let zeros = |param: &Tensor| -> Result<Tensor, TrainerError> {
            let kind = self.buffers.as_ref().map_or(param.kind(), |_| Kind::Float);
            Ok(param.detach().f_zeros_like()?.f_to_kind(kind)?)
        };
        self.params
            .iter()
            .enumerate()
            .map(|(index, (_, param))| self.present(index).map_or_else(|| zeros(param), Ok))
            .collect()
    }

    /// Once, with the other ranks: a share of a batch need not reach every parameter.
    fn check_reached(&mut self, step: u64) -> Result<(), TrainerError> {
        if self.is_checked {
            return Ok(());
        }
        let mut reached: Vec<f64> = self.reached.iter().map(|r| f64::from(*r)).collect();
        if let Some(exchange) = &self.exchange {
            exchange.ranks().max(&mut reached)?;
        }
        if let Some(index) = reached.iter().position(|reached| *reached == 0.0) {
            let name = self.params[index].0.clone();
            return Err(TrainerError::NoGradient { step, name });
        }
        self.is_checked = true;
        Ok(())
    }

    fn collect_sums(&mut self) -> Result<Vec<Tensor>, TrainerError> {
        if self.exchange.as_ref().is_some_and(Exchange::has_kept) {
            self.send_all()?;
        }
        let Some(exchange) = &mut self.exchange else {
            return Ok(Vec::new());
        };
        no_grad(|| exchange.end_pass())?;
        let is_whole = exchange.is_whole();
        let sums = exchange.sums().into_iter().zip(&self.params);
        let shaped = |(sum, (_, param)): (Tensor, &(String, Tensor))| {
            if is_whole { sum.view_as(param) } else { sum }
        };
        Ok(sums.map(shaped).collect())
    }

    /// Makes parameters whole again of which each rank has changed its slices, but for those that stay divided.
    ///
    /// # Errors
    /// Where another rank fails.
    pub fn gather_params(&self) -> Result<(), TrainerError> {
        let Some(exchange) = &self.exchange else {
            return Ok(());
        };
        let param = |index: usize| (!self.kept[index]).then(|| &self.params[index].1);
        no_grad(|| exchange.gather(param))
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
        if let Some(exchange) = &mut self.exchange {
            exchange.clear();
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
