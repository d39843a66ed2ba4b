//! One optimizer update: accumulate, check, clip, step, clear.

use std::collections::BTreeMap;

use model::Model;
use recipe::plan::OptimizerPlan;
use tch::Tensor;

use crate::adamw::AdamW;
use crate::error::TrainerError;
use crate::gradients::{Gradients, clip, global_norm};
use crate::schedule::learning_rate;

/// Updates the parameters of one model.
///
/// A stage runs its micro-batches (forward, backward, [`Self::accumulate`] after each) with losses
/// scaled by the count of the *whole* update, then calls [`Self::update`] once.
#[derive(Debug)]
pub struct Stepper {
    plan: OptimizerPlan,
    steps: u64,
    optimizer: AdamW,
    gradients: Gradients,
    loss: f64,
    allowed_skips: u64,
    skipped: u64,
}

/// What an update did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    /// The learning rate of this step.
    pub lr: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Updates skipped in the whole run so far (metric `optimizer/skipped`).
    pub skipped: u64,
    /// Whether this update was one of them: nothing changed but the gradients, which were freed.
    pub was_skipped: bool,
}

impl Stepper {
    /// A fresh optimizer for what is trained of `model` (all parameters, or its adapters), which collects
    /// gradients from now on. `steps` is the length of the schedule, in the unit in which [`Self::update`]
    /// counts.
    pub fn new(model: &Model, plan: &OptimizerPlan, steps: u64) -> Self {
        model.set_trainable(true);
        Self::for_params(&model.trainable(), plan, steps)
    }

    /// The same for named tensors that require gradients.
    pub fn for_params(params: &BTreeMap<String, Tensor>, plan: &OptimizerPlan, steps: u64) -> Self {
        Self {
            optimizer: AdamW::new(params, plan),
            gradients: Gradients::new(params),
            plan: plan.clone(),
            steps,
            loss: 0.0,
            allowed_skips: 0,
            skipped: 0,
        }
    }

    /// Allows `skips` updates with non-finite numbers to be left out over the whole run.
    #[must_use]
    pub fn with_nonfinite_skip(mut self, skips: u64) -> Self {
        self.allowed_skips = skips;
        self
    }

    /// Reports a loss that went into the next update, so that the finite check covers it and the error
    /// names it.
    pub fn observe_loss(&mut self, loss: f64) {
        self.loss += loss;
    }

    /// Ends a micro-batch: moves bf16 gradients into f32 buffers. Nothing to do in f32 and f64, where
    /// autograd accumulates.
    ///
    /// # Errors
    /// Where libtorch fails.
    pub fn accumulate(&mut self) -> Result<(), TrainerError> {
        self.gradients.accumulate()
    }

    /// One update with the accumulated gradients, at the learning rate of `step` (counted from 0).
    ///
    /// # Errors
    /// [`TrainerError::NonFinite`] before anything has changed, where the observed loss or the gradient
    /// norm is not finite and no skip is left; [`TrainerError::NoGradient`].
    pub fn update(&mut self, step: u64) -> Result<Update, TrainerError> {
        self.gradients.accumulate()?;
        let mut grads = self.gradients.collect(step)?;
        let lr = learning_rate(&self.plan, step, self.steps);
        let grad_norm = global_norm(&grads)?;
        let loss = std::mem::take(&mut self.loss);
        let was_skipped = !(loss.is_finite() && grad_norm.is_finite());
        if was_skipped {
            let tensor = self.gradients.first_non_finite(&grads);
            self.skip(step, loss, grad_norm, tensor)?;
        } else {
            clip(&mut grads, grad_norm, self.plan.clip);
            self.optimizer.step(&grads, lr)?;
        }
        drop(grads);
        self.gradients.clear()?;
        Ok(Update {
            lr,
            grad_norm,
            skipped: self.skipped,
            was_skipped,
        })
    }

    fn skip(
        &mut self,
        step: u64,
        loss: f64,
        grad_norm: f64,
        tensor: Option<String>,
    ) -> Result<(), TrainerError> {
        let (skipped, allowed) = (self.skipped, self.allowed_skips);
        let error = TrainerError::NonFinite {
            step,
            loss,
            grad_norm,
            tensor,
            skipped,
            allowed,
        };
        if skipped == allowed {
            return Err(error);
        }
        self.skipped += 1;
        tracing::warn!("update left out: {error}");
        Ok(())
    }

    /// Updates skipped so far.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The optimizer.
    pub fn optimizer(&self) -> &AdamW {
        &self.optimizer
    }

    /// Ends a restore: the optimizer's state was overwritten in place.
    pub(crate) fn restored(&mut self, skipped: u64) -> Result<(), TrainerError> {
        self.optimizer.refresh_params();
        self.gradients.clear()?;
        self.loss = 0.0;
        self.skipped = skipped;
        Ok(())
    }
}
