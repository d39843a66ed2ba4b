//! From scores to ranks.

/// Ranks of scores: 1 is the highest; equal scores have equal ranks, and the next rank counts them
/// (1, 2, 2, 4).
pub fn ranks(scores: &[f64]) -> Vec<i32> {
    scores
        .iter()
        .map(|x| 1 + scores.iter().filter(|y| *y > x).count() as i32)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::ranks;

    #[test]
    fn best_is_first_and_ties_share() {
        assert_eq!(ranks(&[0.1, 0.7, 0.1, 0.9]), [3, 2, 3, 1]);
        assert_eq!(ranks(&[0.0, 0.0]), [1, 1]);
        assert!(ranks(&[]).is_empty());
    }
}
