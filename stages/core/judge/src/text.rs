//! Checks of the text itself: has it become repetitive, or the same everywhere?

use std::collections::{HashMap, HashSet};

/// Replies among which pairs are told apart by [`distinct_2`].
pub const DISTINCT_GROUP: usize = 512;

/// Different word pairs over all word pairs (Li et al. 2016); 1 where there are none. The measure falls with the
/// amount of text, so it is averaged over groups of [`DISTINCT_GROUP`] replies, or a little more where that does
/// not divide their number; fewer replies are one group.
pub fn distinct_2(replies: &[String]) -> f64 {
    let num_groups = (replies.len() / DISTINCT_GROUP).max(1);
    let start = |group: usize| group * replies.len() / num_groups;
    let groups = (0..num_groups).map(|group| &replies[start(group)..start(group + 1)]);
    groups.map(distinct_2_of).sum::<f64>() / num_groups as f64
}

fn distinct_2_of(replies: &[String]) -> f64 {
    let words: Vec<Vec<&str>> = replies
        .iter()
        .map(|r| r.split_whitespace().collect())
        .collect();
    let pairs: Vec<&[&str]> = words.iter().flat_map(|w| w.windows(2)).collect();
    if pairs.is_empty() {
        return 1.0;
    }
    pairs.iter().collect::<HashSet<_>>().len() as f64 / pairs.len() as f64
}

/// Share of word triples that their own reply had before.
pub fn repeated_trigrams(replies: &[String]) -> f64 {
    let (mut repeated, mut all) = (0, 0);
    for reply in replies {
        let words: Vec<&str> = reply.split_whitespace().collect();
        let triples: Vec<&[&str]> = words.windows(3).collect();
        all += triples.len();
        repeated += triples.len() - triples.iter().collect::<HashSet<_>>().len();
    }
    f64::from(u32::try_from(repeated).unwrap_or(u32::MAX)) / f64::max(1.0, all as f64)
}

/// Share of the most frequent reply.
pub fn most_frequent_share(replies: &[String]) -> f64 {
    let mut counts = HashMap::new();
    for reply in replies {
        *counts.entry(reply.trim()).or_insert(0_u32) += 1;
    }
    let most = counts.values().max().copied().unwrap_or(0);
    f64::from(most) / f64::max(1.0, replies.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replies(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn distinct_2_counts_over_all_replies() {
        // a b, b c | a b  -> 2 different of 3
        assert!((distinct_2(&replies(&["a b c", "a b"])) - 2.0 / 3.0).abs() < 1e-12);
        assert!((distinct_2(&replies(&["a"])) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn distinct_2_does_not_fall_with_the_number_of_groups() {
        let group: Vec<String> = (0..DISTINCT_GROUP).map(|i| format!("a {i}")).collect();
        assert!((distinct_2(&group) - 1.0).abs() < 1e-12);
        let twice = [&group[..], &group[..]].concat();
        assert!((distinct_2(&twice) - 1.0).abs() < 1e-12);
        // One more is in a group, and says again what is there.
        let all = [&twice[..], &["a 0".to_owned()]].concat();
        assert!((distinct_2(&all) - f64::midpoint(1.0, 512.0 / 513.0)).abs() < 1e-12);
    }

    #[test]
    fn trigrams_repeat_within_one_reply_only() {
        assert!(repeated_trigrams(&replies(&["a b c d", "a b c d"])) < 1e-12);
        // a b a b a: aba bab aba -> 1 of 3
        assert!((repeated_trigrams(&replies(&["a b a b a"])) - 1.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn the_most_frequent_reply() {
        assert!((most_frequent_share(&replies(&["x", "y", "x ", "z"])) - 0.5).abs() < 1e-12);
    }
}
