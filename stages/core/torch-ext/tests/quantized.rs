//! The product with codes of 8 and 4 bits against its definition, number by number, on every device.

use tch::{Device, Kind, Tensor};
use torch_ext::{Codes, quantized_linear};

/// Codes of a matrix, and the weights that they stand for by the definition, f64 `[o, i]`.
struct Case {
    matrix: Codes,
    weight_oi: Tensor,
}

fn random(dims: &[i64]) -> Tensor {
    Tensor::rand(dims, (Kind::Float, Device::Cpu))
}

fn flat<T>(tensor: &Tensor) -> Vec<T>
where
    Vec<T>: TryFrom<Tensor, Error = tch::TchError>,
{
    Vec::try_from(tensor.flatten(0, -1)).expect("numbers")
}

fn int8(outputs: i64, inputs: i64) -> Case {
    let codes_oi = Tensor::randint_low(-127, 128, [outputs, inputs], (Kind::Int8, Device::Cpu));
    let scales_o1 = random(&[outputs, 1]);
    let (codes, scales) = (flat::<i8>(&codes_oi), flat::<f32>(&scales_o1));
    let rows = codes.chunks(inputs as usize).zip(&scales);
    let weights: Vec<f64> = rows
        .flat_map(|(row, scale)| row.iter().map(move |q| f64::from(scale * f32::from(*q))))
        .collect();
    Case {
        matrix: Codes::Int8 {
            codes_oi,
            scales_o1,
        },
        weight_oi: Tensor::from_slice(&weights).view([outputs, inputs]),
    }
}

fn int4(outputs: i64, inputs: i64, half: i64) -> Case {
    let groups = (inputs as u64).div_ceil(2 * half as u64) as i64;
    let dims = [outputs, groups, half];
    let codes_ogh = Tensor::randint_low(0, 256, dims, (Kind::Uint8, Device::Cpu));
    let (scales_og, minima_og) = (random(&dims[..2]), -random(&dims[..2]));
    let codes = flat::<u8>(&codes_ogh);
    let (scales, minima) = (flat::<f32>(&scales_og), flat::<f32>(&minima_og));
    let mut weights = Vec::new();
    for output in 0..outputs {
        for input in 0..inputs {
            let group = (output * groups + input / (2 * half)) as usize;
            let place = input % (2 * half);
            let byte = codes[group * half as usize + (place % half) as usize];
            let code = if place < half { byte & 15 } else { byte >> 4 };
            weights.push(f64::from(scales[group] * f32::from(code) + minima[group]));
        }
    }
    Case {
        matrix: Codes::Int4 {
            codes_ogh,
            scales_og,
            minima_og,
        },
        weight_oi: Tensor::from_slice(&weights).view([outputs, inputs]),
    }
}

fn on(matrix: &Codes, device: Device) -> Codes {
    let to = |tensor: &Tensor| tensor.to_device(device);
    match matrix {
        Codes::Int8 {
            codes_oi,
            scales_o1,
        } => Codes::Int8 {
            codes_oi: to(codes_oi),
            scales_o1: to(scales_o1),
        },
        Codes::Int4 {
            codes_ogh,
            scales_og,
            minima_og,
        } => Codes::Int4 {
            codes_ogh: to(codes_ogh),
            scales_og: to(scales_og),
            minima_og: to(minima_og),
        },
    }
}

fn gap(a: &Tensor, b: &Tensor) -> f64 {
    let a = a.to_device(Device::Cpu).to_kind(Kind::Double);
    let largest = b.abs().max().double_value(&[]).max(1.0);
    (a - b).abs().max().double_value(&[]) / largest
}

#[test]
fn product_and_gradient_follow_the_definition() {
    tch::manual_seed(11);
    torch_ext::cuda::load().expect("CUDA, or none");
    let mut devices = vec![Device::Cpu];
    devices.extend((torch_ext::num_cuda_devices() > 0).then_some(Device::Cuda(0)));
    // The last two take more than one block in the forward pass, and the last in both.
    let cases = [
        int8(5, 3),
        int8(700, 100),
        int8(1100, 1000),
        int4(5, 1, 32),
        int4(5, 33, 32),
        int4(7, 64, 32),
        int4(3, 130, 8),
        int4(700, 100, 32),
        int4(1100, 1000, 32),
    ];
    for Case { matrix, weight_oi } in &cases {
        let (outputs, inputs) = (weight_oi.size()[0], weight_oi.size()[1]);
        let x_ni = Tensor::randn([4, inputs], (Kind::Double, Device::Cpu));
        let up_no = Tensor::randn([4, outputs], (Kind::Double, Device::Cpu));
        let expected = [x_ni.matmul(&weight_oi.tr()), up_no.matmul(weight_oi)];
        for device in &devices {
            for (kind, bound) in [
                (Kind::Double, 1e-9),
                (Kind::Float, 1e-5),
                (Kind::BFloat16, 3e-2),
            ] {
                let to = |tensor: &Tensor| tensor.to_device(*device).to_kind(kind);
                let x_ni = to(&x_ni).copy().set_requires_grad(true);
                let y_no = quantized_linear(&x_ni, &on(matrix, *device)).expect("a product");
                assert_eq!((y_no.kind(), y_no.device()), (kind, *device));
                torch_ext::backward(&[&y_no], &[&to(&up_no)]).expect("backward");
                for (found, expected) in [&y_no.detach(), &x_ni.grad()].into_iter().zip(&expected) {
                    let gap = gap(found, expected);
                    let size = weight_oi.size();
                    assert!(gap <= bound, "{device:?} {kind:?} {size:?}: {gap:e}");
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let x = |inputs: i64| Tensor::zeros([2, inputs], (Kind::Float, Device::Cpu));
    let swapped = |case: Case| match case.matrix {
        Codes::Int4 {
            codes_ogh,
            scales_og,
            minima_og,
        } => Codes::Int4 {
            codes_ogh: codes_ogh.to_kind(Kind::Int8),
            scales_og,
            minima_og,
        },
        Codes::Int8 {
            codes_oi,
            scales_o1,
        } => Codes::Int8 {
            codes_oi,
            scales_o1: scales_o1.to_kind(Kind::Double),
        },
    };
    let short = match int4(4, 64, 32).matrix {
        Codes::Int4 {
            codes_ogh,
            scales_og,
            minima_og,
        } => Codes::Int4 {
            codes_ogh,
            scales_og,
            minima_og: minima_og.narrow(0, 0, 3),
        },
        Codes::Int8 { .. } => unreachable!("four bits"),
    };
    for (label, matrix, inputs) in [
        ("narrower", int8(4, 6).matrix, 5),
        ("wider", int8(4, 6).matrix, 7),
        ("a group too many", int4(4, 65, 32).matrix, 64),
        ("a group too few", int4(4, 64, 32).matrix, 65),
        ("no inputs", int4(4, 64, 32).matrix, 0),
        ("codes of another type", swapped(int4(4, 64, 32)), 64),
        ("scales of another type", swapped(int8(4, 6)), 6),
        ("fewer minima", short, 64),
    ] {
        let error = quantized_linear(&x(inputs), &matrix).expect_err(label);
        let told = error.to_string();
        assert!(
            told.starts_with("quantized_linear: matrix is "),
            "{label}: {told}"
        );
    }
}
