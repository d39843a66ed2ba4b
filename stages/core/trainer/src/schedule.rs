//! The learning rate as a function of the step.

use std::f64::consts::PI;

use recipe::plan::{OptimizerPlan, Schedule};

/// The learning rate of update `step` (counted from 0) of a run of `steps` updates.
///
/// - **Warm-up**, `step < warmup`: `lr * (warmup_from + (1 - warmup_from) * step / warmup)`. The first
///   update runs at exactly `warmup_from` of the peak; update number `warmup` is the first at the peak.
/// - **Afterwards**, with `p = (step - warmup) / (steps - 1 - warmup)` in 0..=1, so that the last update
///   runs at exactly the floor:
///   constant: `lr`; linear: `lr * (1 - (1 - floor) * p)`;
///   cosine: `lr * (floor + (1 - floor) * (1 + cos(pi * p)) / 2)`.
///
/// Steps after the last stay at the floor. A run that ends with its warm-up never decays: `p = 0` where
/// `steps - 1 <= warmup`.
pub fn learning_rate(plan: &OptimizerPlan, step: u64, steps: u64) -> f64 {
    if step < plan.warmup {
        let progress = step as f64 / plan.warmup as f64;
        return plan.lr * (plan.warmup_from + (1.0 - plan.warmup_from) * progress);
    }
    let last = steps.saturating_sub(1);
    let progress = if last > plan.warmup {
        ((step - plan.warmup) as f64 / (last - plan.warmup) as f64).min(1.0)
    } else {
        0.0
    };
    let factor = match plan.schedule {
        Schedule::Constant => 1.0,
        Schedule::Linear => 1.0 - (1.0 - plan.floor) * progress,
        Schedule::Cosine => plan.floor + (1.0 - plan.floor) * 0.5 * (1.0 + (PI * progress).cos()),
    };
    plan.lr * factor
}
