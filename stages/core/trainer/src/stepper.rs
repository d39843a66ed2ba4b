//! One optimizer update: accumulate, check, clip, step, clear.

use std::collections::BTreeMap;

use model::Model;
use recipe::plan::{OptimizerPlan, Sharding};
use tch::Tensor;

use crate::adamw::AdamW;
use crate::error::TrainerError;
use crate::exchange::Division;
use crate::gradients::{Gradients, clip, global_norm};
use crate::schedule::learning_rate;
use crate::trained::{Cut, Trained};

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
    division: Division,
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
        Self::divided(&[model][..], plan, steps, Division::none())
    }

    /// The same for what is trained of several models, or for named tensors that require gradients, as one of the ranks of
    /// `division`.
    pub fn divided(
        trained: impl Into<Trained>,
        plan: &OptimizerPlan,
        steps: u64,
        division: Division,
    ) -> Self {
        let trained = trained.into();
        let cut = Cut::of(&trained, &division);
        Self {
            optimizer: AdamW::of_slices(cut.kept(&trained, &division), plan),
            gradients: Gradients::divided(&trained, cut, &division),
            division,
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

    /// Says that the update comes after so many micro-batches. (Without it the gradients of all ranks are summed by the
    /// update, none of them earlier.)
    pub fn expect(&mut self, micro_batches: usize) {
        self.gradients.expect(micro_batches);
    }

    /// A block's backward pass has ended ([`model::Tape::backward_by_block`]).
    ///
    /// # Errors
    /// Where libtorch or another rank fails.
    pub fn block_done(&mut self, block: usize) -> Result<(), TrainerError> {
        self.gradients.block_done(block)
    }

    /// Ends a micro-batch: moves bf16 gradients into f32 buffers (in f32 and f64 autograd accumulates), and adds up what
    /// travels between ranks, of which every one ends as many.
    ///
    /// # Errors
    /// Where libtorch or another rank fails.
    pub fn accumulate(&mut self) -> Result<(), TrainerError> {
        self.gradients.accumulate()
    }

    /// One update with the accumulated gradients, at the learning rate of `step` (counted from 0).
    ///
    /// # Errors
    /// [`TrainerError::NonFinite`] before anything has changed, where the observed loss or the gradient
    /// norm is not finite and no skip is left; [`TrainerError::NoGradient`].
    pub fn update(&mut self, step: u64) -> Result<Update, TrainerError> {
        let mut grads = self.gradients.collect(step)?;
        let lr = learning_rate(&self.plan, step, self.steps);
        let (loss, grad_norm) = self.of_all_ranks(global_norm(&grads)?)?;
        let was_skipped = !(loss.is_finite() && grad_norm.is_finite());
        if was_skipped {
            let tensor = self.gradients.first_non_finite(&grads);
            self.skip(step, loss, grad_norm, tensor)?;
        } else {
            clip(&mut grads, grad_norm, self.plan.clip);
            self.optimizer.step(&grads, lr)?;
            self.gradients.gather_params()?;
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

    /// The observed loss and the norm of all gradients, from this rank's.
    fn of_all_ranks(&mut self, norm: f64) -> Result<(f64, f64), TrainerError> {
        let loss = std::mem::take(&mut self.loss);
        if self.division.ranks.size() == 1 {
            return Ok((loss, norm));
        }
        let mut sums = [loss, norm * norm];
        self.division.ranks.sum(&mut sums)?;
        // What is whole on every rank has its norm there.
        let norm = match self.division.sharding {
            Sharding::None => norm,
            _ => sums[1].sqrt(),
        };
        Ok((sums[0], norm))
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

    /// How the training is divided.
    pub fn division(&self) -> &Division {
        &self.division
    }

    /// Puts other weights in the place of those that were trained, rounded to their format, on all ranks, when the
    /// training has ended. `weights` are this rank's slices, by name.
    ///
    /// # Errors
    /// Where libtorch or another rank fails.
    ///
    /// # Panics
    /// Where one is missing.
    pub fn show(&mut self, weights: &BTreeMap<String, Tensor>) -> Result<(), TrainerError> {
        self.optimizer.show(weights);
        self.gradients.gather_params()
    }

    /// The optimizer.
    pub fn optimizer(&self) -> &AdamW {
        &self.optimizer
    }

    /// Ends a restore: the optimizer's state was overwritten in place.
    pub(crate) fn restored(&mut self, skipped: u64) -> Result<(), TrainerError> {
        self.optimizer.refresh_params();
        self.gradients.gather_params()?;
        self.gradients.clear()?;
        self.loss = 0.0;
        self.skipped = skipped;
        Ok(())
    }
}
