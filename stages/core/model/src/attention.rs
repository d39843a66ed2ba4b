//! Masks, and attention itself.
//!
//! Shape suffixes: b rows, h heads, t query positions, s key positions, e width of a head.

use tch::{Device, Kind, Tensor};

/// Which keys a query sees.
#[derive(Debug)]
pub(crate) enum Mask {
    /// All keys up to the query's own position; queries and keys are the same positions.
    Causal,
    /// All keys.
    Full,
    /// What is added to the products of all layers, `[b, h, t, s]` or `[b, 1, t, s]`: `-inf` for keys that are not
    /// seen. (Of a bool mask attention would make such a tensor anew in every layer, and keep it for the
    /// backward pass.)
    Added(Tensor),
}

/// The queries and keys of a pass.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span<'a> {
    /// Keys that precede the queries.
    pub(crate) past: i64,
    /// Queries; as many keys follow the past ones.
    pub(crate) queries: i64,
    /// `true` on real keys, bool `[b, s]`; `None` where nothing precedes a real key.
    pub(crate) valid_bs: Option<&'a Tensor>,
    /// For each row how many of its first keys all of its queries see; empty: none.
    pub(crate) prefixes: &'a [usize],
    /// Where the tensors lie.
    pub(crate) device: Device,
}

impl Span<'_> {
    fn keys(&self) -> i64 {
        self.past + self.queries
    }

    /// Which keys each query sees, bool `[b, 1, t, s]` or `[1, 1, t, s]`: all up to its own, or the last
    /// `window` of them, and those of the prefix. Every query sees at least itself, so that no softmax is
    /// over nothing (NaN).
    fn seen(&self, window: Option<i64>) -> Tensor {
        let options = (Kind::Int64, self.device);
        let keys_s = Tensor::arange(self.keys(), options);
        let queries_t1 = Tensor::arange_start(self.past, self.keys(), options).unsqueeze(1);
        let mut seen_ts = keys_s.le_tensor(&queries_t1);
        if let Some(window) = window {
            seen_ts = seen_ts.logical_and(&keys_s.gt_tensor(&(&queries_t1 - window)));
        }
        let own_ts = keys_s.eq_tensor(&queries_t1);
        let seen = match self.valid_bs {
            Some(valid_bs) => seen_ts
                .logical_and(&valid_bs.unsqueeze(1))
                .logical_or(&own_ts),
            None => seen_ts.unsqueeze(0),
        };
        if self.prefixes.is_empty() {
            return seen.unsqueeze(1);
        }
        let prefixes: Vec<i64> = self.prefixes.iter().map(|len| *len as i64).collect();
        let prefixes_b11 = Tensor::from_slice(&prefixes)
            .view([-1, 1, 1])
            .to_device(self.device);
        seen.logical_or(&keys_s.lt_tensor(&prefixes_b11))
            .unsqueeze(1)
    }

    /// Whether every query sees every key.
    fn is_whole(&self) -> bool {
        let whole = |prefix: &usize| *prefix as i64 == self.keys();
        !self.prefixes.is_empty() && self.prefixes.iter().all(whole)
    }

    /// Each key's position among the real ones of its row, int64 `[b, s]` or `[1, s]`.
    fn key_positions(&self) -> Tensor {
        match self.valid_bs {
            Some(valid_bs) => (valid_bs.cumsum(1, Kind::Int64) - 1).clamp_min(0),
            None => Tensor::arange(self.keys(), (Kind::Int64, self.device)).unsqueeze(0),
        }
    }
}

impl Mask {
    /// The mask of a span, for products of type `kind`; with a window, a query sees the last `window` keys
    /// alone.
    pub(crate) fn new(span: &Span, window: Option<usize>, kind: Kind) -> Self {
        // A window that no key leaves is none.
        let window = window
            .map(|window| window as i64)
            .filter(|window| *window < span.keys());
        match (span.valid_bs, window) {
            (None, None) if span.is_whole() => Self::Full,
            (None, None) if span.past == 0 && span.prefixes.is_empty() => Self::Causal,
            (None, None) if span.queries == 1 => Self::Full,
            _ => {
                let seen = span.seen(window);
                let zeros = seen.zeros_like().to_kind(kind);
                Self::Added(zeros.masked_fill(&seen.logical_not(), f64::NEG_INFINITY))
            }
        }
    }

    /// The mask of a span with `ALiBi` (Press et al. 2022), as what is added to the products: `slope *
    /// position of the key / sqrt(e)`, whose product is rounded to bf16 first, as in Falcon's training.
    /// (The query's own position would add the same to all of its keys.)
    pub(crate) fn alibi(span: &Span, heads: usize, head_dim: usize, kind: Kind) -> Self {
        let slopes_h = Tensor::from_slice(&alibi_slopes(heads))
            .to_kind(Kind::BFloat16)
            .to_device(span.device);
        let positions_b11s = span.key_positions().unsqueeze(1).unsqueeze(1);
        let bias_bh1s = (slopes_h.view([-1, 1, 1]) * positions_b11s).to_kind(kind);
        let bias_bh1s = bias_bh1s / (head_dim as f64).sqrt();
        let hidden = span.seen(None).logical_not();
        Self::Added(bias_bh1s.masked_fill(&hidden, f64::NEG_INFINITY))
    }
}

/// Powers of `2^(-8/n)` for the `n` heads of a power of two; between two powers, every second slope of
/// the larger one follows (Press et al. 2022, section 3, and their code).
fn alibi_slopes(heads: usize) -> Vec<f32> {
    let below = 1 << heads.ilog2();
    let powers = |heads: usize| (1..=heads).map(move |i| (-8.0 * i as f64 / heads as f64).exp2());
    let between = powers(2 * below).step_by(2).take(heads - below);
    powers(below).chain(between).map(|x| x as f32).collect()
}

/// `softmax(scale q k^T) v`; keys and values may have fewer heads (Ainslie et al. 2023).
pub(crate) fn attend(
    q_bhte: &Tensor,
    k_bhse: &Tensor,
    v_bhse: &Tensor,
    mask: &Mask,
    scale: Option<f64>,
) -> Tensor {
    let added = if let Mask::Added(mask) = mask {
        Some(mask)
    } else {
        None
    };
    let causal = matches!(mask, Mask::Causal);
    let grouped = q_bhte.size()[1] != k_bhse.size()[1];
    Tensor::scaled_dot_product_attention(q_bhte, k_bhse, v_bhse, added, 0.0, causal, scale, grouped)
}
