//! `AdamW` (Loshchilov and Hutter 2019) over named tensors, with a state that can be saved.

use std::collections::BTreeMap;

use recipe::plan::OptimizerPlan;
use tch::{Kind, Tensor, no_grad};
use torch_ext::{AdamWStep, fused_adamw};

use crate::error::TrainerError;
use crate::gradients::is_low_precision;

/// The optimizer of one model. With `g` the gradient, `t` the parameter's own step count from 1:
///
/// ```text
/// w <- w - lr * weight_decay * w                  (tensors of two dimensions and more only)
/// m <- b1 * m + (1 - b1) * g          v <- b2 * v + (1 - b2) * g^2
/// w <- w - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
/// ```
///
/// For parameters in bf16 (or f16), `w`, `m` and `v` are f32 and the parameter is a rounded copy of `w`;
/// for f32 and f64 the parameter itself is `w`, and the moments have its format.
#[derive(Debug)]
pub struct AdamW {
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
    slots: Vec<Slot>,
}

/// One parameter with its state. All tensors have the parameter's shape (where the state is sharded, that of this rank's
/// slice of it) but `step`, a scalar f32 (what the fused kernel wants; exact up to 2^24 updates).
#[derive(Debug)]
struct Slot {
    name: String,
    /// The parameter's whole shape.
    shape: Vec<i64>,
    /// The number of the parameter that its slice begins with.
    start: usize,
    /// The parameter, or the slice of it, whose memory it shares.
    param: Tensor,
    master: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
}

impl Slot {
    /// For `param`, or the part of one of this `shape` that begins with the number `start`.
    fn new(name: &str, shape: Vec<i64>, param: Tensor, start: usize) -> Self {
        let master = if is_low_precision(param.kind()) {
            param.detach().to_kind(Kind::Float)
        } else {
            param.shallow_clone()
        };
        let zeros = || master.detach().zeros_like();
        Self {
            name: name.to_owned(),
            shape,
            start,
            exp_avg: zeros(),
            exp_avg_sq: zeros(),
            step: Tensor::zeros([] as [i64; 0], (Kind::Float, param.device())),
            param,
            master,
        }
    }

    fn decays(&self) -> bool {
        self.shape.len() >= 2
    }

    fn refresh_param(&mut self) {
        if is_low_precision(self.param.kind()) {
            self.param.copy_(&self.master);
        }
    }
}

impl AdamW {
    /// A fresh state for `params`; they are updated in place from now on.
    pub fn new(params: &BTreeMap<String, Tensor>, plan: &OptimizerPlan) -> Self {
        let whole = |(name, param)| (String::as_str(name), param, Tensor::shallow_clone(param), 0);
        Self::of_slices(params.iter().map(whole), plan)
    }

    /// The same, for slices of parameters: name, parameter, slice, and the number that this begins with.
    pub(crate) fn of_slices<'a>(
        slices: impl Iterator<Item = (&'a str, &'a Tensor, Tensor, usize)>,
        plan: &OptimizerPlan,
    ) -> Self {
        let slots =
            slices.map(|(name, param, slice, start)| Slot::new(name, param.size(), slice, start));
        let slots = no_grad(|| slots.collect());
        Self {
            betas: plan.betas,
            eps: plan.eps,
            weight_decay: plan.weight_decay,
            slots,
        }
    }

    /// One update with learning rate `lr`; `grads` are in the order of the parameter map, in the format
    /// of the master weights.
    ///
    /// # Errors
    /// Where libtorch refuses the tensors (another device, shape or format).
    ///
    /// # Panics
    /// Where there are not as many gradients as parameters.
    pub fn step(&mut self, grads: &[Tensor], lr: f64) -> Result<(), TrainerError> {
        assert_eq!(grads.len(), self.slots.len(), "one gradient per parameter");
        no_grad(|| {
            // Of a parameter of which this rank has no number, too: a snapshot has one count for all ranks.
            for slot in &self.slots {
                let _ = slot.step.shallow_clone().f_add_scalar_(1.0)?;
            }
            self.step_group(grads, lr, true)?;
            self.step_group(grads, lr, false)?;
            self.refresh_params();
            Ok(())
        })
    }

    fn step_group(&mut self, grads: &[Tensor], lr: f64, decays: bool) -> Result<(), TrainerError> {
        let group: Vec<(&Slot, &Tensor)> = self
            .slots
            .iter()
            .zip(grads)
            .filter(|(slot, _)| slot.decays() == decays && slot.param.numel() > 0)
            .collect();
        if group.is_empty() {
            return Ok(());
        }
        let all = |pick: fn(&Slot) -> &Tensor| -> Vec<Tensor> {
            group
                .iter()
                .map(|(slot, _)| pick(slot).shallow_clone())
                .collect()
        };
        let grads: Vec<Tensor> = group.iter().map(|(_, grad)| grad.shallow_clone()).collect();
        let steps = all(|slot| &slot.step);
        fused_adamw(
            &all(|slot| &slot.master),
            &grads,
            &all(|slot| &slot.exp_avg),
            &all(|slot| &slot.exp_avg_sq),
            &steps,
            &AdamWStep {
                lr,
                beta1: self.betas[0],
                beta2: self.betas[1],
                eps: self.eps,
                weight_decay: if decays { self.weight_decay } else { 0.0 },
            },
        )?;
        Ok(())
    }

    /// Writes `weights` into the parameters, rounded to their format.
    pub(crate) fn show(&mut self, weights: &BTreeMap<String, Tensor>) {
        no_grad(|| {
            for slot in &mut self.slots {
                let weight = weights.get(&slot.name);
                let weight = weight.unwrap_or_else(|| panic!("no weights of {}", slot.name));
                slot.param.copy_(weight);
            }
        });
    }

    /// The parameters' names with their whole shapes, and the number that what is trained here of each begins with.
    pub(crate) fn slices(&self) -> impl Iterator<Item = (&str, (&[i64], usize))> {
        self.slots
            .iter()
            .map(|slot| (slot.name.as_str(), (&slot.shape[..], slot.start)))
    }

    /// Weights in master precision, by parameter name. They share memory with the optimizer.
    pub fn masters(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.slots
            .iter()
            .map(|slot| (slot.name.as_str(), &slot.master))
    }

    /// The whole state by key: `<param>.master`, `<param>.exp_avg`, `<param>.exp_avg_sq`, `<param>.step`.
    /// The tensors share memory with the optimizer: writing into them restores it, after which
    /// [`Self::refresh_params`] is due.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let mut state = BTreeMap::new();
        for slot in &self.slots {
            let mut put = |what: &str, tensor: &Tensor| {
                state.insert(format!("{}.{what}", slot.name), tensor.shallow_clone());
            };
            put("master", &slot.master);
            put("exp_avg", &slot.exp_avg);
            put("exp_avg_sq", &slot.exp_avg_sq);
            put("step", &slot.step);
        }
        state
    }

    /// Rounds the master weights into parameters of lower precision.
    pub fn refresh_params(&mut self) {
        no_grad(|| self.slots.iter_mut().for_each(Slot::refresh_param));
    }
}
