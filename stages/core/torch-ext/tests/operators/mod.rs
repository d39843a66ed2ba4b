//! The operators of one pass against the same out of libtorch's own: values and gradients. One body for the CPU's
//! kernels and for those of the GPU; `crate::begin` says which.

use tch::{Device, Kind, Tensor};
use torch_ext::{RowNorm, gelu_tanh, rotate, swiglu};

type Operator = fn(&[Tensor]) -> Tensor;

struct Case {
    name: &'static str,
    inputs: Vec<Tensor>,
    fused: Operator,
    plain: Operator,
}

fn random(dims: &[i64]) -> Tensor {
    Tensor::randn(dims, (Kind::Double, Device::Cpu))
}

fn plain_norm(it: &[Tensor]) -> Tensor {
    let mean = it[0].square().mean_dim(-1, true, None);
    &it[0] * (mean + 1e-5).rsqrt() * &it[1]
}

fn norm<'a>(it: &'a [Tensor], bias_d: Option<&'a Tensor>) -> RowNorm<'a> {
    RowNorm {
        weight_d: &it[1],
        bias_d,
        eps: 1e-5,
        centred: bias_d.is_some(),
    }
}

/// The sum and its norm, both of which have gradients.
fn both(of: (Tensor, Tensor)) -> Tensor {
    Tensor::cat(&[of.0 * 0.3, of.1], -1)
}

fn norms(dims: &[i64], d: i64) -> Vec<Case> {
    let x = || random(dims) * 3.0;
    vec![
        Case {
            name: "rms norm",
            inputs: vec![x(), random(&[d])],
            fused: |it| norm(it, None).of(&it[0]).expect("a norm"),
            plain: plain_norm,
        },
        Case {
            name: "rms norm of a sum",
            inputs: vec![x(), random(&[d]), x()],
            fused: |it| both(norm(it, None).of_sum(&it[0], &it[2]).expect("a norm")),
            plain: |it| {
                let sum = &it[0] + &it[2];
                both((
                    sum.shallow_clone(),
                    plain_norm(&[sum, it[1].shallow_clone()]),
                ))
            },
        },
        Case {
            name: "layer norm",
            inputs: vec![x(), random(&[d]), random(&[d])],
            fused: |it| norm(it, Some(&it[2])).of(&it[0]).expect("a norm"),
            plain: |it| it[0].layer_norm(it[1].size(), Some(&it[1]), Some(&it[2]), 1e-5, true),
        },
        Case {
            name: "layer norm of a sum",
            inputs: vec![x(), random(&[d]), random(&[d]), x()],
            fused: |it| {
                let normed = norm(it, Some(&it[2])).of_sum(&it[0], &it[3]);
                both(normed.expect("a norm"))
            },
            plain: |it| {
                let sum = &it[0] + &it[3];
                let dims = it[1].size();
                let normed = sum.layer_norm(dims, Some(&it[1]), Some(&it[2]), 1e-5, true);
                both((sum, normed))
            },
        },
    ]
}

fn plain_gate(it: &[Tensor]) -> Tensor {
    it[0].silu() * &it[1]
}

/// Both halves of one product.
fn halves(it: &[Tensor], gate: fn(&Tensor, &Tensor) -> Tensor) -> Tensor {
    let parts = it[0].chunk(2, -1);
    gate(&parts[0], &parts[1])
}

fn tables(x_bhte: &Tensor, rows: i64, rotated: i64, interleaved: bool) -> [Tensor; 2] {
    let columns = x_bhte.size()[2];
    let angles = random(&[rows, 1, columns, rotated / 2]).to_kind(x_bhte.kind());
    let angles = if interleaved {
        angles.repeat_interleave_self_int(2, -1, None)
    } else {
        Tensor::cat(&[&angles, &angles], -1)
    };
    [angles.cos(), angles.sin()]
}

fn plain_rotation(it: &[Tensor], interleaved: bool) -> Tensor {
    let rotated = it[1].size()[3];
    let x = it[0].narrow(-1, 0, rotated);
    let turned = if interleaved {
        let (even, odd) = (x.slice(-1, 0, None, 2), x.slice(-1, 1, None, 2));
        Tensor::stack(&[&-odd, &even], -1).flatten(-2, -1)
    } else {
        let halves = x.chunk(2, -1);
        Tensor::cat(&[&-&halves[1], &halves[0]], -1)
    };
    let rest = it[0].narrow(-1, rotated, it[0].size()[3] - rotated);
    Tensor::cat(&[x * &it[1] + turned * &it[2], rest], -1)
}

