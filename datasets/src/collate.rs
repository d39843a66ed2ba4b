//! Rows of unequal length as one rectangle.

pub use crate::examples::{
    ComparisonExample, Overlong, OverlongCount, PromptExample, SftExample, comparison_examples,
    prompt_examples, sft_examples,
};

/// A batch of rows, padded to one length; row-major.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Padded {
    /// Number of rows.
    pub rows: usize,
    /// Tokens per row, padding included.
    pub cols: usize,
    /// `[rows, cols]` token ids.
    pub ids: Vec<i64>,
    /// `[rows, cols]`; false on padding.
    pub valid: Vec<bool>,
}

/// The side on which padding stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Before the tokens, so that all rows end together: for prompts before responses.
    Left,
    /// After the tokens: for training.
    Right,
}

/// Pads rows with `pad_id` to `cols` tokens, or to the longest row.
///
/// # Panics
/// When a row is longer than `cols`.
pub fn pad(rows: &[&[u32]], side: Side, pad_id: u32, cols: Option<usize>) -> Padded {
    let longest = rows.iter().map(|row| row.len()).max().unwrap_or(0);
    let cols = cols.unwrap_or(longest);
    assert!(
        longest <= cols,
        "a row of {longest} tokens does not fit into {cols}"
    );
    let mut ids = vec![i64::from(pad_id); rows.len() * cols];
    let mut valid = vec![false; rows.len() * cols];
    for (r, row) in rows.iter().enumerate() {
        let start = r * cols
            + match side {
                Side::Left => cols - row.len(),
                Side::Right => 0,
            };
        for (slot, &id) in ids[start..].iter_mut().zip(*row) {
            *slot = i64::from(id);
        }
        valid[start..start + row.len()].fill(true);
    }
    Padded {
        rows: rows.len(),
        cols,
        ids,
        valid,
    }
}

/// Prompts padded on the left beside responses padded on the right, so that all responses start in
/// one column, which is returned with the batch. Pairs are (prompt ids, response ids).
pub fn pad_pairs(pairs: &[(&[u32], &[u32])], pad_id: u32) -> (Padded, usize) {
    let (prompts, responses): (Vec<&[u32]>, Vec<&[u32]>) = pairs.iter().copied().unzip();
    let left = pad(&prompts, Side::Left, pad_id, None);
    let right = pad(&responses, Side::Right, pad_id, None);
    let cols = left.cols + right.cols;
    let mut joined = Padded {
        rows: pairs.len(),
        cols,
        ids: Vec::with_capacity(pairs.len() * cols),
        valid: Vec::with_capacity(pairs.len() * cols),
    };
    for row in 0..pairs.len() {
        for part in [&left, &right] {
            let columns = row * part.cols..(row + 1) * part.cols;
            joined.ids.extend_from_slice(&part.ids[columns.clone()]);
            joined.valid.extend_from_slice(&part.valid[columns]);
        }
    }
    (joined, left.cols)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_responses_of_padded_pairs_start_in_one_column() {
        let (batch, start) = pad_pairs(&[(&[1, 2], &[3]), (&[4], &[5, 6])], 9);
        assert_eq!(start, 2);
        assert_eq!(batch.ids, [1, 2, 3, 9, 9, 4, 5, 6]);
        assert_eq!(
            batch.valid,
            [true, true, true, false, false, true, true, true]
        );
    }

    #[test]
    fn padding_stands_on_its_side_and_is_invalid() {
        let right = pad(&[&[1, 2, 3], &[4]], Side::Right, 9, None);
        assert_eq!((right.rows, right.cols), (2, 3));
        assert_eq!(right.ids, [1, 2, 3, 4, 9, 9]);
        assert_eq!(right.valid, [true, true, true, true, false, false]);
        let left = pad(&[&[1, 2, 3], &[4]], Side::Left, 9, Some(4));
        assert_eq!(left.ids, [9, 1, 2, 3, 9, 9, 9, 4]);
        assert_eq!(
            left.valid,
            [false, true, true, true, false, false, false, true]
        );
    }

    #[test]
    #[should_panic(expected = "a row of 3 tokens does not fit into 2")]
    fn a_row_that_does_not_fit_is_a_bug() {
        pad(&[&[1, 2, 3]], Side::Right, 0, Some(2));
    }
}
