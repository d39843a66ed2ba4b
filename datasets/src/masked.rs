//! Masked tokens (BERT; Devlin et al. 2019, section 3.1): of the tokens that are chosen, four fifths
//! become a mask, a tenth another token, and a tenth stay as they are.
//!
//! As in BERT the chosen ones are a fixed share of the row. Other than there they are chosen anew
//! every time that a row comes round (Liu et al. 2019), the share is of the ordinary tokens and rounded
//! up, and no special token stands in for another.

use runtime::seeds;

use crate::lm_row::LmRow;
use crate::objective::{Ordinary, num_hidden};

/// Of the chosen tokens, those that become a mask.
const MASKED_SHARE: f64 = 0.8;
/// Of the chosen tokens, those that become another token.
const RANDOM_SHARE: f64 = 0.1;

/// Hides tokens.
#[derive(Debug, Clone)]
pub(crate) struct Masked {
    pub mask: u32,
    pub ordinary: Ordinary,
    pub seed: u64,
}

impl Masked {
    /// The row with some tokens hidden; each of them is to be predicted where it stood.
    pub fn row(&self, mut ids: Vec<u32>, number: u64) -> LmRow {
        let columns: Vec<usize> = (0..ids.len())
            .filter(|column| self.ordinary.contains(ids[*column]))
            .collect();
        let order = seeds::permutation(self.seed, "masked columns", number, columns.len());
        let mut targets = vec![None; ids.len()];
        for chosen in &order[..num_hidden(columns.len())] {
            let column = columns[*chosen];
            targets[column] = Some(ids[column]);
            ids[column] = self.in_place_of(ids[column], number, column as u64);
        }
        LmRow {
            prefix: ids.len(),
            ids,
            targets,
            positions: None,
        }
    }

    /// What stands where a chosen token was.
    fn in_place_of(&self, id: u32, number: u64, column: u64) -> u32 {
        let draw = |purpose| seeds::uniform(self.seed, purpose, number, column);
        let kind = draw("masked kind");
        if kind < MASKED_SHARE {
            self.mask
        } else if kind < MASKED_SHARE + RANDOM_SHARE {
            let ordinary = &self.ordinary.0;
            ordinary[(draw("masked token") * ordinary.len() as f64) as usize]
        } else {
            id
        }
    }
}