/// Sizes that fill vectors of 16 numbers, and sizes that do not.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dims in [vec![3, 5, 24], vec![70, 1, 256], vec![2, 7]] {
        let d = dims[dims.len() - 1];
        cases.extend(norms(&dims, d));
        cases.push(Case {
            name: "swiglu",
            inputs: vec![random(&dims) * 20.0, random(&dims)],
            fused: |it| swiglu(&it[0], &it[1]).expect("a gate"),
            plain: plain_gate,
        });
        cases.push(Case {
            name: "gelu",
            inputs: vec![random(&dims) * 4.0],
            fused: |it| gelu_tanh(&it[0], None).expect("an activation"),
            plain: |it| it[0].gelu("tanh"),
        });
        cases.push(Case {
            name: "gelu behind a bias",
            inputs: vec![random(&dims) * 4.0, random(&[d])],
            fused: |it| gelu_tanh(&it[0], Some(&it[1])).expect("an activation"),
            plain: |it| (&it[0] + &it[1]).gelu("tanh"),
        });
        cases.push(Case {
            name: "swiglu of halves",
            inputs: vec![random(&[4, 3, 2 * d])],
            fused: |it| halves(it, |gate, up| swiglu(gate, up).expect("a gate")),
            plain: |it| halves(it, |gate, up| gate.silu() * up),
        });
    }
    for (dims, rows, rotated) in [
        ([2, 3, 5, 24], 2, 24),
        ([2, 3, 5, 64], 1, 64),
        ([2, 1, 4, 20], 2, 12),
        ([9, 4, 1, 64], 9, 32),
    ] {
        // As the projections leave it: [b, t, h, e], seen as [b, h, t, e].
        let x = random(&[dims[0], dims[2], dims[1], dims[3]]);
        let x_bhte = x.transpose(1, 2);
        let fixed = |interleaved| {
            let [cos, sin] = tables(&x_bhte, rows, rotated, interleaved);
            vec![x_bhte.shallow_clone(), cos, sin]
        };
        cases.push(Case {
            name: "rotate",
            inputs: fixed(false),
            fused: |it| rotate(&it[0], &it[1], &it[2], false).expect("a rotation"),
            plain: |it| plain_rotation(it, false),
        });
        cases.push(Case {
            name: "rotate neighbours",
            inputs: fixed(true),
            fused: |it| rotate(&it[0], &it[1], &it[2], true).expect("a rotation"),
            plain: |it| plain_rotation(it, true),
        });
    }
    cases
}

/// The output, and the gradient of each input but tables; in f64.
fn run(case: &Case, operator: Operator, kind: Kind) -> Vec<Tensor> {
    let trained = if case.name.starts_with("rotate") {
        1
    } else {
        case.inputs.len()
    };
    let inputs: Vec<Tensor> = case
        .inputs
        .iter()
        .enumerate()
        .map(|(i, x)| x.detach().to_kind(kind).set_requires_grad(i < trained))
        .collect();
    let y = operator(&inputs);
    let weights = Tensor::arange(y.numel() as i64, (Kind::Double, Device::Cpu));
    let weights = (weights * 0.7).sin().view_as(&y).to_kind(kind);
    (&y * weights).sum(None).backward();
    let same = tch::no_grad(|| operator(&inputs));
    assert!(same.equal(&y), "{}: without gradients", case.name);
    let grads = inputs[..trained].iter().map(Tensor::grad);
    std::iter::once(y.detach())
        .chain(grads)
        .map(|x| x.to_kind(Kind::Double))
        .collect()
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |x: Tensor| x.square().sum(None).sqrt().double_value(&[]);
    norm(a - b) / norm(b.shallow_clone())
}

#[test]
fn values_and_gradients_are_those_of_the_plain_operators() {
    let _turn = crate::begin();
    tch::manual_seed(2);
    for case in cases() {
        let exact = run(&case, case.plain, Kind::Double);
        for (kind, bound) in [
            (Kind::Double, 1e-14),
            (Kind::Float, 1e-6),
            // Sums of numbers that are rounded to 8 bits.
            (Kind::BFloat16, 4e-2),
        ] {
            for (index, (fused, exact)) in
                run(&case, case.fused, kind).iter().zip(&exact).enumerate()
            {
                let gap = distance(fused, exact);
                let dims = &case.inputs[0].size();
                assert!(
                    gap < bound,
                    "{} {dims:?} {kind:?} output {index}: {gap:e}",
                    case.name
                );
            }
        }
    }
}

#[test]
fn a_frozen_weight_of_a_norm_gets_no_gradient() {
    let _turn = crate::begin();
    tch::manual_seed(3);
    let (x, weight) = (random(&[70, 24]), random(&[24]));
    let [trained, frozen] = [true, false].map(|trained| {
        let x = x.copy().set_requires_grad(true);
        let weight = weight.copy().set_requires_grad(trained);
        let row_norm = RowNorm {
            weight_d: &weight,
            bias_d: None,
            eps: 1e-5,
            centred: false,
        };
        let y = row_norm.of(&x).expect("a norm");
        y.square().sum(None).backward();
        [x.grad(), weight.grad()]
    });
    assert!(trained[0].equal(&frozen[0]));
    assert!(trained[1].defined() && !frozen[1].defined());
}

#[test]
fn what_does_not_fit_is_refused() {
    let _turn = crate::begin();
    let x = random(&[2, 3, 4, 8]);
    let half = x.to_kind(Kind::Half);
    let refusals = [
        norm(&[random(&[1]), random(&[7])], None).of(&x),
        norm(&[random(&[1]), half.get(0).get(0).get(0)], None).of(&half),
        norm(&[random(&[1]), random(&[8])], Some(&random(&[7]))).of(&x),
        gelu_tanh(&half, None),
        gelu_tanh(&x, Some(&random(&[7]))),
        swiglu(&x, &x.narrow(0, 0, 1)),
        swiglu(&x, &x.to_kind(Kind::Float)),
        rotate(&x, &random(&[2, 1, 4, 10]), &random(&[2, 1, 4, 10]), false),
        rotate(&x, &random(&[2, 1, 5, 8]), &random(&[2, 1, 5, 8]), false),
        rotate(&x, &random(&[3, 1, 4, 8]), &random(&[3, 1, 4, 8]), false),
        rotate(&x, &random(&[2, 1, 4, 7]), &random(&[2, 1, 4, 7]), true),
    ];
    for (index, refused) in refusals.iter().enumerate() {
        let error = refused.as_ref().expect_err("tensors that do not fit");
        assert!(error.to_string().contains("expected"), "{index}: {error}");
    }
}
