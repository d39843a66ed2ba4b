//! Rows without their padding: what a pass computes where rows are of different lengths.
//!
//! The tokens of all rows lie one behind the other as a single row. Only attention knows where a row ends; all else works
//! token by token, and spends nothing on padding.
//!
//! Shape suffixes: b rows, t positions, n tokens of all rows, m of them whose hidden states are wanted, d width.

use std::ops::Range;

use recipe::shape::{ModelShape, Positions, RopeScaling};
use tch::{Device, Tensor};

use crate::attention::{Mask, Rows};
use crate::input::{Input, Wanted};

/// The tokens of an input's rows, one behind the other.
#[derive(Debug)]
pub(crate) struct Unpadded {
    /// Token ids, int64 `[1, n]`.
    pub(crate) ids_1n: Tensor,
    /// Each token's position in its row, int64 `[1, n]`.
    pub(crate) positions_1n: Tensor,
    /// Which keys a query sees.
    pub(crate) mask: Mask,
    /// Which of the tokens are wanted, int64 `[m]`, where they are not all, and what these see.
    pub(crate) wanted: Option<(Tensor, Mask)>,
    /// Where hidden states belong.
    pub(crate) places: Places,
}

/// Where hidden states of some tokens stand among those of padded rows.
#[derive(Debug)]
pub(crate) struct Places {
    /// In the flattened columns `[b * t]`, int64 `[m]`.
    at_m: Tensor,
    rows: i64,
    columns: i64,
}

impl Places {
    /// Hidden states `[1, m, d]` in their places, `[b, t, d]`, with zeros everywhere else.
    pub(crate) fn fill(&self, hidden_1md: &Tensor) -> Tensor {
        let hidden_md = hidden_1md.squeeze_dim(0);
        let width = hidden_md.size()[1];
        let options = (hidden_md.kind(), hidden_md.device());
        Tensor::zeros([self.rows * self.columns, width], options)
            .index_copy(0, &self.at_m, &hidden_md)
            .view([self.rows, self.columns, width])
    }

    /// What stands in these places of `[b, t, d]`, `[1, m, d]`.
    pub(crate) fn of(&self, hidden_btd: &Tensor) -> Tensor {
        let hidden_nd = hidden_btd.flatten(0, 1);
        hidden_nd.index_select(0, &self.at_m).unsqueeze(0)
    }
}

impl Unpadded {
    /// The tokens of an input that has padding, and whose attention is causal and nothing else.
    pub(crate) fn new(input: &Input, shape: &ModelShape) -> Option<Self> {
        let longest = input.real.iter().map(Range::len).max()?;
        let is_causal = input.prefixes.is_empty()
            && input.spans_bt.is_none()
            && shape
                .local
                .as_ref()
                .is_none_or(|local| local.window >= longest);
        let positions_are_plain = match shape.positions {
            Positions::Alibi => false,
            // Frequencies would depend on the row.
            Positions::Rotary(rotary) => !matches!(rotary.scaling, RopeScaling::Dynamic { .. }),
            Positions::Learned { .. } | Positions::Sinusoidal => true,
        };
        (is_causal && positions_are_plain && !torch_ext::is_plain()).then(|| Self::of_rows(input))
    }

    fn of_rows(input: &Input) -> Self {
        let device = input.ids_bt.device();
        let size = input.ids_bt.size();
        let (rows, columns) = (size[0], size[1]);
        assert!(
            input.real.len() as i64 == rows
                && input.real.iter().all(|row| row.end as i64 <= columns),
            "real tokens at {:?} in {size:?}",
            input.real
        );
        // The first column of a row that is wanted.
        let first_wanted = |real: &Range<i64>| match &input.wanted {
            Wanted::All => real.start,
            Wanted::From(from) => (*from).clamp(real.start, real.end),
            Wanted::Last(_) => real.end - 1,
        };
        let (mut places, mut positions) = (Vec::new(), Vec::new());
        let (mut wanted, mut wanted_places) = (Vec::new(), Vec::new());
        let (mut keys, mut queries) = (Vec::new(), Vec::new());
        for (row, real) in input.real.iter().enumerate() {
            let real = real.start as i64..real.end as i64;
            let (first_place, first_token) = (row as i64 * columns, places.len() as i64);
            let first = first_wanted(&real);
            places.extend(real.clone().map(|column| first_place + column));
            positions.extend(0..real.end - real.start);
            wanted.extend((first..real.end).map(|column| first_token + column - real.start));
            wanted_places.extend((first..real.end).map(|column| first_place + column));
            keys.push(real.end - real.start);
            queries.push(real.end - first);
        }
        let mask_of = |queries: &[i64]| Mask::Rows(Rows::new(queries, &keys, device));
        let all = wanted.len() == places.len();
        let places_n = tensor(&places, device);
        Self {
            ids_1n: input
                .ids_bt
                .flatten(0, 1)
                .index_select(0, &places_n)
                .unsqueeze(0),
            positions_1n: tensor(&positions, device).unsqueeze(0),
            mask: mask_of(&keys),
            wanted: (!all).then(|| (tensor(&wanted, device), mask_of(&queries))),
            places: Places {
                at_m: if all {
                    places_n
                } else {
                    tensor(&wanted_places, device)
                },
                rows,
                columns,
            },
        }
    }
}

fn tensor(numbers: &[i64], device: Device) -> Tensor {
    Tensor::from_slice(numbers).to_device(device)
}
