//! One token: from logits to a distribution, and from a uniform number to a sample of it.
//!
//! Shapes: `b` rows, `v` vocabulary. Everything here works row by row.

use model::Model;
use recipe::memory::LOGITS_AT_ONCE;
use tch::{Device, Kind, Tensor};
use torch_ext::{Cuts, LARGEST_DEVICE_VOCABULARY, device_sample, has_device_kernels, wide_kind};

use crate::options::SamplingOptions;

/// The next token of each row of hidden states `[b, d]` and its log-probability, `[b]` each, as [`choose`] does.
pub(crate) fn choose_rows(
    model: &Model,
    hidden_bd: &Tensor,
    uniform_b: Option<&Tensor>,
    options: &SamplingOptions,
) -> (Tensor, Tensor) {
    let at_once = (LOGITS_AT_ONCE / model.shape.vocab_size).max(1) as i64;
    let rows = hidden_bd.size()[0];
    if rows <= at_once {
        return choose(&model.logits(hidden_bd), uniform_b, options);
    }
    let parts = (0..rows).step_by(at_once as usize).map(|start| {
        let count = at_once.min(rows - start);
        let uniform_b = uniform_b.map(|uniform_b| uniform_b.narrow(0, start, count));
        let logits_bv = model.logits(&hidden_bd.narrow(0, start, count));
        choose(&logits_bv, uniform_b.as_ref(), options)
    });
    let (ids, logprobs): (Vec<_>, Vec<_>) = parts.unzip();
    (Tensor::cat(&ids, 0), Tensor::cat(&logprobs, 0))
}

/// The token of each row on which its uniform number (f64 `[b]`; greedy: none) falls, or the likeliest, and the
/// logarithm of its probability, `[b]` each on the logits' device: in one go on the CPU, and on a GPU without leaving
/// it.
pub(crate) fn choose(
    logits_bv: &Tensor,
    uniform_b: Option<&Tensor>,
    options: &SamplingOptions,
) -> (Tensor, Tensor) {
    let device = logits_bv.device();
    let few = logits_bv.size()[1] <= LARGEST_DEVICE_VOCABULARY as i64;
    if has_device_kernels(device) && few {
        return choose_on_device(logits_bv, uniform_b, options);
    }
    if device.is_cuda() || torch_ext::is_plain() {
        return choose_by_tensors(logits_bv, uniform_b, options);
    }
    let cuts = Cuts {
        temperature: if options.greedy {
            1.0
        } else {
            options.temperature
        },
        top_k: options.top_k,
        top_p: options.top_p,
    };
    let uniform_b = uniform_b.map(|uniform_b| to_host(uniform_b, Kind::Double));
    let (ids_b, logprobs_b) = torch_ext::sample(logits_bv, uniform_b.as_deref(), &cuts)
        .unwrap_or_else(|error| panic!("{error}"));
    (Tensor::from_slice(&ids_b), Tensor::from_slice(&logprobs_b))
}

/// By the GPU's kernel; cuts, which sort, by tensors before it.
fn choose_on_device(
    logits_bv: &Tensor,
    uniform_b: Option<&Tensor>,
    options: &SamplingOptions,
) -> (Tensor, Tensor) {
    let is_cut = options.top_k.is_some() || options.top_p.is_some();
    let chosen = if options.greedy {
        device_sample(logits_bv, None, 1.0)
    } else if is_cut {
        device_sample(&cut(logits_bv, options), uniform_b, 1.0)
    } else {
        device_sample(logits_bv, uniform_b, options.temperature)
    };
    chosen.unwrap_or_else(|error| panic!("{error}"))
}

fn choose_by_tensors(
    logits_bv: &Tensor,
    uniform_b: Option<&Tensor>,
    options: &SamplingOptions,
) -> (Tensor, Tensor) {
    let logprobs_bv = log_distribution(logits_bv, options);
    let ids_b1 = match uniform_b {
        Some(uniform_b) => invert_cdf(&logprobs_bv, &uniform_b.unsqueeze(1)),
        None => logprobs_bv.argmax(-1, true),
    };
    let logprobs_b1 = logprobs_bv.gather(-1, &ids_b1, false);
    (ids_b1.squeeze_dim(1), logprobs_b1.squeeze_dim(1))
}

