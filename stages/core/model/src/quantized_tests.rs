//! Codes against the weights that they stand for, and models of them against plain models of the same
//! weights.

use recipe::families::Sizes;
use recipe::plan::Quantization::{self, Int4, Int8};
use recipe::shape::Family;
use recipe::tensors::Head;
use tch::{Device, Kind, Tensor, no_grad};

use super::*;
use crate::parameters::Quantized;
use crate::{Input, Model};

const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

/// The weights that a matrix stands for, `[o, i]`, to the bit.
fn stands_for(matrix: &QuantizedMatrix) -> Tensor {
    match &matrix.codes {
        Codes::Int8 {
            codes_oi,
            scales_o1,
        } => codes_oi.to_kind(Kind::Float) * scales_o1,
        Codes::Int4 {
            codes_ogh,
            scales_og,
            minima_og,
        } => {
            let low_ogh = codes_ogh.remainder(16);
            let high_ogh = codes_ogh.divide_scalar_mode(16, "floor");
            let codes_ogk = Tensor::cat(&[low_ogh, high_ogh], 2).to_kind(Kind::Float);
            let weight_ogk = codes_ogk * scales_og.unsqueeze(2) + minima_og.unsqueeze(2);
            weight_ogk.flatten(1, 2).narrow(1, 0, matrix.inputs)
        }
    }
}

/// The distance of two neighbours among the numbers that codes stand for, at each weight `[o, i]`.
fn steps(matrix: &QuantizedMatrix) -> Tensor {
    match &matrix.codes {
        Codes::Int8 { scales_o1, .. } => scales_o1.expand([matrix.outputs, matrix.inputs], false),
        Codes::Int4 { scales_og, .. } => {
            let repeated =
                scales_og.repeat_interleave_self_int(Quantization::GROUP as i64, 1, None);
            repeated.narrow(1, 0, matrix.inputs)
        }
    }
}

fn largest(x: &Tensor) -> f64 {
    x.abs().max().double_value(&[])
}

/// Widths on both sides of whole groups, more rows than are quantised together, and rows without spread.
fn matrices() -> Vec<Tensor> {
    let sizes = [[3, 1], [5, 63], [4, 64], [7, 65], [2, 200], [1030, 33]];
    let random = sizes.into_iter().zip(1..).map(|(dims, seed)| {
        tch::manual_seed(seed);
        Tensor::randn(dims, F32) * 0.1 + 0.02
    });
    let flat = [0.0, -0.3].map(|value| Tensor::full([2, 70], value, F32));
    random.chain(flat).collect()
}

#[test]
fn each_weight_becomes_the_nearest_number_and_stays_there() {
    for weight_oi in matrices() {
        for quantize in [Int8, Int4] {
            let label = format!("{quantize:?} {:?}", weight_oi.size());
            let matrix = QuantizedMatrix::new(&weight_oi, quantize);
            let rounded_oi = stands_for(&matrix);
            assert_eq!(rounded_oi.size(), weight_oi.size(), "{label}");
            let beyond = (&rounded_oi - &weight_oi).abs() - steps(&matrix) * 0.5;
            let most = beyond.max().double_value(&[]);
            assert!(most <= 1e-6, "{label}: {most:e} beyond half a step");
            let again = stands_for(&QuantizedMatrix::new(&rounded_oi, quantize));
            let moved = largest(&(&again - &rounded_oi));
            assert!(moved <= 1e-6, "{label}: moves by {moved:e}");
        }
    }
}

#[test]
fn codes_take_the_bytes_that_are_planned() {
    for weight_oi in matrices() {
        let dims = [weight_oi.size()[0], weight_oi.size()[1]].map(|n| n as u64);
        let bytes = |tensors: &[&Tensor]| -> u64 {
            let of = |t: &&Tensor| (t.numel() * t.kind().elt_size_in_bytes()) as u64;
            tensors.iter().map(of).sum()
        };
        for quantize in [Int8, Int4] {
            let found = match &QuantizedMatrix::new(&weight_oi, quantize).codes {
                Codes::Int8 {
                    codes_oi,
                    scales_o1,
                } => bytes(&[codes_oi, scales_o1]),
                Codes::Int4 {
                    codes_ogh,
                    scales_og,
                    minima_og,
                } => bytes(&[codes_ogh, scales_og, minima_og]),
            };
            assert_eq!(found, quantize.matrix_bytes(dims), "{quantize:?} {dims:?}");
        }
    }
}

