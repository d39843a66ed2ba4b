//! An exponential moving average of a model's weights.

use std::collections::BTreeMap;

use tch::{Tensor, no_grad};

use crate::error::TrainerError;
use crate::stepper::Stepper;

/// `average <- decay * average + (1 - decay) * weights` after each update, in the precision of the
/// master weights (Ouyang et al. 2022, appendix C.4: decay 0.992).
#[derive(Debug)]
pub struct Ema {
    decay: f64,
    pub(crate) averages: BTreeMap<String, Tensor>,
}

impl Ema {
    /// Starts at the stepper's present weights.
    pub fn new(stepper: &Stepper, decay: f64) -> Self {
        let copy = |(name, weight): (&str, &Tensor)| (name.to_owned(), weight.detach().copy());
        let averages = no_grad(|| stepper.optimizer().masters().map(copy).collect());
        Self { decay, averages }
    }

    /// Moves the average towards the stepper's weights.
    ///
    /// # Panics
    /// Where the stepper is of another model than the one this started from.
    pub fn update(&mut self, stepper: &Stepper) {
        no_grad(|| {
            for (name, weight) in stepper.optimizer().masters() {
                let average = self.averages.get_mut(name);
                let average = average.unwrap_or_else(|| panic!("no average of parameter {name}"));
                let _ = average.lerp_(weight, 1.0 - self.decay);
            }
        });
    }

    /// Puts the average in the place of the stepper's weights, when the training has ended.
    ///
    /// # Errors
    /// Where another rank fails.
    ///
    /// # Panics
    /// Where the stepper is of another model.
    pub fn apply(&self, stepper: &mut Stepper) -> Result<(), TrainerError> {
        stepper.show(&self.averages)
    }

    /// The state by key `<param>.ema`, sharing memory with the average.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let entry = |(name, t): (&String, &Tensor)| (format!("{name}.ema"), t.shallow_clone());
        self.averages.iter().map(entry).collect()
    }
}