/// The log-probabilities that are sampled from, in f32 (f64 for f64 logits): logits divided by the
/// temperature, then top-k, then top-p, renormalised. Greedy: the plain log-softmax. A token that is
/// excluded has -inf.
fn log_distribution(logits_bv: &Tensor, options: &SamplingOptions) -> Tensor {
    if options.greedy {
        return plain_log_distribution(logits_bv);
    }
    cut(logits_bv, options).log_softmax(-1, wide_kind(logits_bv.kind()))
}

/// Logits divided by the temperature, in f32 (f64 for f64 logits); those of excluded tokens are -inf.
fn cut(logits_bv: &Tensor, options: &SamplingOptions) -> Tensor {
    let logits_bv = logits_bv.to_kind(wide_kind(logits_bv.kind()));
    let is_plain = (options.temperature - 1.0).abs() == 0.0;
    let mut logits_bv = if is_plain {
        logits_bv
    } else {
        logits_bv / options.temperature
    };
    if let Some(k) = options.top_k {
        logits_bv = keep_top_k(&logits_bv, k);
    }
    if let Some(p) = options.top_p {
        logits_bv = keep_top_p(&logits_bv, p);
    }
    logits_bv
}

/// The plain log-softmax, in f32 (f64 for f64 logits).
pub(crate) fn plain_log_distribution(logits_bv: &Tensor) -> Tensor {
    logits_bv.log_softmax(-1, wide_kind(logits_bv.kind()))
}

/// Excludes what is less likely than the k-th likeliest token.
fn keep_top_k(logits_bv: &Tensor, k: usize) -> Tensor {
    let k = (k as i64).min(logits_bv.size()[1]);
    let (values_bk, _) = logits_bv.topk(k, -1, true, true);
    let least_b1 = values_bk.amin([-1], true);
    logits_bv.masked_fill(&logits_bv.lt_tensor(&least_b1), f64::NEG_INFINITY)
}

/// Keeps the smallest set of likeliest tokens whose probabilities sum to at least p.
fn keep_top_p(logits_bv: &Tensor, p: f64) -> Tensor {
    let (sorted_bv, order_bv) = logits_bv.sort_stable(true, -1, true);
    let probs_bv = sorted_bv.softmax(-1, Kind::Double);
    let before_bv = torch_ext::sums_so_far(&probs_bv) - &probs_bv;
    let excluded_bv = before_bv.ge(p);
    // The likeliest token stays, whatever rounding does to its 0.
    let _ = excluded_bv.narrow(-1, 0, 1).fill_(0);
    let excluded_bv = excluded_bv
        .zeros_like()
        .scatter_(-1, &order_bv, &excluded_bv);
    logits_bv.masked_fill(&excluded_bv, f64::NEG_INFINITY)
}

/// The inverse of each row's CDF at a uniform number: the first token whose cumulative probability (in
/// f64) passes it. Tokens of probability 0 are never chosen.
fn invert_cdf(logprobs_bv: &Tensor, uniform_b1: &Tensor) -> Tensor {
    // Converted first: `cumsum` with another type than its input's is ten times slower on a CPU.
    let cdf_bv = torch_ext::sums_so_far(&logprobs_bv.exp().to_kind(Kind::Double));
    let last = cdf_bv.size()[1] - 1;
    // The sum is 1 up to rounding; scaling by it makes every number below 1 fall on a token.
    let threshold_b1 = uniform_b1 * cdf_bv.narrow(-1, last, 1);
    // Not-a-number passes every bound: the clamp keeps its index inside, and the caller sees the
    // log-probability.
    threshold_b1
        .searchsorted(&cdf_bv, false, true, "right", None::<&Tensor>)
        .clamp_max(last)
}

