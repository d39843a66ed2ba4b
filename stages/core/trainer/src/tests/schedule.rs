//! Learning rates against values computed by hand.

use recipe::plan::{OptimizerPlan, Schedule};

use super::plan;
use crate::learning_rate;

#[test]
fn learning_rates_are_those_computed_by_hand() {
    let with = |schedule, warmup, warmup_from, floor| OptimizerPlan {
        lr: 2.0,
        schedule,
        warmup,
        warmup_from,
        floor,
        ..plan()
    };
    let (constant, linear, cosine) = (Schedule::Constant, Schedule::Linear, Schedule::Cosine);
    // (plan, step, steps, expected)
    let cases = [
        // Ten updates of warm-up from a tenth, then constant (InstructGPT, C.4).
        (with(constant, 10, 0.1, 0.0), 0, 100, 0.2),
        (with(constant, 10, 0.1, 0.0), 5, 100, 1.1),
        (with(constant, 10, 0.1, 0.0), 10, 100, 2.0),
        (with(constant, 10, 0.1, 0.0), 99, 100, 2.0),
        // Eleven updates without warm-up: progress is step / 10.
        (with(linear, 0, 0.0, 0.1), 0, 11, 2.0),
        (with(linear, 0, 0.0, 0.1), 5, 11, 1.1),
        (with(linear, 0, 0.0, 0.1), 10, 11, 0.2),
        (with(linear, 0, 0.0, 0.0), 10, 11, 0.0),
        (with(cosine, 0, 0.0, 0.1), 0, 11, 2.0),
        (with(cosine, 0, 0.0, 0.1), 5, 11, 1.1),
        (with(cosine, 0, 0.0, 0.1), 10, 11, 0.2),
        // cos(pi / 4) = 0.7071067811865476, so 2 * (1 + 0.7071067811865476) / 2.
        (with(cosine, 0, 0.0, 0.0), 1, 5, 1.707_106_781_186_547_6),
        // Warm-up to update 4, then 4 updates down: half way at update 6.
        (with(cosine, 4, 0.0, 0.1), 0, 9, 0.0),
        (with(cosine, 4, 0.0, 0.1), 3, 9, 1.5),
        (with(cosine, 4, 0.0, 0.1), 4, 9, 2.0),
        (with(cosine, 4, 0.0, 0.1), 6, 9, 1.1),
        (with(cosine, 4, 0.0, 0.1), 8, 9, 0.2),
        // Beyond the end, and runs too short to decay.
        (with(cosine, 4, 0.0, 0.1), 50, 9, 0.2),
        (with(linear, 0, 0.0, 0.1), 0, 1, 2.0),
        (with(linear, 4, 0.5, 0.1), 3, 4, 1.75),
        (with(linear, 4, 0.5, 0.1), 4, 5, 2.0),
    ];
    for (plan, step, steps, expected) in cases {
        let found = learning_rate(&plan, step, steps);
        assert!(
            (found - expected).abs() < 1e-12,
            "{:?}, warm-up {} from {}, floor {}, step {step} of {steps}: {found}, not {expected}",
            plan.schedule,
            plan.warmup,
            plan.warmup_from,
            plan.floor,
        );
    }
}
