//! A product with a matrix of a block: a weight as tensor or codes, its bias, and an adapter beside them.

use tch::Tensor;
use torch_ext::{PackedMatrix, has_device_kernels};

use crate::adapter::LowRank;
use crate::quantized::QuantizedMatrix;

/// A matrix in its family's layout, or as codes.
#[derive(Debug)]
pub(crate) enum Weight {
    /// `[out, in]`.
    OutIn(Tensor),
    /// `[in, out]` (`Conv1D`).
    InOut(Tensor),
    /// Frozen.
    Codes(QuantizedMatrix),
    /// A copy in another order, without gradients.
    Packed(PackedMatrix),
}

impl Weight {
    /// A packed copy for products of some rows, where there is such a thing.
    fn packed(&self, rows: usize) -> Option<PackedMatrix> {
        match self {
            Self::OutIn(weight) => PackedMatrix::new(weight, rows),
            Self::InOut(weight) => PackedMatrix::new(&weight.tr(), rows),
            Self::Codes(_) | Self::Packed(_) => None,
        }
    }
}

/// A matrix, its bias, and what is trained in its place, where there is such a thing.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Weight,
    pub(crate) bias: Option<Tensor>,
    pub(crate) adapter: Option<LowRank>,
}

impl Linear {
    /// `dropout` is the rate before the adapter.
    pub(crate) fn forward(&self, x_btd: &Tensor, dropout: f64) -> Tensor {
        let y_btd = self.product(x_btd);
        match &self.adapter {
            Some(adapter) => y_btd + adapter.forward(x_btd, dropout),
            None => y_btd,
        }
    }

    /// With its weight packed, where that can be.
    pub(crate) fn into_packed(mut self, rows: usize) -> Self {
        if let Some(packed) = self.weight.packed(rows) {
            self.weight = Weight::Packed(packed);
        }
        self
    }

    /// One packed matrix with the outputs of all behind each other, where that can be.
    pub(crate) fn joined(parts: &[&Self], rows: usize) -> Option<Self> {
        let weight = |part: &&Self| match &part.weight {
            Weight::OutIn(weight) if part.adapter.is_none() => Some(weight.shallow_clone()),
            _ => None,
        };
        let weights: Vec<Tensor> = parts.iter().map(weight).collect::<Option<_>>()?;
        let biases: Vec<&Tensor> = parts.iter().filter_map(|part| part.bias.as_ref()).collect();
        let bias = match biases.len() {
            0 => None,
            n if n == parts.len() => Some(Tensor::cat(&biases, 0)),
            _ => return None,
        };
        Some(Self {
            weight: Weight::Packed(PackedMatrix::new(&Tensor::cat(&weights, 0), rows)?),
            bias,
            adapter: None,
        })
    }

    /// The product alone, and the bias that is still to be added, for a kernel that adds it on its way: where there
    /// is such a one, and nothing else to add.
    pub(crate) fn without_bias(&self, x_btd: &Tensor) -> Option<(Tensor, &Tensor)> {
        let bias = self.bias.as_ref()?;
        if self.adapter.is_some() || !has_device_kernels(x_btd.device()) {
            return None;
        }
        match &self.weight {
            Weight::OutIn(weight) => Some((x_btd.linear(weight, None::<&Tensor>), bias)),
            Weight::InOut(weight) => Some((x_btd.matmul(weight), bias)),
            Weight::Codes(_) | Weight::Packed(_) => None,
        }
    }

    /// The product with the matrix itself.
    fn product(&self, x_btd: &Tensor) -> Tensor {
        match (&self.weight, &self.bias) {
            (Weight::OutIn(weight), bias) => x_btd.linear(weight, bias.as_ref()),
            (Weight::InOut(weight), Some(bias)) => {
                let dims = x_btd.size();
                let rows = x_btd.reshape([-1, dims[2]]);
                bias.addmm(&rows, weight).view([dims[0], dims[1], -1])
            }
            (Weight::InOut(weight), None) => x_btd.matmul(weight),
            (Weight::Packed(matrix), bias) => matrix.product(x_btd, bias.as_ref()),
            (Weight::Codes(matrix), Some(bias)) => matrix.product(x_btd) + bias,
            (Weight::Codes(matrix), None) => matrix.product(x_btd),
        }
    }
}
