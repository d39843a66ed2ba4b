//! What goes into a model.
//!
//! Shape suffixes: b rows, t positions.

use std::ops::Range;

use datasets::LmRow;
use datasets::collate::{Padded, Side, pad};
use tch::{Device, Kind, Tensor};

/// Token ids, which of them are real, and which see each other.
#[derive(Debug)]
pub struct Input {
    /// Token ids, int64 `[b, t]`.
    pub ids_bt: Tensor,
    /// The columns of each row's real tokens, which are next to each other; empty: all of every row.
    pub real: Vec<Range<usize>>,
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
    /// The last token of each row, int64 `[b]`.
    Last(Tensor),
}

impl Wanted {
    /// These columns of a tensor that has them along `dim`, and rows (or one row that stands for all) along the first.
    pub(crate) fn of(&self, x: &Tensor, dim: usize) -> Tensor {
        let mut size = x.size();
        match self {
            Self::All => x.shallow_clone(),
            Self::From(from) => x.narrow(dim as i64, *from, size[dim] - from),
            Self::Last(columns_b) => {
                size[0] = columns_b.size()[0];
                let x = x.expand(&size, false);
                size[dim] = 1;
                x.gather(dim as i64, &along(columns_b, &size), false)
            }
        }
    }

    /// Hidden states of these columns, `[b, .., d]`, between zeros in the others of `len`.
    pub(crate) fn among_zeros(&self, hidden: &Tensor, len: i64) -> Tensor {
        let mut size = hidden.size();
        let zeros = |columns| {
            let size = [size[0], columns, size[2]];
            Tensor::zeros(size, (hidden.kind(), hidden.device()))
        };
        match self {
            Self::All => hidden.shallow_clone(),
            Self::From(from) => Tensor::cat(&[&zeros(*from), hidden], 1),
            Self::Last(columns_b) => {
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
            Self::Last(columns_b) => Self::Last(columns_b.shallow_clone()),
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
            real: Vec::new(),
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
            wanted: Wanted::Last(columns_b),
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

    /// A padded batch.
    ///
    /// # Panics
    /// As [`Self::masked`].
    pub fn from_padded(padded: &Padded, device: Device) -> Self {
        Self::masked(ids_of(padded, device), &padded.valid)
    }

    /// Ids, of which those are real where `valid` (row by row) is true.
    ///
    /// # Panics
    /// When there are not as many of both, or padding stands between real tokens.
    pub fn masked(ids_bt: Tensor, valid: &[bool]) -> Self {
        assert_eq!(ids_bt.numel(), valid.len(), "a mask of {:?}", ids_bt.size());
        let columns = ids_bt.size()[1].max(1) as usize;
        let real = if valid.contains(&false) {
            valid.chunks(columns).map(real_columns).collect()
        } else {
            Vec::new()
        };
        Self {
            real,
            ..Self::dense(ids_bt)
        }
    }

    /// The mask of the real tokens, bool `[b, t]`, where padding precedes some: behind them it is hidden by causality.
    pub(crate) fn mask_bt(&self) -> Option<Tensor> {
        if self.real.iter().all(|row| row.start == 0) {
            return None;
        }
        let columns = self.ids_bt.size()[1] as usize;
        let of_row = |row: &Range<usize>| {
            let row = row.clone();
            (0..columns).map(move |column| row.contains(&column))
        };
        let valid: Vec<bool> = self.real.iter().flat_map(of_row).collect();
        let mask_bt = Tensor::from_slice(&valid).view_(self.ids_bt.size());
        Some(mask_bt.to_device(self.ids_bt.device()))
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
            last @ Wanted::Last(_) => Some(last.shallow_clone()),
        }
    }

    /// Each token's position in the text, int64 `[b, t]` or `[1, t]`.
    pub(crate) fn positions(&self) -> Tensor {
        if let Some([positions_bt, _]) = &self.spans_bt {
            return positions_bt.shallow_clone();
        }
        if let Some(valid_bt) = self.mask_bt() {
            return (valid_bt.cumsum(1, Kind::Int64) - 1).clamp_min(0);
        }
        let len = self.ids_bt.size()[1];
        Tensor::arange(len, (Kind::Int64, self.ids_bt.device())).unsqueeze(0)
    }

    /// Each token's place within its span, int64 `[b, t]`, where there are spans.
    pub(crate) fn places(&self) -> Option<&Tensor> {
        self.spans_bt.as_ref().map(|[_, places_bt]| places_bt)
    }
}

/// From the first real token of a row to the last.
fn real_columns(valid: &[bool]) -> Range<usize> {
    let start = valid.iter().position(|valid| *valid).unwrap_or(0);
    let len = valid[start..].iter().take_while(|valid| **valid).count();
    let behind = &valid[start + len..];
    assert!(!behind.contains(&true), "padding between real tokens");
    start..start + len
}

fn ids_of(padded: &Padded, device: Device) -> Tensor {
    Tensor::from_slice(&padded.ids)
        .view([padded.rows as i64, padded.cols as i64])
        .to_device(device)
}
