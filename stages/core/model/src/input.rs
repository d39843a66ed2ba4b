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
    /// The columns whose hidden states are wanted: what the last block makes only for others is left out, and these are
    /// 0. No result of those that are wanted changes.
    pub wanted: Wanted,
    /// Positions in the text, and places within spans, int64 `[b, t]` each; `None`: positions are
    /// counted, and there are no spans.
    pub spans_bt: Option<[Tensor; 2]>,
}

/// Columns of a pass.
#[derive(Debug)]
pub enum Wanted {
    /// All.
    All,
    /// Those from this one on, above 0.
    From(i64),
    /// One of each row, int64 `[b]`.
    One(Tensor),
}

impl Wanted {
    /// These columns of a tensor that has them along `dim`, and rows (or one row that stands for all) along the first.
    pub(crate) fn of(&self, x: &Tensor, dim: usize) -> Tensor {
        let mut size = x.size();
        match self {
            Self::All => x.shallow_clone(),
            Self::From(from) => x.narrow(dim as i64, *from, size[dim] - from),
            Self::One(columns_b) => {
                size[0] = columns_b.size()[0];
                let x = x.expand(&size, false);
                size[dim] = 1;
                x.gather(dim as i64, &along(columns_b, &size), false)
            }
        }
    }

    /// Hidden states of these columns, `[b, .., d]`, between zeros in the others of `len`.
    fn among_zeros(&self, hidden: &Tensor, len: i64) -> Tensor {
        let mut size = hidden.size();
        let zeros = |columns| {
            let size = [size[0], columns, size[2]];
            Tensor::zeros(size, (hidden.kind(), hidden.device()))
        };
        match self {
            Self::All => hidden.shallow_clone(),
            Self::From(from) => Tensor::cat(&[&zeros(*from), hidden], 1),
            Self::One(columns_b) => {
                let all = zeros(len);
                size[1] = 1;
                all.scatter(1, &along(columns_b, &size), hidden)
            }
        }
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        match self {
            Self::All => Self::All,
            Self::From(from) => Self::From(*from),
            Self::One(columns_b) => Self::One(columns_b.shallow_clone()),
        }
    }
}

/// The number of each row, everywhere in its row of `size`.
fn along(columns_b: &Tensor, size: &[i64]) -> Tensor {
    let mut dims = vec![1; size.len()];
    dims[0] = -1;
    columns_b.view(&dims[..]).expand(size, false)
}

impl Input {
    /// Ids with no padding, or padding on the right alone.
    pub fn dense(ids_bt: Tensor) -> Self {
        Self {
            ids_bt,
            valid_bt: None,
            lengths_b: None,
            prefixes: Vec::new(),
            wanted: Wanted::All,
            spans_bt: None,
        }
    }

    /// The same, of which only the hidden states from this column on are wanted.
    #[must_use]
    pub fn wanted_from(self, column: i64) -> Self {
        let wanted = match column {
            0 => Wanted::All,
            _ => Wanted::From(column),
        };
        Self { wanted, ..self }
    }

    /// The same, of which only the hidden states at the last token of each row are wanted; rows of these lengths are padded
    /// on the right.
    ///
    /// # Panics
    /// When there are not as many lengths as rows, or one is 0 or more than the columns.
    #[must_use]
    pub fn wanted_last(self, lengths: &[usize]) -> Self {
        let size = self.ids_bt.size();
        let fits = |length: &usize| (1..=size[1]).contains(&(*length as i64));
        assert!(
            lengths.len() as i64 == size[0] && lengths.iter().all(fits),
            "rows of {lengths:?} tokens in {size:?}"
        );
        let last: Vec<i64> = lengths.iter().map(|length| *length as i64 - 1).collect();
        let columns_b = Tensor::from_slice(&last).to_device(self.ids_bt.device());
        Self {
            wanted: Wanted::One(columns_b),
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

    /// The columns that are wanted, where they are not all.
    pub(crate) fn wanted_columns(&self) -> Option<Wanted> {
        let len = self.ids_bt.size()[1];
        match &self.wanted {
            Wanted::All => None,
            Wanted::From(from) => {
                assert!((1..len).contains(from), "columns from {from} of {len}");
                Some(Wanted::From(*from))
            }
            one @ Wanted::One(_) => Some(one.shallow_clone()),
        }
    }

    /// Puts zeros where hidden states are not wanted, `[b, t, d]`.
    pub(crate) fn fill(&self, hidden: &Tensor) -> Tensor {
        self.wanted.among_zeros(hidden, self.ids_bt.size()[1])
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
            wanted: self.wanted.shallow_clone(),
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
