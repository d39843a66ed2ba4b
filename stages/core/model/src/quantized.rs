//! Matrices of 8 or 4 bits a weight, for models whose weights are not trained.
//!
//! A block's matrices are quantised one by one while a folder is read, from f32, so that a copy of all of
//! them never exists; embeddings, norms, biases and the head stay as they are. The product makes
//! weights of the codes a block of rows at a time, and carries a gradient to its input alone.
//!
//! Shape suffixes: o outputs, i inputs, g groups of inputs, k numbers of a group.

use recipe::plan::Quantization;
use tch::{Kind, Tensor};
use torch_ext::{Codes, quantized_linear};

use crate::parameters::Parameters;
use crate::transformer::Model;

/// Rows that are quantised together: what is computed on the way is not larger than these.
const ROWS: i64 = 1024;

/// A matrix as codes. It never changes, so that copies of a model share it.
#[derive(Debug)]
pub(crate) struct QuantizedMatrix {
    codes: Codes,
    outputs: i64,
    inputs: i64,
}

impl QuantizedMatrix {
    /// Rounds each weight of `weight_oi` to the nearest of the numbers that codes stand for.
    pub(crate) fn new(weight_oi: &Tensor, quantize: Quantization) -> Self {
        let (outputs, inputs) = (weight_oi.size()[0], weight_oi.size()[1]);
        let parts = weight_oi.to_kind(Kind::Float).split(ROWS, 0);
        let codes = match quantize {
            Quantization::Int8 => {
                let [codes_oi, scales_o1] = stack(parts.iter().map(int8));
                Codes::Int8 {
                    codes_oi,
                    scales_o1,
                }
            }
            Quantization::Int4 => {
                let [codes_ogh, scales_og, minima_og] = stack(parts.iter().map(int4));
                Codes::Int4 {
                    codes_ogh,
                    scales_og,
                    minima_og,
                }
            }
        };
        Self {
            codes,
            outputs,
            inputs,
        }
    }

    /// `x W^T`, `[..., o]`, of `x` `[..., i]`.
    ///
    /// # Panics
    /// As tch's own products do: when the input has another width, or there is no memory.
    pub(crate) fn product(&self, x: &Tensor) -> Tensor {
        let mut dims = x.size();
        let y_no = quantized_linear(&x.reshape([-1, self.inputs]), &self.codes)
            .unwrap_or_else(|error| panic!("{error}"));
        if let Some(last) = dims.last_mut() {
            *last = self.outputs;
        }
        y_no.view(&dims[..])
    }

    /// The same matrix once more.
    pub(crate) fn share(&self) -> Self {
        let share = Tensor::shallow_clone;
        let codes = match &self.codes {
            Codes::Int8 {
                codes_oi,
                scales_o1,
            } => Codes::Int8 {
                codes_oi: share(codes_oi),
                scales_o1: share(scales_o1),
            },
            Codes::Int4 {
                codes_ogh,
                scales_og,
                minima_og,
            } => Codes::Int4 {
                codes_ogh: share(codes_ogh),
                scales_og: share(scales_og),
                minima_og: share(minima_og),
            },
        };
        Self { codes, ..*self }
    }

    /// Weights that it stands for.
    pub(crate) fn numel(&self) -> usize {
        (self.outputs * self.inputs) as usize
    }
}

impl Model {
    /// Whether the blocks' matrices are codes: such a model is not saved, and trained through adapters alone.
    pub fn is_quantized(&self) -> bool {
        self.parameters.quantized.is_some()
    }

    /// This model with the numbers that its codes stand for, as tensors; the others are shared.
    #[must_use]
    pub fn dequantized(&self) -> Self {
        let mut parameters = self.parameters.map(Tensor::shallow_clone);
        for (name, matrix) in parameters.quantized.iter().flat_map(|q| &q.matrices) {
            let weight_io =
                matrix.product(&Tensor::eye(matrix.inputs, (self.kind(), self.device())));
            let weight = if self.shape.names().in_out {
                weight_io
            } else {
                weight_io.tr().contiguous()
            };
            parameters.dense.insert(name.clone(), weight);
        }
        self.with_parameters(Parameters {
            quantized: None,
            ..parameters
        })
    }
}

/// The columns of parts of a matrix's rows, each as one tensor.
fn stack<const N: usize>(parts: impl Iterator<Item = [Tensor; N]>) -> [Tensor; N] {
    let parts: Vec<[Tensor; N]> = parts.collect();
    std::array::from_fn(|column| {
        let rows: Vec<&Tensor> = parts.iter().map(|part| &part[column]).collect();
        Tensor::cat(&rows, 0)
    })
}

/// Codes -127 to 127 and a scale for each output.
fn int8(weight_oi: &Tensor) -> [Tensor; 2] {
    let scales_o1 = weight_oi.abs().amax([1], true) / 127.0;
    let codes_oi = (weight_oi / not_zero(&scales_o1)).round().clamp(-127, 127);
    [codes_oi.to_kind(Kind::Int8), scales_o1]
}

/// Codes 0 to 15 of each group, two a byte, and the group's scale and minimum.
fn int4(weight_oi: &Tensor) -> [Tensor; 3] {
    let (outputs, inputs) = (weight_oi.size()[0], weight_oi.size()[1]);
    let group = Quantization::GROUP as i64;
    let groups = (inputs as u64).div_ceil(Quantization::GROUP) as i64;
    // The last column again, up to a whole group: it moves neither minimum nor maximum.
    let missing = [outputs, groups * group - inputs];
    let last_oi = weight_oi.narrow(1, inputs - 1, 1).expand(missing, false);
    let weight_ogk = Tensor::cat(&[weight_oi, &last_oi], 1).view([outputs, groups, group]);
    let minima_og1 = weight_ogk.amin([2], true);
    let scales_og1 = (weight_ogk.amax([2], true) - &minima_og1) / 15.0;
    let codes_ogk = ((weight_ogk - &minima_og1) / not_zero(&scales_og1)).round();
    let halves = codes_ogk.clamp(0, 15).to_kind(Kind::Uint8).chunk(2, 2);
    let codes_ogh = &halves[0] + &halves[1] * 16;
    [
        codes_ogh,
        scales_og1.squeeze_dim(2),
        minima_og1.squeeze_dim(2),
    ]
}

/// Scales to divide by: where all weights are equal, the code is 0.
fn not_zero(scales: &Tensor) -> Tensor {
    scales.clamp_min(f64::from(f32::MIN_POSITIVE))
}

#[cfg(test)]
#[path = "quantized_tests.rs"]
mod tests;
