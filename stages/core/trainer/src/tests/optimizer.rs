//! `AdamW` against a program written by hand, clipping, accumulation in bf16, non-finite numbers.

use std::collections::BTreeMap;

use recipe::plan::OptimizerPlan;
use tch::{Device, Kind, Tensor, no_grad};

use super::{Outcome, bytes, norm, plan};
use crate::gradients::{clip, global_norm};
use crate::{AdamW, Division, Ema, Stepper, TrainerError, learning_rate};

const SIZES: [(&str, &[i64]); 3] = [
    ("a.bias", &[4]),
    ("b.weight", &[3, 4]),
    ("c.gain", &[1, 1, 2]),
];

/// Numbers that look random and are the same in every format: multiples of 1/64 in -2..2.
fn numbers(len: usize, salt: u64) -> Vec<f64> {
    let number = |i| (runtime::seeds::key(7, "trainer test", salt, i) % 256) as f64 / 64.0 - 2.0;
    (0..len as u64).map(number).collect()
}

fn tensor(size: &[i64], salt: u64, kind: Kind) -> Tensor {
    let len = size.iter().product::<i64>() as usize;
    Tensor::from_slice(&numbers(len, salt))
        .view(size)
        .to_kind(kind)
}

fn params(kind: Kind) -> BTreeMap<String, Tensor> {
    let param = |(i, (name, size)): (usize, &(&str, &[i64]))| {
        (
            (*name).to_owned(),
            tensor(size, i as u64, kind).set_requires_grad(true),
        )
    };
    SIZES.iter().enumerate().map(param).collect()
}

fn grad(param: usize, step: u64, kind: Kind) -> Tensor {
    tensor(SIZES[param].1, 1000 * (step + 1) + param as u64, kind)
}

/// Makes `.grad` of each parameter grow by `grad` times `factor`.
fn add_grads(params: &BTreeMap<String, Tensor>, step: u64, factor: f64) {
    for (i, param) in params.values().enumerate() {
        (param * grad(i, step, param.kind()) * factor)
            .sum(param.kind())
            .backward();
    }
}

/// One weight of `AdamW`, in f64, from Loshchilov and Hutter (2019), algorithm 2.
struct Reference {
    w: f64,
    m: f64,
    v: f64,
}

impl Reference {
    fn step(&mut self, g: f64, t: i32, lr: f64, decay: f64, plan: &OptimizerPlan) {
        let [b1, b2] = plan.betas;
        self.w -= lr * decay * self.w;
        self.m = b1 * self.m + (1.0 - b1) * g;
        self.v = b2 * self.v + (1.0 - b2) * g * g;
        let (m_hat, v_hat) = (self.m / (1.0 - b1.powi(t)), self.v / (1.0 - b2.powi(t)));
        self.w -= lr * m_hat / (v_hat.sqrt() + plan.eps);
    }
}

fn reference_after(steps: u64, plan: &OptimizerPlan) -> Vec<Vec<f64>> {
    let run = |(index, (_, size)): (usize, &(&str, &[i64]))| {
        let len = size.iter().product::<i64>() as usize;
        let decay = if size.len() >= 2 {
            plan.weight_decay
        } else {
            0.0
        };
        let start = numbers(len, index as u64).into_iter();
        let mut weights: Vec<_> = start.map(|w| Reference { w, m: 0.0, v: 0.0 }).collect();
        for step in 0..steps {
            let lr = learning_rate(plan, step, steps);
            let grads = numbers(len, 1000 * (step + 1) + index as u64);
            for (weight, g) in weights.iter_mut().zip(grads) {
                weight.step(g, step as i32 + 1, lr, decay, plan);
            }
        }
        weights.into_iter().map(|weight| weight.w).collect()
    };
    SIZES.iter().enumerate().map(run).collect()
}

