//! The KL coefficient, fixed or controlled, and the watch over the KL estimate.

use recipe::plan::KlPlan;
use runtime::statistics::{mean, standard_error};
use serde::{Deserialize, Serialize};

/// The state of the KL penalty: part of a snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KlController {
    plan: KlPlan,
    /// The coefficient in force.
    pub coef: f64,
    /// Iterations in a row whose mean KL was negative beyond chance.
    pub negative_in_a_row: u32,
}

impl KlController {
    /// The controller before the first iteration.
    pub fn new(plan: KlPlan) -> Self {
        let (KlPlan::Fixed { coef } | KlPlan::Adaptive { coef, .. }) = plan;
        Self {
            plan,
            coef,
            negative_in_a_row: 0,
        }
    }

    /// Moves the coefficient after an iteration of `episodes` episodes with mean KL `kl` (nats):
    /// `coef *= 1 + clip(kl / target - 1, -0.2, 0.2) * episodes / horizon`
    /// (Ziegler et al. 2019, section 2.2).
    pub fn observe(&mut self, kl: f64, episodes: usize) {
        if let KlPlan::Adaptive {
            target, horizon, ..
        } = self.plan
        {
            let error = (kl / target - 1.0).clamp(-0.2, 0.2);
            self.coef *= 1.0 + error * episodes as f64 / horizon;
        }
    }

    /// Counts means of the k1 estimator that lie more than three standard errors below zero.
    /// True where the third in a row was seen: the true KL is never negative, so the sampled
    /// distribution is not the one whose log-probabilities are used.
    pub fn is_negative(&mut self, kl_b: &[f64]) -> bool {
        let mean = mean(kl_b);
        if mean < -3.0 * standard_error(kl_b) && mean < -1e-3 {
            self.negative_in_a_row += 1;
        } else {
            self.negative_in_a_row = 0;
        }
        self.negative_in_a_row >= 3
    }
}
