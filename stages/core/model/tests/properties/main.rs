//! What must not change a model's numbers: cached decoding, padding, batch mates, checkpointing, the
//! block-by-block backward pass, saving, blocks divided among ranks. In f64 at 1e-9.

mod cached;
mod dynamic;
mod shards;
mod starts;

use std::collections::BTreeMap;

use model::{Head, Input, Model, RecordOptions, response_logprobs, token_logprobs};
use recipe::families::Sizes;
use recipe::shape::{
    BlockOrder, Family, LocalAttention, ModelShape, Positions, RopeScaling, Rotary,
};
use tch::{Device, Kind, Tensor};

const BOUND: f64 = 1e-9;
const RECORD: RecordOptions = RecordOptions {
    checkpointing: false,
    dropout: 0.0,
    dropout_key: 0,
};

fn shape(family: Family) -> ModelShape {
    let usual = family.shape(&Sizes {
        vocab_size: 41,
        max_positions: 16,
        layers: 3,
        width: 24,
        heads: 4,
    });
    // Fewer key heads where the family has them, and windows that are shorter than the rows.
    let grouped = family.grouped() && usual.kv_heads > 1;
    let local = match family {
        Family::Mistral => Some((0..usual.layers).collect()),
        _ => usual.local.as_ref().map(|local| local.layers.clone()),
    };
    ModelShape {
        kv_heads: if grouped { 2 } else { usual.kv_heads },
        mlp_width: 36,
        local: local.map(|layers| LocalAttention { window: 5, layers }),
        ..usual
    }
}

/// A base that grows with the row, beyond 4 tokens.
fn dynamic(shape: &ModelShape) -> Positions {
    Positions::Rotary(Rotary {
        scaling: RopeScaling::Dynamic {
            factor: 4.0,
            original: 4,
        },
        ..*shape.rotary().expect("a family with rotary positions")
    })
}

/// Whether cached decoding is the full pass.
fn is_static(model: &Model) -> bool {
    model.shape.fixed_positions() == model.shape.max_positions
}

/// Every family, and the parts that no family has by itself.
fn shapes() -> Vec<ModelShape> {
    let with = |family, change: fn(&mut ModelShape)| {
        let mut shape = shape(family);
        change(&mut shape);
        shape
    };
    let mut shapes = Vec::from(Family::ALL.map(shape));
    shapes.extend([
        with(Family::Gpt1, |shape| {
            shape.positions = Positions::Sinusoidal;
        }),
        with(Family::Opt, |shape| {
            shape.embedding_width = 20;
            shape.order = BlockOrder::PostNorm;
        }),
        with(Family::Falcon, |shape| shape.positions = Positions::Alibi),
        with(Family::Falcon, |shape| {
            shape.kv_heads = 2;
            shape.order = BlockOrder::ParallelTwoNorms;
        }),
        with(Family::Llama, |shape| shape.positions = dynamic(shape)),
    ]);
    shapes
}

/// Weights ten times larger than at the start, so that attention is far from uniform.
fn models() -> Vec<Model> {
    let make = |shape| {
        let model = Model::init(&shape, Head::Token, 7, Device::Cpu, Kind::Double);
        for (name, tensor) in model.params() {
            if !name.contains("norm") && !name.contains("ln_") {
                let _ = tensor.shallow_clone().g_mul_scalar_(10.0);
            }
        }
        model
    };
    shapes().into_iter().map(make).collect()
}

/// Three rows of 9, 6 and 1 tokens.
fn rows() -> Vec<Vec<i64>> {
    let token = |row: i64, i: i64| (row * 17 + i * i * 5 + 3) % 41;
    [9, 6, 1]
        .iter()
        .zip(0..)
        .map(|(n, row)| (0..*n).map(|i| token(row, i)).collect())
        .collect()
}

fn padded(rows: &[Vec<i64>], left: bool) -> Input {
    let len = rows.iter().map(Vec::len).max().unwrap_or(0);
    let fill = |row: &Vec<i64>, pad: i64, real: &dyn Fn(i64) -> i64| {
        let padding = vec![pad; len - row.len()];
        let values: Vec<i64> = row.iter().map(|t| real(*t)).collect();
        if left {
            [padding, values].concat()
        } else {
            [values, padding].concat()
        }
    };
    let stack = |pad: i64, real: &dyn Fn(i64) -> i64| {
        let flat: Vec<i64> = rows.iter().flat_map(|row| fill(row, pad, real)).collect();
        Tensor::from_slice(&flat).view([rows.len() as i64, len as i64])
    };
    let real = rows.iter().map(|row| {
        if left {
            len - row.len()..len
        } else {
            0..row.len()
        }
    });
    Input {
        real: real.collect(),
        ..Input::dense(stack(1, &|t| t))
    }
}