#[test]
fn adamw_agrees_with_a_program_written_by_hand_over_ten_steps() -> Outcome {
    let plan = plan();
    let expected = reference_after(10, &plan);
    for (kind, tolerance) in [
        (Kind::Double, 1e-13),
        (Kind::Float, 2e-6),
        (Kind::BFloat16, 2e-6),
    ] {
        let params = params(kind);
        let mut adamw = AdamW::new(&params, &plan);
        let wide = if kind == Kind::Double {
            kind
        } else {
            Kind::Float
        };
        for step in 0..10 {
            let grads: Vec<_> = (0..SIZES.len()).map(|i| grad(i, step, wide)).collect();
            adamw.step(&grads, learning_rate(&plan, step, 10))?;
        }
        for ((name, master), expected) in adamw.masters().zip(&expected) {
            assert_eq!(master.kind(), wide);
            let expected = Tensor::from_slice(expected).view_as(master);
            let gap = norm(&(master.detach() - &expected)) / norm(&expected);
            assert!(gap < tolerance, "{name} in {kind:?}: relative gap {gap}");
            let rounded = no_grad(|| master.to_kind(kind));
            assert_eq!(
                bytes(&params[name]),
                bytes(&rounded),
                "{name} is not its master, rounded"
            );
        }
        let steps = adamw
            .state()
            .remove("a.bias.step")
            .map(|step| step.double_value(&[]));
        assert_eq!(steps, Some(10.0));
    }
    Ok(())
}

#[test]
fn clipping_scales_to_the_bound_and_leaves_smaller_gradients_alone() -> Outcome {
    let make = || [Tensor::from_slice(&[3.0, 0.0]), Tensor::from_slice(&[4.0])];
    let mut grads = make();
    let norm = global_norm(&grads)?;
    assert!((norm - 5.0).abs() < 1e-15);
    clip(&mut grads, norm, 2.5);
    assert!((grads[0].double_value(&[0]) - 1.5).abs() < 1e-6);
    assert!((grads[1].double_value(&[0]) - 2.0).abs() < 1e-6);
    let mut grads = make();
    clip(&mut grads, norm, 5.1);
    assert_eq!(bytes(&grads[1]), bytes(&make()[1]));
    // The squares overflow f32; the norm does not.
    let large = [Tensor::from_slice(&[3e30_f32, 4e30_f32])];
    assert!((global_norm(&large)? / 5e30 - 1.0).abs() < 1e-6);
    Ok(())
}

#[test]
fn an_update_clips_at_the_schedules_rate_and_clears_the_gradients() -> Outcome {
    let (params, twin) = (params(Kind::Double), params(Kind::Double));
    let plan = OptimizerPlan {
        clip: 0.5,
        ..plan()
    };
    let mut stepper = Stepper::divided(&params, &plan, 10, Division::none());
    add_grads(&params, 0, 1.0);
    let update = stepper.update(3)?;
    let mut grads: Vec<_> = (0..SIZES.len()).map(|i| grad(i, 0, Kind::Double)).collect();
    assert!((update.grad_norm - global_norm(&grads)?).abs() < 1e-12);
    assert!(update.grad_norm > 1.0 && !update.was_skipped);
    assert!((update.lr - learning_rate(&plan, 3, 10)).abs() < 1e-15);
    clip(&mut grads, update.grad_norm, 0.5);
    AdamW::new(&twin, &plan).step(&grads, update.lr)?;
    for (name, param) in &params {
        assert_eq!(bytes(param), bytes(&twin[name]), "{name}");
        assert!(!param.grad().defined(), "{name} keeps its gradient");
    }
    Ok(())
}

/// Gradients are gone after an update, sums of bf16 too; what a later backward pass does not reach has zeros, and is
/// moved by its moments alone.
#[test]
fn what_a_later_pass_does_not_reach_has_a_gradient_of_zero() -> Outcome {
    for kind in [Kind::Float, Kind::BFloat16] {
        let [freed, zeroed] = [false, true].map(|zeroed| -> Result<_, TrainerError> {
            let params = params(kind);
            let mut stepper = Stepper::divided(&params, &plan(), 10, Division::none());
            add_grads(&params, 0, 1.0);
            stepper.update(0)?;
            let reached = &params["b.weight"];
            reached.sum(kind).backward();
            if zeroed {
                for param in params.values() {
                    (param * 0.0).sum(kind).backward();
                }
            }
            let grad_norm = stepper.update(1)?.grad_norm;
            assert!((grad_norm / (reached.numel() as f64).sqrt() - 1.0).abs() < 1e-6);
            Ok(params.values().map(bytes).collect::<Vec<_>>())
        });
        assert_eq!(freed?, zeroed?, "{kind:?}");
    }
    Ok(())
}

