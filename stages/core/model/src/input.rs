//! What goes into a model.
//!
//! Shape suffixes: b rows, t positions.

use datasets::LmRow;
use datasets::collate::{Padded, Side, pad};
use tch::{Device, Kind, Tensor};

/// Token ids, which of them are real, and which see each other.
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
    /// For each row how many of its first tokens see each other, whatever their order; empty: none.
    /// Padding, if any, is on the right then.
    pub prefixes: Vec<usize>,
    /// The first column whose hidden states are wanted: what the last block makes only for those before it is left
    /// out, and they are 0. No result behind it changes.
    pub wanted_from: i64,
    /// Positions in the text, and places within spans, int64 `[b, t]` each; `None`: positions are
    /// counted, and there are no spans.
    pub spans_bt: Option<[Tensor; 2]>,
}

impl Input {
    /// Ids with no padding, or padding on the right alone.
    pub fn dense(ids_bt: Tensor) -> Self {
        Self {
            ids_bt,
            valid_bt: None,
            lengths_b: None,
            prefixes: Vec::new(),
            wanted_from: 0,
            spans_bt: None,
        }
    }

    /// The same, of which only the hidden states from this column on are wanted.
    #[must_use]
    pub fn wanted_from(self, wanted_from: i64) -> Self {
        Self {
            wanted_from,
            ..self
        }
    }

    /// Rows of a language model, padded on the right.
    ///
    /// # Panics
    /// When some rows have two positions and others have one.
    pub fn from_rows(rows: &[&LmRow], pad_id: u32, device: Device) -> Self {
        let padded = |rows: &[&[u32]], fill| pad(rows, Side::Right, fill, None);
        let ids: Vec<&[u32]> = rows.iter().map(|row| &row.ids[..]).collect();
        let causal = rows.iter().all(|row| row.prefix == 0);
        let positions: Vec<&[[u32; 2]]> = rows
            .iter()
            .filter_map(|row| row.positions.as_deref())
            .collect();
        let spans_bt = (!positions.is_empty()).then(|| {
            assert_eq!(
                positions.len(),
                rows.len(),
                "all rows have two positions, or none has"
            );
            [0, 1].map(|which| {
                let rows: Vec<Vec<u32>> = positions
                    .iter()
                    .map(|row| row.iter().map(|both| both[which]).collect())
                    .collect();
                let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
                ids_of(&padded(&rows, 0), device)
            })
        });
        Self {
            prefixes: if causal {
                Vec::new()
            } else {
                rows.iter().map(|row| row.prefix).collect()
            },
            spans_bt,
            ..Self::from_padded(&padded(&ids, pad_id), device)
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
            ..Self::dense(ids_of(padded, device))
        }
    }

    /// A padded batch with its mask, wherever the padding is.
    pub fn left_padded(padded: &Padded, device: Device) -> Self {
        let dims = [padded.rows as i64, padded.cols as i64];
        let valid = Tensor::from_slice(&padded.valid)
            .view(dims)
            .to_device(device);
        Self {
            valid_bt: Some(valid),
            ..Self::dense(ids_of(padded, device))
        }
    }

    /// Puts zeros before the hidden states that are wanted, `[b, t, d]`.
    pub(crate) fn fill(&self, hidden: &Tensor) -> Tensor {
        if self.wanted_from == 0 {
            return hidden.shallow_clone();
        }
        let size = hidden.size();
        let zeros = Tensor::zeros(
            [size[0], self.wanted_from, size[2]],
            (hidden.kind(), hidden.device()),
        );
        Tensor::cat(&[&zeros, hidden], 1)
    }

    /// Each token's position in the text, int64 `[b, t]` or `[1, t]`.
    pub(crate) fn positions(&self) -> Tensor {
        if let Some([positions_bt, _]) = &self.spans_bt {
            return positions_bt.shallow_clone();
        }
        if let Some(valid_bt) = &self.valid_bt {
            return (valid_bt.cumsum(1, Kind::Int64) - 1).clamp_min(0);
        }
        let len = self.ids_bt.size()[1];
        Tensor::arange(len, (Kind::Int64, self.ids_bt.device())).unsqueeze(0)
    }

    /// Each token's place within its span, int64 `[b, t]`, where there are spans.
    pub(crate) fn places(&self) -> Option<&Tensor> {
        self.spans_bt.as_ref().map(|[_, places_bt]| places_bt)
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        Self {
            ids_bt: self.ids_bt.shallow_clone(),
            valid_bt: self.valid_bt.as_ref().map(Tensor::shallow_clone),
            lengths_b: self.lengths_b.as_ref().map(Tensor::shallow_clone),
            prefixes: self.prefixes.clone(),
            wanted_from: self.wanted_from,
            spans_bt: self
                .spans_bt
                .as_ref()
                .map(|both| both.each_ref().map(Tensor::shallow_clone)),
        }
    }
}

fn ids_of(padded: &Padded, device: Device) -> Tensor {
    Tensor::from_slice(&padded.ids)
        .view([padded.rows as i64, padded.cols as i64])
        .to_device(device)
}
