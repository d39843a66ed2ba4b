//! A product with a matrix of a block: a weight as tensor or codes, its bias, and an adapter beside them.

use tch::Tensor;

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
            (Weight::Codes(matrix), Some(bias)) => matrix.product(x_btd) + bias,
            (Weight::Codes(matrix), None) => matrix.product(x_btd),
        }
    }
}
