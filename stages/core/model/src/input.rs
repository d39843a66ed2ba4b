//! What goes into a model.
//!
//! Shape suffixes: b rows, t positions.

use datasets::collate::Padded;
use tch::{Device, Kind, Tensor};

/// Token ids, and which of them are real.
#[derive(Debug)]
pub struct Input {
    /// Token ids, int64 `[b, t]`.
    pub ids_bt: Tensor,
    /// `true` on real tokens, bool `[b, t]`. `None` where padding, if any, is on the right: real
    /// tokens then come first and, by causality, see no padding.
    pub valid_bt: Option<Tensor>,
    /// Tokens of each row, int64 `[b]`, where padding on the right alone makes them fewer than the
    /// columns. (Only dynamic rotary scaling asks: causality hides such padding from all else.)
    pub lengths_b: Option<Tensor>,
}

impl Input {
    /// Ids with no padding, or padding on the right alone.
    pub fn dense(ids_bt: Tensor) -> Self {
        Self {
            ids_bt,
            valid_bt: None,
            lengths_b: None,
        }
    }

    /// A padded batch; the mask is kept only where padding precedes a real token.
    pub fn from_padded(padded: &Padded, device: Device) -> Self {
        let rows = padded.valid.chunks(padded.cols.max(1));
        let right_padded = rows.clone().all(|row| row.is_sorted_by(|a, b| a >= b));
        if !right_padded {
            return Self::left_padded(padded, device);
        }
        let length = |row: &[bool]| row.iter().filter(|valid| **valid).count() as i64;
        let lengths: Vec<i64> = rows.map(length).collect();
        let lengths_b = padded.valid.contains(&false).then_some(lengths);
        Self {
            lengths_b: lengths_b.map(|lengths| Tensor::from_slice(&lengths).to_device(device)),
            ..Self::dense(ids(padded, device))
        }
    }

    /// A padded batch with its mask, wherever the padding is.
    pub fn left_padded(padded: &Padded, device: Device) -> Self {
        let dims = [padded.rows as i64, padded.cols as i64];
        let valid = Tensor::from_slice(&padded.valid)
            .view(dims)
            .to_device(device);
        Self {
            ids_bt: ids(padded, device),
            valid_bt: Some(valid),
            lengths_b: None,
        }
    }

    /// Each token's position among the real tokens of its row, int64 `[b, t]` or `[1, t]`.
    pub(crate) fn positions(&self) -> Tensor {
        if let Some(valid_bt) = &self.valid_bt {
            return (valid_bt.cumsum(1, Kind::Int64) - 1).clamp_min(0);
        }
        let len = self.ids_bt.size()[1];
        Tensor::arange(len, (Kind::Int64, self.ids_bt.device())).unsqueeze(0)
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        Self {
            ids_bt: self.ids_bt.shallow_clone(),
            valid_bt: self.valid_bt.as_ref().map(Tensor::shallow_clone),
            lengths_b: self.lengths_b.as_ref().map(Tensor::shallow_clone),
        }
    }
}

fn ids(padded: &Padded, device: Device) -> Tensor {
    Tensor::from_slice(&padded.ids)
        .view([padded.rows as i64, padded.cols as i64])
        .to_device(device)
}
