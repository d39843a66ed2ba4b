//! The chunked next-token loss against its definition, and accumulation: 1 x 8 equals 8 x 1.

use tch::{Kind, Tensor, no_grad};

use super::{Outcome, batch, grads_of, input, norm, options, plan, targets, tiny_model};
use crate::token_loss::head_step;
use crate::{Stepper, lm_micro_step, token_loss};

/// The definition, one token at a time.
fn loss_by_hand(model: &model::Model, ids_bt: &Tensor, mask_bt: &Tensor) -> (f64, i64) {
    no_grad(|| {
        let logits_btv = model.logits(&model.hidden(&input(ids_bt)));
        let logprobs_btv = logits_btv.log_softmax(-1, Kind::Double);
        let (mut sum, mut count) = (0.0, 0);
        for row in 0..ids_bt.size()[0] {
            for col in 1..ids_bt.size()[1] {
                if mask_bt.int64_value(&[row, col]) != 0 {
                    let token = ids_bt.int64_value(&[row, col]);
                    sum -= logprobs_btv.double_value(&[row, col - 1, token]);
                    count += 1;
                }
            }
        }
        (sum, count)
    })
}

#[test]
fn chunks_of_any_length_give_the_defined_loss_and_the_same_gradients() -> Outcome {
    let model = tiny_model(1, Kind::Double);
    model.set_trainable(true);
    let (ids_bt, mask_bt) = batch(3, 9, 0);
    let (expected, count) = loss_by_hand(&model, &ids_bt, &mask_bt);
    let targets = targets(&ids_bt, &mask_bt);
    assert_eq!(targets.len(), count);
    let hidden_btd = no_grad(|| model.hidden(&input(&ids_bt)));
    let evaluated = token_loss(&model, &hidden_btd, &targets)?;
    assert!(
        (evaluated - expected).abs() < 1e-9,
        "{evaluated}, not {expected}"
    );

    let mut reference = None;
    for chunk in [1000, 1, 4, count] {
        model
            .params()
            .values()
            .for_each(|param| param.shallow_clone().zero_grad());
        let (hidden_btd, tape) = model.record(&input(&ids_bt), &options())?;
        let sum = head_step(&model, &hidden_btd, &targets, 0.5, chunk)?;
        tape.backward(&model)?;
        assert!(
            (sum - expected).abs() < 1e-9,
            "chunks of {chunk}: {sum}, not {expected}"
        );
        let grads = grads_of(&model);
        let reference = reference.get_or_insert_with(|| grads_of(&model));
        for (name, grad) in &grads {
            let gap = norm(&(grad - &reference[name]));
            assert!(gap < 1e-9, "chunks of {chunk}, {name}: {gap}");
        }
    }
    Ok(())
}

/// The gradient is that of `scale * loss`: a small move along it changes the loss accordingly.
#[test]
fn gradients_are_the_slope_of_the_loss() -> Outcome {
    let model = tiny_model(2, Kind::Double);
    model.set_trainable(true);
    let (ids_bt, mask_bt) = batch(2, 8, 1);
    let targets = targets(&ids_bt, &mask_bt);
    lm_micro_step(&model, &input(&ids_bt), &targets, 0.25, &options(), |_| {
        Ok(())
    })?;
    let grads = grads_of(&model);
    let squares: f64 = grads.values().map(|grad| norm(grad).powi(2)).sum();
    let step = 1e-5;
    let moved = |sign: f64| {
        let model = model.deep_copy();
        no_grad(|| {
            for (name, param) in model.params() {
                let _ = param
                    .shallow_clone()
                    .g_add_(&(&grads[name] * (sign * step)));
            }
        });
        loss_by_hand(&model, &ids_bt, &mask_bt).0
    };
    let slope = 0.25 * (moved(1.0) - moved(-1.0)) / (2.0 * step);
    assert!(
        (slope / squares - 1.0).abs() < 1e-6,
        "slope {slope}, |gradient|^2 {squares}"
    );
    Ok(())
}

#[test]
fn a_batch_without_targets_adds_nothing() -> Outcome {
    let model = tiny_model(1, Kind::Double);
    model.set_trainable(true);
    let (ids_bt, mask_bt) = batch(2, 5, 0);
    let first_column_only = mask_bt.zeros_like();
    let _ = first_column_only.narrow(1, 0, 1).fill_(1);
    let targets = targets(&ids_bt, &first_column_only);
    assert!(targets.is_empty());
    let sum = lm_micro_step(&model, &input(&ids_bt), &targets, 1.0, &options(), |_| {
        Ok(())
    })?;
    let adds_nothing = |grad: &Tensor| norm(grad) == 0.0;
    assert!(sum == 0.0 && grads_of(&model).values().all(adds_nothing));
    Ok(())
}

/// Eight micro-batches of one row and one of eight rows: the same weights after three updates.
#[test]
fn accumulation_1_x_8_equals_8_x_1() -> Outcome {
    for (kind, tolerance) in [(Kind::Double, 1e-9), (Kind::Float, 1e-4)] {
        let start = tiny_model(3, kind);
        let train = |micro_batch: i64| -> Result<_, Box<dyn std::error::Error>> {
            let model = start.deep_copy();
            let mut stepper = Stepper::new(&model, &plan(), 3);
            let mut losses = Vec::new();
            for step in 0..3 {
                let (ids_bt, mask_bt) = batch(8, 10, step);
                let scale = 1.0 / targets(&ids_bt, &mask_bt).len() as f64;
                let mut sum = 0.0;
                for first in (0..8).step_by(micro_batch as usize) {
                    let rows = |all_bt: &Tensor| all_bt.narrow(0, first, micro_batch);
                    let (ids_bt, mask_bt) = (rows(&ids_bt), rows(&mask_bt));
                    let targets = targets(&ids_bt, &mask_bt);
                    sum += lm_micro_step(
                        &model,
                        &input(&ids_bt),
                        &targets,
                        scale,
                        &options(),
                        |_| Ok(()),
                    )?;
                    stepper.accumulate()?;
                }
                stepper.observe_loss(sum * scale);
                losses.push((sum * scale, stepper.update(step as u64)?.grad_norm));
            }
            Ok((model, losses))
        };
        let ((one, one_losses), (eight, eight_losses)) = (train(1)?, train(8)?);
        for ((loss, grad_norm), (other_loss, other_norm)) in one_losses.iter().zip(eight_losses) {
            assert!(
                (loss - other_loss).abs() < tolerance,
                "{kind:?}: {loss}, {other_loss}"
            );
            assert!((grad_norm - other_norm).abs() < tolerance);
        }
        assert!(one_losses[2].0.is_finite() && one_losses[0].1 > 0.0);
        for (name, param) in one.params() {
            let gap = norm(&(param.detach() - eight.params()[name].detach()));
            assert!(gap < tolerance, "{name} in {kind:?}: {gap}");
        }
    }
    Ok(())
}
