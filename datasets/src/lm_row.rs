//! A row of tokens for a language model: what it reads, who sees whom, and what is to be predicted.

use serde::Serialize;

/// A row of tokens, and what is to be predicted from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LmRow {
    /// Tokens.
    pub ids: Vec<u32>,
    /// What is to be predicted at each token, from all that it sees; `None` where nothing is.
    pub targets: Vec<Option<u32>>,
    /// So many tokens at the beginning see each other, whatever their order; every other token sees
    /// itself and all before it. 0: a causal row.
    pub prefix: usize,
    /// Two positions of each token: in the text, and within a span (0 outside of spans). `None`:
    /// tokens stand where they are counted.
    pub positions: Option<Vec<[u32; 2]>>,
}

impl LmRow {
    /// A causal row of plain text: every token after the first is to be predicted.
    pub fn plain(ids: Vec<u32>) -> Self {
        let loss = vec![true; ids.len()];
        Self::next_tokens(ids, &loss)
    }

    /// A causal row in which the tokens where `loss` is true are to be predicted, each at the token
    /// before it; the first token never is.
    pub fn next_tokens(ids: Vec<u32>, loss: &[bool]) -> Self {
        let wanted = ids.iter().zip(loss).skip(1);
        let targets = wanted.map(|(id, wanted)| wanted.then_some(*id));
        Self {
            targets: targets.chain([None]).take(ids.len()).collect(),
            ids,
            prefix: 0,
            positions: None,
        }
    }

    /// Tokens to be predicted.
    pub fn num_targets(&self) -> usize {
        self.targets.iter().flatten().count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_predicted_one_column_before_it() {
        let row = LmRow::next_tokens(vec![7, 8, 9, 10], &[true, false, true, true]);
        assert_eq!(row.targets, [None, Some(9), Some(10), None]);
        assert_eq!(
            (row.num_targets(), row.prefix, &row.positions),
            (2, 0, &None)
        );
        assert_eq!(LmRow::plain(vec![7, 8]).targets, [Some(8), None]);
        assert_eq!(LmRow::plain(vec![7]).num_targets(), 0);
        assert!(LmRow::plain(Vec::new()).targets.is_empty());
    }
}
