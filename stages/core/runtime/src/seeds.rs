//! Counter-based randomness: every random number is a pure function of its key
//! (seed, purpose, episode, position), so that it depends on no generator, batch, batch mate, rank
//! or resumption.
//!
//! Each word of the key is absorbed by an xor and David Stafford's "Mix13", the finalizer of
//! `splitmix64` (Steele, Lea and Flood 2014): a bijection of 64 bits with full avalanche, so keys
//! that differ in one word differ in the result. Not for cryptography.

/// The golden ratio in 64 bits, `splitmix64`'s increment: keeps the all-zero key away from mix's
/// fixed point 0.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// A random word that depends on all four parts of the key.
pub fn key(seed: u64, purpose: &str, episode: u64, position: u64) -> u64 {
    [fnv1a(purpose), episode, position]
        .into_iter()
        .fold(mix(seed.wrapping_add(GAMMA)), absorb)
}

/// A number in [0, 1) with 53 random bits.
pub fn uniform(seed: u64, purpose: &str, episode: u64, position: u64) -> f64 {
    const SCALE: f64 = 1.0 / (1_u64 << 53) as f64;
    (key(seed, purpose, episode, position) >> 11) as f64 * SCALE
}

/// A permutation of `0..len` (Fisher-Yates), another one for each epoch.
pub fn permutation(seed: u64, purpose: &str, epoch: u64, len: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    for i in (1..len).rev() {
        order.swap(i, below(key(seed, purpose, epoch, i as u64), i + 1));
    }
    order
}

/// Maps a random word to `0..bound` by its high bits (Lemire 2019, without the rejection: the bias
/// is below `bound` / 2^64).
fn below(word: u64, bound: usize) -> usize {
    ((u128::from(word) * bound as u128) >> 64) as usize
}

fn absorb(state: u64, word: u64) -> u64 {
    mix(state.wrapping_add(GAMMA) ^ word)
}

fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn mix_is_the_finalizer_of_splitmix64() {
        // The first output of splitmix64 seeded with 0 (Vigna's reference program).
        assert_eq!(mix(GAMMA), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn keys_do_not_move_between_versions() {
        // Made by the same definition in Python. A change here changes every run: bump the format
        // version with it.
        let words = [
            key(0, "", 0, 0),
            key(1, "sample", 2, 3),
            key(u64::MAX, "order", 1, 0),
        ];
        let expected = [
            7_195_688_542_701_964_755,
            3_656_750_953_975_331_259,
            457_357_369_503_915_738,
        ];
        assert_eq!(words, expected);
    }

    #[test]
    fn every_word_of_the_key_counts_and_none_is_exchangeable() {
        let mut seen = HashSet::new();
        for seed in 0..8 {
            for purpose in ["a", "b", "ab"] {
                for episode in 0..16 {
                    for position in 0..16 {
                        assert!(seen.insert(key(seed, purpose, episode, position)));
                    }
                }
            }
        }
    }

    #[test]
    fn uniform_numbers_are_uniform_and_uncorrelated_along_each_word() {
        let n = 100_000_u64;
        let along: [fn(u64) -> f64; 3] = [
            |i| uniform(i, "u", 0, 0),
            |i| uniform(0, "u", i, 0),
            |i| uniform(0, "u", 0, i),
        ];
        for draw in along {
            let mut buckets = [0.0_f64; 20];
            let mut lagged = 0.0;
            for i in 0..n {
                let x = draw(i);
                assert!((0.0..1.0).contains(&x));
                buckets[(x * 20.0) as usize] += 1.0;
                lagged += (x - 0.5) * (draw(i + 1) - 0.5);
            }
            let expected = n as f64 / 20.0;
            let chi2: f64 = buckets
                .iter()
                .map(|b| (b - expected).powi(2) / expected)
                .sum();
            // 19 degrees of freedom: above 50 once in 7,000.
            assert!(chi2 < 50.0, "chi2 {chi2}");
            let correlation = lagged / n as f64 * 12.0;
            assert!(
                correlation.abs() < 4.0 / (n as f64).sqrt(),
                "correlation {correlation}"
            );
        }
    }

    #[test]
    fn permutations_hold_each_element_once_and_differ_by_epoch() {
        let first = permutation(3, "order", 0, 1000);
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<_>>());
        assert_ne!(first, permutation(3, "order", 1, 1000));
        assert_ne!(first, permutation(4, "order", 0, 1000));
        assert!(permutation(3, "order", 0, 0).is_empty());
    }

    #[test]
    fn all_permutations_of_three_are_equally_likely() {
        let mut counts = std::collections::BTreeMap::<Vec<usize>, u32>::new();
        for epoch in 0..6000 {
            *counts.entry(permutation(1, "p", epoch, 3)).or_default() += 1;
        }
        assert_eq!(counts.len(), 6);
        assert!(
            counts.values().all(|&count| (850..1150).contains(&count)),
            "{counts:?}"
        );
    }
}