fn alone(row: &[i64]) -> Input {
    Input::dense(Tensor::from_slice(row).unsqueeze(0))
}

fn assert_equal(label: &str, a: &Tensor, b: &Tensor) {
    assert_eq!(a.size(), b.size(), "{label}");
    let gap = (a - b).abs().max().double_value(&[]);
    assert!(gap <= BOUND, "{label}: {gap:e}"); // false for NaN, too
}

#[test]
fn padding_and_batch_mates_change_nothing() {
    let _guard = tch::no_grad_guard();
    for model in models() {
        let rows = rows();
        for left in [false, true] {
            let hidden_btd = model.hidden(&padded(&rows, left));
            let finite = hidden_btd.isfinite().all();
            assert_eq!(finite.int64_value(&[]), 1, "padding makes no NaN");
            let len = hidden_btd.size()[1];
            for (index, row) in rows.iter().enumerate() {
                let start = if left { len - row.len() as i64 } else { 0 };
                let ours = hidden_btd
                    .get(index as i64)
                    .narrow(0, start, row.len() as i64);
                let label = format!("{:?} row {index} left {left}", model.shape.family);
                assert_equal(&label, &ours, &model.hidden(&alone(row)).get(0));
            }
        }
    }
}

/// What is not wanted is left out, and neither the rest nor a gradient changes.
#[test]
fn columns_that_are_not_wanted_change_nothing() {
    for model in models() {
        for left in [false, true] {
            let input = || padded(&rows()[..2], left);
            let all = taped(&model, &input(), RECORD);
            for wanted_from in [1, 5] {
                let part = |x: &Tensor| x.narrow(1, wanted_from, 9 - wanted_from);
                let label = format!("{:?} from {wanted_from}", model.shape.family);
                let input = || input().wanted_from(wanted_from);
                let hidden = tch::no_grad(|| model.hidden(&input()));
                let whole = tch::no_grad(|| model.hidden(&padded(&rows()[..2], left)));
                assert_equal(&label, &part(&hidden), &part(&whole));
                let zeros = hidden.narrow(1, 0, wanted_from).abs().max();
                assert_equal(&label, &zeros, &zeros.zeros_like());
                // The loss of `taped` begins with the second token.
                if wanted_from == 1 {
                    for (name, grad) in taped(&model, &input(), RECORD) {
                        assert_equal(&name, &grad, &all[&name]);
                    }
                }
            }
        }
    }
}

/// The same for one column of each row, where rewards are read.
#[test]
fn the_last_token_of_each_row_is_enough_for_its_score() {
    for token in models() {
        let model = token.to_scalar(3);
        let (rows, label) = (rows(), format!("{:?}", model.shape.family));
        let lengths: Vec<usize> = rows.iter().map(Vec::len).collect();
        for checkpointing in [false, true] {
            let options = RecordOptions {
                checkpointing,
                ..RECORD
            };
            let of = |input: Input| {
                let mut scores = Tensor::new();
                let grads = gradients(&model, |model| {
                    let (hidden_btd, tape) = model.record(&input, &options).expect("a pass");
                    let scores_b = model.scalar_at_last(&hidden_btd, &lengths);
                    let weights_b = Tensor::from_slice(&[0.5, -2.0, 3.0]);
                    (&scores_b * weights_b).sum(None).backward();
                    tape.backward(model).expect("backward pass");
                    scores = scores_b.detach();
                });
                (scores, grads)
            };
            let (all_b, all_grads) = of(padded(&rows, false));
            let (last_b, last_grads) = of(padded(&rows, false).wanted_last(&lengths));
            assert_equal(&label, &last_b, &all_b);
            for (name, grad) in last_grads {
                assert_equal(&format!("{label} {name}"), &grad, &all_grads[&name]);
            }
        }
        let hidden = |input: &Input| tch::no_grad(|| model.hidden(input));
        let whole_btd = hidden(&padded(&rows, false));
        let found_btd = hidden(&padded(&rows, false).wanted_last(&lengths));
        for (row, length) in (0..).zip(&lengths) {
            let last = *length as i64 - 1;
            assert_equal(
                &label,
                &found_btd.get(row).get(last),
                &whole_btd.get(row).get(last),
            );
            let others =
                found_btd.get(row).abs().sum(None) - found_btd.get(row).get(last).abs().sum(None);
            assert_equal(&label, &others, &others.zeros_like());
        }
    }
}