/// The product and the gradient to its input, against those of the plain matrix. The last size takes more
/// than one block in both passes.
#[test]
fn product_and_gradient_are_those_of_the_rounded_matrix() {
    let several_blocks = Tensor::randn([2100, 512], F32);
    for weight_oi in matrices().iter().chain([&several_blocks]) {
        for quantize in [Int8, Int4] {
            let matrix = QuantizedMatrix::new(weight_oi, quantize);
            for (kind, bound) in [
                (Kind::Double, 1e-9),
                (Kind::Float, 1e-5),
                (Kind::BFloat16, 2e-2),
            ] {
                let label = format!("{quantize:?} {kind:?} {:?}", weight_oi.size());
                let plain_oi = stands_for(&matrix).to_kind(kind);
                let x = Tensor::randn([2, 3, matrix.inputs], (kind, Device::Cpu));
                let up = Tensor::randn([2, 3, matrix.outputs], (kind, Device::Cpu));
                let run = |product: &dyn Fn(&Tensor) -> Tensor| {
                    let x = x.copy().set_requires_grad(true);
                    let y = product(&x);
                    (&y * &up).sum(kind).backward();
                    [y.detach(), x.grad()].map(|t| t.to_kind(Kind::Double))
                };
                let ours = run(&|x| matrix.product(x));
                let expected = run(&|x| x.linear(&plain_oi, None::<Tensor>));
                for (a, b) in ours.iter().zip(&expected) {
                    let gap = largest(&(a - b)) / largest(b).max(1.0);
                    assert!(gap <= bound, "{label}: {gap:e}"); // false for NaN, too
                }
            }
        }
    }
}

fn codes_of(model: &Model) -> &Quantized {
    model.parameters.quantized.as_ref().expect("codes")
}

/// A small model of each family in a folder.
fn saved(family: Family, head: Head) -> (Model, tempfile::TempDir) {
    let shape = family.shape(&Sizes {
        vocab_size: 41,
        max_positions: 16,
        layers: 2,
        width: 24,
        heads: 4,
    });
    let model = Model::init(&shape, head, 7, Device::Cpu, Kind::Float);
    let dir = tempfile::tempdir().expect("folder");
    model.save(dir.path()).expect("save");
    (model, dir)
}

#[test]
fn a_quantised_model_is_the_plain_model_of_its_rounded_weights() {
    let ids_bt = Tensor::from_slice(&[3_i64, 17, 40, 5, 5, 9]).view([2, 3]);
    let hidden = |model: &Model| no_grad(|| model.hidden(&Input::dense(ids_bt.shallow_clone())));
    for family in Family::ALL {
        for quantize in [Int8, Int4] {
            let (whole, dir) = saved(family, Head::Token);
            let load =
                |quantize| Model::load_frozen(dir.path(), Device::Cpu, Kind::Float, quantize);
            let model = load(Some(quantize)).expect("load");
            let label = format!("{family:?} {quantize:?}");
            assert!(model.is_quantized() && !whole.is_quantized());
            assert_eq!(model.num_params(), whole.num_params(), "{label}");
            for (name, tensor) in model.params() {
                assert!(tensor.equal(&whole.params()[name]), "{label}: {name}");
            }
            let plain = model.dequantized();
            for (name, matrix) in &codes_of(&model).matrices {
                let weight_oi = stands_for(matrix);
                let in_out = model.shape.names().in_out;
                let stored = if in_out { weight_oi.tr() } else { weight_oi };
                assert!(plain.params()[name].equal(&stored), "{label}: {name}");
            }
            assert_eq!(plain.params().len(), whole.params().len(), "{label}");
            let gap = largest(&(hidden(&model) - hidden(&plain)));
            assert!(gap <= 1e-5, "{label}: {gap:e}");
            let cost = largest(&(hidden(&model) - hidden(&whole)));
            assert!(cost > 1e-5, "{label}: rounding changes something, {cost:e}");
            assert!(hidden(&model.deep_copy()).equal(&hidden(&model)), "{label}");
        }
    }
}

#[test]
fn a_quantised_model_alone_is_neither_trained_nor_saved() {
    let (_, dir) = saved(Family::Llama, Head::Scalar);
    let model = Model::load_frozen(dir.path(), Device::Cpu, Kind::Float, Some(Int4));
    let model = model.expect("load");
    let attempts: [&dyn Fn(); 3] = [
        &|| model.set_trainable(true),
        &|| drop(model.trainable()),
        &|| model.deep_copy().copy_from(&model),
    ];
    for attempt in attempts {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(attempt));
        let told = outcome.expect_err("refused");
        let told = told.downcast_ref::<&str>().expect("words");
        assert!(told.starts_with("a quantised model"), "{told}");
    }
    let out = tempfile::tempdir().expect("folder");
    let error = model.save(out.path()).expect_err("refused").to_string();
    assert!(error.contains("cannot be saved\n  hint: "), "{error}");
    assert_eq!(std::fs::read_dir(out.path()).expect("folder").count(), 0);
}