/// A tensor's numbers on the host.
pub(crate) fn to_host<T: tch::kind::Element + Copy + Default>(
    values: &Tensor,
    kind: Kind,
) -> Vec<T> {
    let values = values.to_device(Device::Cpu).to_kind(kind).contiguous();
    let mut host = vec![T::default(); values.numel()];
    values.copy_data(&mut host, values.numel());
    host
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(top_k: Option<usize>, top_p: Option<f64>) -> SamplingOptions {
        SamplingOptions {
            max_new_tokens: 1,
            temperature: 2.0,
            top_k,
            top_p,
            greedy: false,
            ignore_eos: false,
            seed: 0,
            purpose: "test",
            eos_ids: Vec::new(),
            max_batch: 1,
        }
    }

    /// Logits whose distribution at temperature 2 is `probs`.
    fn logits(probs: &[f64]) -> Tensor {
        Tensor::from_slice(probs).log().view([1, -1]) * 2.0
    }

    fn distribution(probs: &[f64], options: &SamplingOptions) -> Vec<f64> {
        let logprobs_bv = log_distribution(&logits(probs), options);
        Vec::<f64>::try_from(logprobs_bv.exp().view(-1)).expect("f64")
    }

    fn assert_close(got: &[f64], expected: &[f64]) {
        let close = got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(
            close && got.len() == expected.len(),
            "{got:?} instead of {expected:?}"
        );
    }

    #[test]
    fn top_k_and_top_p_restrict_and_renormalise() {
        let probs = [0.1, 0.4, 0.2, 0.3];
        assert_close(&distribution(&probs, &options(None, None)), &probs);
        let two = [0.0, 0.4 / 0.7, 0.0, 0.3 / 0.7];
        assert_close(&distribution(&probs, &options(Some(2), None)), &two);
        assert_close(&distribution(&probs, &options(Some(9), None)), &probs);
        assert_close(&distribution(&probs, &options(None, Some(0.65))), &two);
        assert_close(
            &distribution(&probs, &options(None, Some(1e-300))),
            &[0.0, 1.0, 0.0, 0.0],
        );
        // After top-k 2 the likeliest token has 0.57 of the mass, which is enough for 0.5.
        assert_close(
            &distribution(&probs, &options(Some(2), Some(0.5))),
            &[0.0, 1.0, 0.0, 0.0],
        );
        assert_close(&distribution(&probs, &options(None, Some(1.0))), &probs);
    }

    #[test]
    fn tokens_as_likely_as_the_kth_stay() {
        let probs = [0.5, 0.2, 0.2, 0.1];
        let kept = [0.5 / 0.9, 0.2 / 0.9, 0.2 / 0.9, 0.0];
        assert_close(&distribution(&probs, &options(Some(2), None)), &kept);
    }

    #[test]
    fn frequencies_follow_the_distribution() {
        let probs = [0.35_f64, 0.0, 0.05, 0.3, 0.1, 0.2];
        let num_draws = 20_000;
        let uniform: Vec<f64> = (0..num_draws)
            .map(|i| runtime::seeds::uniform(5, "test", i, 0))
            .collect();
        let uniform_b1 = Tensor::from_slice(&uniform).view([-1, 1]);
        let logprobs_bv = Tensor::from_slice(&probs)
            .log()
            .view([1, -1])
            .repeat([num_draws as i64, 1]);
        let ids = invert_cdf(&logprobs_bv, &uniform_b1).view(-1);
        let counts = Vec::<i64>::try_from(ids.bincount(None::<&Tensor>, 6)).expect("counts");
        assert_eq!(counts[1], 0, "a token of probability 0");
        let chi_square: f64 = probs
            .iter()
            .zip(&counts)
            .filter(|(p, _)| **p > 0.0)
            .map(|(p, &count)| {
                (count as f64 - p * num_draws as f64).powi(2) / (p * num_draws as f64)
            })
            .sum();
        // Four degrees of freedom: passed by chance once in 10,000.
        assert!(chi_square < 23.5, "{chi_square}: {counts:?}");
    }

    #[test]
    fn ends_of_the_unit_interval_fall_on_tokens() {
        for kind in [Kind::Double, Kind::Float] {
            let probs = Tensor::from_slice(&[0.0, 0.7, 0.3, 0.0]).view([1, 4]);
            let logprobs_bv = probs.log().to_kind(kind);
            let choose = |u: f64| {
                let uniform_b1 = Tensor::from_slice(&[u]).view([1, 1]);
                invert_cdf(&logprobs_bv, &uniform_b1).int64_value(&[0, 0])
            };
            assert_eq!(choose(0.0), 1);
            assert_eq!(choose(1.0 - f64::EPSILON / 2.0), 2);
        }
    }

    #[test]
    fn not_a_number_stays_inside_the_vocabulary() {
        let logprobs_bv = Tensor::full([1, 3], f64::NAN, (Kind::Double, Device::Cpu));
        let uniform_b1 = Tensor::from_slice(&[0.5]).view([1, 1]);
        let id = invert_cdf(&logprobs_bv, &uniform_b1).int64_value(&[0, 0]);
        assert!((0..3).contains(&id), "{id}");
    }

    /// The tensors' way and the CPU's own, in all cuts; with 700 tokens a search passes several stretches.
    #[test]
    fn both_ways_choose_the_same_tokens() {
        tch::manual_seed(5);
        let logits_bv = Tensor::randn([64, 700], (Kind::Double, Device::Cpu)) * 3.0;
        let uniform: Vec<f64> = (0..64)
            .map(|i| runtime::seeds::uniform(6, "test", i, 0))
            .collect();
        let cuts = [
            (None, None),
            (Some(1), None),
            (Some(40), None),
            (Some(700), Some(1.0)),
            (None, Some(0.7)),
            (None, Some(1e-9)),
            (Some(30), Some(0.5)),
        ];
        for (top_k, top_p) in cuts {
            let uniform_b = Tensor::from_slice(&uniform);
            for uniform_b in [Some(&uniform_b), None] {
                let options = SamplingOptions {
                    greedy: uniform_b.is_none(),
                    ..options(top_k, top_p)
                };
                let (ids_b, logprobs_b) = choose(&logits_bv, uniform_b, &options);
                let (plain_b, plain_logprobs_b) =
                    choose_by_tensors(&logits_bv, uniform_b, &options);
                assert!(ids_b.equal(&plain_b), "top-k {top_k:?}, top-p {top_p:?}");
                let gap = (logprobs_b - plain_logprobs_b).abs().max();
                assert!(gap.double_value(&[]) < 1e-12);
                // Single precision keeps the likely tokens and their numbers.
                let (_, single_b) = choose(&logits_bv.to_kind(Kind::Float), None, &options);
                assert!(single_b.isfinite().all().int64_value(&[]) == 1);
            }
        }
    }

    #[test]
    fn the_cpus_own_way_keeps_its_bounds() {
        let choose_one = |logits: &Tensor, u: f64| {
            let (ids_b, logprobs_b) = choose(
                logits,
                Some(&Tensor::from_slice(&[u])),
                &options(None, None),
            );
            (ids_b.int64_value(&[0]), logprobs_b.double_value(&[0]))
        };
        for kind in [Kind::Double, Kind::Float, Kind::BFloat16] {
            let logits = logits(&[0.0, 0.7, 0.3, 0.0]).to_kind(kind);
            assert_eq!(choose_one(&logits, 0.0).0, 1);
            assert_eq!(choose_one(&logits, 1.0 - f64::EPSILON / 2.0).0, 2);
            for broken in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                let (id, logprob) = choose_one(&logits.full_like(broken), 0.5);
                assert!((0..4).contains(&id) && logprob.is_nan(), "{id} {logprob}");
            }
        }
    }
}
