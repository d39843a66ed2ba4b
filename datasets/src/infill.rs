//! Autoregressive blank infilling (GLM; Du et al. 2022, section 2.1).
//!
//! Spans are taken out of a text until enough of it is hidden. A row is then part A, the text with a
//! mask in place of each span, and part B, the spans in a random order, each behind a start token;
//! within a span every token is to be predicted at the one before it, and at the last one the end.
//! Part A sees all of itself, part B sees part A and what precedes in part B. A token has two positions:
//! in part A (those of a span: its mask's), and within the span, where the start token is at 1 (part A:
//! 0).
//!
//! Lengths are Poisson(3), from 1 to [`LONGEST_SPAN`], and two spans never touch, as in the authors'
//! code. Other than there the spans are placed one after another, each anywhere that it fits; one that
//! fits nowhere is shortened. Sentence- and document-level spans (their section 2.1) are not made.

use std::collections::BTreeMap;
use std::ops::Range;

use runtime::seeds;

use crate::lm_row::LmRow;
use crate::objective::{Ordinary, num_hidden};

/// Mean of the Poisson distribution of lengths.
const MEAN_LENGTH: f64 = 3.0;
/// Tokens of a span, at most (in a million million spans none is longer).
const LONGEST_SPAN: usize = 39;
/// Places within a span, from 1 on: those of its tokens and of its start.
pub const SPAN_PLACES: usize = LONGEST_SPAN + 1;

/// The tokens that infilling puts into rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blanks {
    /// Stands in part A for each span.
    pub mask: u32,
    /// Precedes each span in part B.
    pub start: u32,
    /// Is to be predicted at the last token of each span.
    pub end: u32,
}

/// Takes spans out.
#[derive(Debug, Clone)]
pub(crate) struct Infill {
    pub blanks: Blanks,
    pub ordinary: Ordinary,
    pub seed: u64,
}

impl Infill {
    pub fn row(&self, text: &[u32], number: u64) -> LmRow {
        let spans = self.spans(text, number);
        let order = seeds::permutation(self.seed, "infill order", number, spans.len());
        let shuffled: Vec<Range<usize>> = order.into_iter().map(|i| spans[i].clone()).collect();
        self.blanks.row(text, &shuffled)
    }

    /// The spans to be taken out of a text. None holds a special token, and none touches another.
    fn spans(&self, text: &[u32], number: u64) -> Vec<Range<usize>> {
        let mut free: Vec<bool> = text.iter().map(|id| self.ordinary.contains(*id)).collect();
        let mut missing = num_hidden(free.iter().filter(|free| **free).count());
        let mut spans = Vec::new();
        while missing > 0 {
            let draw = |purpose| seeds::uniform(self.seed, purpose, number, spans.len() as u64);
            let wanted = length(draw("infill length"));
            let runs = runs(&free);
            let Some(length) = runs.iter().max().map(|longest| wanted.min(*longest)) else {
                break;
            };
            if length == 0 {
                break;
            }
            let fits: Vec<usize> = (0..runs.len()).filter(|at| runs[*at] >= length).collect();
            let start = fits[(draw("infill start") * fits.len() as f64) as usize];
            let end = start + length;
            free[start.saturating_sub(1)..text.len().min(end + 1)].fill(false);
            missing = missing.saturating_sub(length);
            spans.push(start..end);
        }
        spans
    }
}

impl Blanks {
    /// The row of a text whose `spans` are taken out, part B in their order.
    ///
    /// # Panics
    /// When spans overlap, or reach beyond the text.
    pub fn row(&self, text: &[u32], spans: &[Range<usize>]) -> LmRow {
        let mut ordered = spans.to_vec();
        ordered.sort_by_key(|span| span.start);
        let (mut ids, mut blanks, mut taken) = (Vec::new(), BTreeMap::new(), 0);
        for span in ordered {
            ids.extend_from_slice(&text[taken..span.start]);
            blanks.insert(span.start, ids.len() as u32);
            ids.push(self.mask);
            taken = span.end;
        }
        ids.extend_from_slice(&text[taken..]);
        let prefix = ids.len();
        let mut targets = vec![None; prefix];
        let mut positions: Vec<[u32; 2]> = (0..prefix as u32).map(|at| [at, 0]).collect();
        for span in spans {
            let hidden = &text[span.clone()];
            ids.push(self.start);
            ids.extend_from_slice(hidden);
            targets.extend(hidden.iter().chain([&self.end]).map(|id| Some(*id)));
            let places = 1..=hidden.len() as u32 + 1;
            positions.extend(places.map(|place| [blanks[&span.start], place]));
        }
        LmRow {
            ids,
            targets,
            prefix,
            positions: Some(positions),
        }
    }
}

/// A length of a span, by the inverse of its distribution function.
fn length(uniform: f64) -> usize {
    let mut weight = MEAN_LENGTH;
    let weights: Vec<f64> = (1..=LONGEST_SPAN)
        .map(|length| {
            let current = weight;
            weight *= MEAN_LENGTH / (length + 1) as f64;
            current
        })
        .collect();
    let mut left = uniform * weights.iter().sum::<f64>();
    for (index, weight) in weights.iter().enumerate() {
        left -= weight;
        if left < 0.0 {
            return index + 1;
        }
    }
    LONGEST_SPAN
}

/// How many free places follow from each place on, its own included.
fn runs(free: &[bool]) -> Vec<usize> {
    let mut runs = vec![0; free.len()];
    let mut run = 0;
    for (at, free) in free.iter().enumerate().rev() {
        run = if *free { run + 1 } else { 0 };
        runs[at] = run;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The distribution function of Poisson(3) without 0, by its definition:
    /// `sum over 1..=k of 3^i e^-3 / i!, over 1 - e^-3`.
    const UP_TO: [f64; 8] = [
        0.157_187_089_473,
        0.392_967_723_684,
        0.628_748_357_895,
        0.805_583_833_553,
        0.911_685_118_947,
        0.964_735_761_645,
        0.987_471_751_372,
        0.995_997_747_520,
    ];

    #[test]
    fn lengths_are_poisson_without_zero() {
        for (index, share) in UP_TO.iter().enumerate() {
            assert_eq!(length(share - 1e-9), index + 1);
            assert_eq!(length(share + 1e-9), index + 2);
        }
        assert_eq!(length(0.0), 1);
        assert!(length(1.0 - 1e-16) > 8);
    }
}
