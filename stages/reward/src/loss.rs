//! The K-wise ranking loss (Ouyang et al. 2022, equation 1) and what is measured of a reward model.

use tch::{Kind, Tensor};

/// The ordered pairs of a micro-batch: all pairs of a prompt's K responses make one batch element.
pub struct PairIndex {
    /// Flat row of the better response of every pair.
    pub better: Vec<i64>,
    /// Flat row of the worse response.
    pub worse: Vec<i64>,
    /// `1 / C(K, 2)` of the pair's prompt.
    pub weight: Vec<f64>,
}

impl PairIndex {
    /// From each prompt's number of responses and its ordered pairs `(better, worse)`.
    pub fn new<'a>(prompts: impl Iterator<Item = (usize, &'a [(usize, usize)])>) -> Self {
        let mut index = Self {
            better: Vec::new(),
            worse: Vec::new(),
            weight: Vec::new(),
        };
        let mut first_row = 0;
        for (num_responses, pairs) in prompts {
            let weight = 2.0 / (num_responses * (num_responses - 1)) as f64;
            for (better, worse) in pairs {
                index.better.push((first_row + better) as i64);
                index.worse.push((first_row + worse) as i64);
                index.weight.push(weight);
            }
            first_row += num_responses;
        }
        index
    }
}

/// Scores differences `r(better) - r(worse)`, one per pair.
pub fn margins(scores_n: &Tensor, pairs: &PairIndex) -> Tensor {
    let device = scores_n.device();
    let row = |rows: &[i64]| scores_n.index_select(0, &Tensor::from_slice(rows).to_device(device));
    row(&pairs.better) - row(&pairs.worse)
}

/// `-sum over prompts of 1/C(K,2) sum over its pairs of ln sigmoid(margin)`; the caller divides by
/// the number of prompts of the whole update. Ties are in no pair, and lower the sum, not the
/// weight.
pub fn kwise_loss(scores_n: &Tensor, pairs: &PairIndex) -> Tensor {
    let weight = Tensor::from_slice(&pairs.weight).to_device(scores_n.device());
    -(margins(scores_n, pairs).log_sigmoid() * weight.to_kind(scores_n.kind())).sum(None::<Kind>)
}

/// Share of pairs whose margin is positive; exact ties of the model count half.
pub fn accuracy(margins: &[f64]) -> f64 {
    let right = |m: &f64| {
        if *m > 0.0 {
            1.0
        } else if *m == 0.0 {
            0.5
        } else {
            0.0
        }
    };
    margins.iter().map(right).sum::<f64>() / margins.len().max(1) as f64
}

/// Expected calibration error of `P(better wins) = sigmoid(margin)`: in ten bins of confidence
/// `max(p, 1 - p)` from 1/2 to 1, the mean of |accuracy - confidence| weighted by the bins' sizes
/// (Guo et al. 2017, equation 3).
pub fn expected_calibration_error(margins: &[f64]) -> f64 {
    const NUM_BINS: usize = 10;
    let mut bins = [(0.0, 0.0, 0.0); NUM_BINS];
    for margin in margins {
        let confidence = 1.0 / (1.0 + (-margin.abs()).exp());
        let bin = (((confidence - 0.5) * 2.0 * NUM_BINS as f64) as usize).min(NUM_BINS - 1);
        bins[bin].0 += 1.0;
        bins[bin].1 += accuracy(&[*margin]);
        bins[bin].2 += confidence;
    }
    let gap = |(_, right, confidence): &(f64, f64, f64)| (right - confidence).abs();
    bins.iter().map(gap).sum::<f64>() / margins.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kwise_loss_equals_its_written_out_sum() {
        let scores_n = Tensor::from_slice(&[0.3_f64, -1.2, 2.0, 0.1, 0.7]);
        let (first, second) = (vec![(0, 1), (2, 0), (2, 1)], vec![(1, 0)]);
        let pairs = PairIndex::new([(3, &first[..]), (2, &second[..])].into_iter());
        let term = |margin: f64| (1.0 + (-margin).exp()).ln();
        let expected = (term(1.5) + term(1.7) + term(3.2)) / 3.0 + term(0.6);
        assert!((kwise_loss(&scores_n, &pairs).double_value(&[]) - expected).abs() < 1e-12);
    }

    #[test]
    fn calibration_of_a_perfectly_calibrated_bin_is_zero() {
        let margin = 3.0_f64.ln(); // p = 3/4
        let margins = [margin, margin, margin, -margin];
        assert!(expected_calibration_error(&margins) < 1e-12);
        assert!((expected_calibration_error(&[margin; 4]) - 0.25).abs() < 1e-12);
    }

    #[test]
    fn accuracy_counts_ties_half() {
        assert!((accuracy(&[1.0, -1.0, 0.0, 2.0]) - 0.625).abs() < 1e-12);
    }
}