/// Copies in another order, and joined matrices, for every family: f32, since there are none in f64.
#[test]
fn a_model_for_inference_computes_the_same() {
    let _guard = tch::no_grad_guard();
    for (kind, bound) in [(Kind::Float, 1e-5), (Kind::BFloat16, 5e-2)] {
        for shape in shapes() {
            let model = Model::init(&shape, Head::Token, 7, Device::Cpu, kind);
            for (name, tensor) in model.params() {
                // Biases are zeros at the start.
                if name.ends_with("bias") {
                    let place = Tensor::arange(tensor.numel() as i64, (kind, Device::Cpu));
                    tensor
                        .shallow_clone()
                        .copy_(&(place * 0.01).view_as(tensor));
                }
            }
            let input = padded(&rows(), false);
            let inference = model.for_inference(16);
            let logits = |model: &Model| model.logits(&model.hidden(&input)).to_kind(Kind::Double);
            let (ours, plain) = (logits(&inference), logits(&model));
            let largest = plain.abs().max().double_value(&[]);
            let gap = (ours - plain).abs().max().double_value(&[]) / largest;
            assert!(gap < bound, "{:?} {kind:?}: {gap:e}", shape.family);
        }
    }
}

fn gradients(model: &Model, run: impl FnOnce(&Model)) -> BTreeMap<String, Tensor> {
    model.set_trainable(true);
    model.zero_grad();
    run(model);
    model
        .params()
        .iter()
        .map(|(name, p)| (name.clone(), p.grad().copy()))
        .collect()
}

fn loss(model: &Model, hidden_btd: &Tensor, ids_bt: &Tensor) -> Tensor {
    -response_logprobs(model, hidden_btd, ids_bt, 2, 0.7).mean(None)
}

fn taped(model: &Model, input: &Input, options: RecordOptions) -> BTreeMap<String, Tensor> {
    gradients(model, |model| {
        let (hidden_btd, tape) = model.record(input, &options).expect("a pass");
        loss(model, &hidden_btd, &input.ids_bt).backward();
        tape.backward(model).expect("backward pass");
    })
}

#[test]
fn the_tape_gives_the_gradients_of_a_single_graph() {
    for model in models() {
        for left in [false, true] {
            let input = padded(&rows()[..2], left);
            let single = gradients(&model, |model| {
                loss(model, &model.hidden(&input), &input.ids_bt).backward();
            });
            for checkpointing in [false, true] {
                let options = RecordOptions {
                    checkpointing,
                    dropout: 0.0,
                    dropout_key: 0,
                };
                for (name, grad) in taped(&model, &input, options) {
                    assert_equal(&name, &grad, &single[&name]);
                }
            }
        }
    }
}

#[test]
fn checkpointing_repeats_its_dropout_and_the_key_decides_it() {
    for model in models() {
        let input = alone(&rows()[0]);
        let run = |checkpointing, dropout_key| {
            taped(
                &model,
                &input,
                RecordOptions {
                    checkpointing,
                    dropout: 0.3,
                    dropout_key,
                },
            )
        };
        let (kept, recomputed, other) = (run(false, 5), run(true, 5), run(false, 6));
        for (name, grad) in &kept {
            assert!(
                grad.equal(&recomputed[name]),
                "{name} differs under checkpointing"
            );
        }
        assert!(
            kept.iter().any(|(name, grad)| !grad.equal(&other[name])),
            "another key, other masks"
        );
    }
}

#[test]
fn a_tape_without_a_loss_is_an_error() {
    let model = &models()[0];
    model.set_trainable(true);
    let options = RecordOptions {
        checkpointing: false,
        dropout: 0.0,
        dropout_key: 0,
    };
    let (_hidden, tape) = model.record(&alone(&rows()[0]), &options).expect("a pass");
    let error = tape.backward(model).expect_err("nothing to carry on");
    assert!(error.to_string().contains("loss.backward()"), "{error}");
}

#[test]
fn response_logprobs_stand_one_position_before_their_tokens() {
    let _guard = tch::no_grad_guard();
    for model in models() {
        let input = alone(&rows()[0]);
        let hidden_btd = model.hidden(&input);
        let all = (model.logits(&hidden_btd) / 0.7).log_softmax(-1, None);
        let ours_br = response_logprobs(&model, &hidden_btd, &input.ids_bt, 4, 0.7);
        assert_eq!(ours_br.size(), [1, 5]);
        for step in 0..5 {
            let position = 4 + step;
            let distribution_v = all.get(0).get(position - 1);
            let token = input.ids_bt.int64_value(&[0, position]);
            assert_equal(
                "log-prob",
                &ours_br.get(0).get(step),
                &distribution_v.get(token),
            );
        }
        let same = token_logprobs(
            &model,
            &hidden_btd.narrow(1, 3, 5),
            &input.ids_bt.narrow(1, 4, 5),
            0.7,
        );
        assert!(same.equal(&ours_br));
    }
}