/// A thousand gradients of 1/512 after one of 1: in bf16 each is lost, in f32 none.
#[test]
fn bf16_gradients_add_up_in_f32() -> Outcome {
    let params = params(Kind::BFloat16);
    let mut stepper = Stepper::divided(&params, &plan(), 10, Division::none());
    let ones = |factor: f64| {
        for param in params.values() {
            (param * factor).sum(Kind::BFloat16).backward();
        }
    };
    ones(1.0);
    stepper.accumulate()?;
    for _ in 0..1000 {
        ones(1.0 / 512.0);
        stepper.accumulate()?;
    }
    let elements = params.values().map(Tensor::numel).sum::<usize>() as f64;
    let expected = (1.0 + 1000.0 / 512.0) * elements.sqrt();
    let found = stepper.update(0)?.grad_norm;
    assert!(
        (found / expected - 1.0).abs() < 1e-6,
        "{found}, not {expected}"
    );
    Ok(())
}

#[test]
fn a_non_finite_gradient_stops_the_update_and_is_named() -> Outcome {
    for kind in [Kind::Float, Kind::BFloat16] {
        let params = params(kind);
        let mut stepper = Stepper::divided(&params, &plan(), 10, Division::none());
        let before: Vec<_> = params.values().map(bytes).collect();
        add_grads(&params, 0, 1.0);
        let infinite = Tensor::from_slice(&[f32::INFINITY]).to_kind(kind);
        (&params["b.weight"] * infinite).sum(kind).backward();
        stepper.observe_loss(2.5);
        let error = stepper.update(6).err().ok_or("must stop")?;
        let message = error.to_string();
        for part in [
            "step 6",
            "loss 2.5",
            "norm inf",
            "gradient: b.weight",
            "hint:",
        ] {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
        let after: Vec<_> = params.values().map(bytes).collect();
        assert_eq!(before, after, "the weights changed");
        assert!(norm(&stepper.optimizer().state()["b.weight.exp_avg"]) == 0.0);
    }
    Ok(())
}

#[test]
fn a_non_finite_loss_stops_too_and_missing_gradients_are_named() -> Outcome {
    let params = params(Kind::Float);
    let mut stepper = Stepper::divided(&params, &plan(), 10, Division::none());
    let error = stepper.update(0).err().ok_or("must stop")?;
    assert!(
        matches!(&error, TrainerError::NoGradient { name, .. } if name == "a.bias"),
        "{error}"
    );
    add_grads(&params, 0, 1.0);
    stepper.observe_loss(1.0);
    stepper.observe_loss(f64::NAN);
    let error = stepper.update(0).err().ok_or("must stop")?;
    assert!(
        matches!(error, TrainerError::NonFinite { tensor: None, .. }),
        "{error}"
    );
    Ok(())
}

#[test]
fn skips_are_counted_and_run_out() -> Outcome {
    let params = params(Kind::Float);
    let mut stepper =
        Stepper::divided(&params, &plan(), 10, Division::none()).with_nonfinite_skip(2);
    let before: Vec<_> = params.values().map(bytes).collect();
    for expected in 1..=2 {
        add_grads(&params, 0, f64::NAN);
        let update = stepper.update(0)?;
        assert!(update.was_skipped && update.skipped == expected);
    }
    assert_eq!(before, params.values().map(bytes).collect::<Vec<_>>());
    add_grads(&params, 0, 1.0);
    let update = stepper.update(1)?;
    assert!(!update.was_skipped && update.skipped == 2 && update.grad_norm.is_finite());
    assert_ne!(before, params.values().map(bytes).collect::<Vec<_>>());
    add_grads(&params, 0, f64::NAN);
    assert!(matches!(
        stepper.update(2),
        Err(TrainerError::NonFinite { skipped: 2, .. })
    ));
    Ok(())
}

#[test]
fn the_average_follows_the_masters() -> Outcome {
    let params = params(Kind::BFloat16);
    let mut stepper = Stepper::divided(&params, &plan(), 10, Division::none());
    let mut ema = Ema::new(&stepper, 0.75);
    let master = |stepper: &Stepper| stepper.optimizer().state()["a.bias.master"].copy();
    let mut expected = master(&stepper);
    for step in 0..3 {
        add_grads(&params, step, 1.0);
        stepper.update(step)?;
        ema.update(&stepper);
        expected = expected * 0.75 + master(&stepper) * 0.25;
    }
    let average = &ema.state()["a.bias.ema"];
    assert_eq!(average.kind(), Kind::Float);
    assert!(norm(&(average - &expected)) < 1e-6);
    assert!(norm(&(average - master(&stepper))) > 1e-3);
    assert_eq!(average.device(), Device::Cpu);
    Ok(())
}
