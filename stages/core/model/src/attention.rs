//! Masks, and attention itself.
//!
//! Shape suffixes: b rows, h heads, t query positions, s key positions, e width of a head.

use tch::{Device, Kind, Tensor};
use torch_ext::{RowSpans, row_attention, serves_rows};

use crate::block::fused;
use crate::input::Wanted;

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
    /// Of rows one behind the other, those of the query's own row up to its own.
    Rows(Rows),
}

/// Rows that lie one behind the other as one: the queries of each are its last ones.
#[derive(Debug)]
pub(crate) struct Rows {
    queries: Vec<i64>,
    keys: Vec<i64>,
    spans: RowSpans,
}

impl Rows {
    /// Rows of these many queries and keys.
    pub(crate) fn new(queries: &[i64], keys: &[i64], device: Device) -> Self {
        Self {
            queries: queries.to_vec(),
            keys: keys.to_vec(),
            spans: RowSpans::new(queries, keys, device),
        }
    }

    /// Attention within each row, of queries `[1, h, m, e]` over keys and values of `[1, h, n, e]`.
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, scale: Option<f64>) -> Tensor {
        let width = q.size()[3];
        if serves_rows(q.device(), q.kind(), width) {
            let scale = scale.unwrap_or(1.0 / (width as f64).sqrt());
            let [q, k, v] = [q, k, v].map(|x| x.squeeze_dim(0));
            return fused(row_attention(&q, &k, &v, &self.spans, scale)).unsqueeze(0);
        }
        let (mut first_query, mut first_key) = (0, 0);
        let mut parts = Vec::with_capacity(self.keys.len());
        for (queries, keys) in self.queries.iter().zip(&self.keys) {
            if *queries == 0 {
                first_key += keys;
                continue;
            }
            let part = |x: &Tensor, first, len| x.narrow(2, first, len);
            let (q, k, v) = (
                part(q, first_query, *queries),
                part(k, first_key, *keys),
                part(v, first_key, *keys),
            );
            let mask = Mask::of_last(*queries, *keys, &q);
            parts.push(attend(&q, &k, &v, &mask, scale));
            first_query += queries;
            first_key += keys;
        }
        Tensor::cat(&parts, 2)
    }
}

/// The queries of a pass, whose keys are the same positions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span<'a> {
    /// Positions.
    pub(crate) len: i64,
    /// `true` on real tokens, bool `[b, t]`; `None` where no padding precedes one.
    pub(crate) valid_bt: Option<&'a Tensor>,
    /// For each row how many of its first keys all of its queries see; empty: none.
    pub(crate) prefixes: &'a [usize],
    /// Where the tensors lie.
    pub(crate) device: Device,
}

impl Span<'_> {
    /// Which keys each query sees, bool `[b, 1, t, s]` or `[1, 1, t, s]`: all up to its own, or the last
    /// `window` of them, and those of the prefix. Every query sees at least itself, so that no softmax is
    /// over nothing (NaN).
    fn seen(&self, window: Option<i64>) -> Tensor {
        let options = (Kind::Int64, self.device);
        let keys_s = Tensor::arange(self.len, options);
        let queries_t1 = keys_s.unsqueeze(1);
        let mut seen_ts = keys_s.le_tensor(&queries_t1);
        if let Some(window) = window {
            seen_ts = seen_ts.logical_and(&keys_s.gt_tensor(&(&queries_t1 - window)));
        }
        let own_ts = keys_s.eq_tensor(&queries_t1);
        let seen = match self.valid_bt {
            Some(valid_bt) => seen_ts
                .logical_and(&valid_bt.unsqueeze(1))
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
        let whole = |prefix: &usize| *prefix as i64 == self.len;
        !self.prefixes.is_empty() && self.prefixes.iter().all(whole)
    }

    /// Each key's position among the real ones of its row, int64 `[b, s]` or `[1, s]`.
    fn key_positions(&self) -> Tensor {
        match self.valid_bt {
            Some(valid_bt) => (valid_bt.cumsum(1, Kind::Int64) - 1).clamp_min(0),
            None => Tensor::arange(self.len, (Kind::Int64, self.device)).unsqueeze(0),
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
            .filter(|window| *window < span.len);
        match (span.valid_bt, window) {
            (None, None) if span.is_whole() => Self::Full,
            (None, None) if span.prefixes.is_empty() => Self::Causal,
            _ => Self::added(&span.seen(window), kind),
        }
    }

    /// What the queries of the columns that are wanted see of the keys of `span`, in products of type `kind`.
    pub(crate) fn tail(&self, span: &Span, wanted: &Wanted, kind: Kind) -> Self {
        match self {
            Self::Full => Self::Full,
            Self::Rows(_) => unreachable!("rows without padding have a tail of their own"),
            Self::Added(mask) if mask.size()[2] == 1 => Self::Added(mask.shallow_clone()),
            Self::Added(mask) => Self::Added(wanted.of(mask, 2)),
            Self::Causal => Self::added(&wanted.of(&span.seen(None), 2), kind),
        }
    }

    /// What the last `queries` of a row of `keys` see, each up to its own; for products with `q`.
    fn of_last(queries: i64, keys: i64, q: &Tensor) -> Self {
        if queries == keys {
            return Self::Causal;
        }
        if queries == 1 {
            return Self::Full;
        }
        let seen_ts = Tensor::ones([queries, keys], (Kind::Bool, q.device())).tril(keys - queries);
        Self::added(&seen_ts, q.kind())
    }

    /// `-inf` for what is not seen.
    fn added(seen: &Tensor, kind: Kind) -> Self {
        let zeros = seen.zeros_like().to_kind(kind);
        Self::Added(zeros.masked_fill(&seen.logical_not(), f64::NEG_INFINITY))
    }

    /// The mask of a span with [`alibi_bias`].
    pub(crate) fn alibi(span: &Span, heads: usize, head_dim: usize, kind: Kind) -> Self {
        let positions_bs = span.key_positions();
        let bias_bh1s = alibi_bias(&positions_bs.unsqueeze(1), heads, head_dim, kind).unsqueeze(2);
        let hidden = span.seen(None).logical_not();
        Self::Added(bias_bh1s.masked_fill(&hidden, f64::NEG_INFINITY))
    }
}

/// What `ALiBi` (Press et al. 2022) adds to the products, `[.., h, s]` for keys at positions `[.., 1, s]` or
/// `[s]`: `slope * position / sqrt(e)`, whose product is rounded to bf16 first, as in Falcon's training. (The
/// query's own position would add the same to all of its keys.)
pub(crate) fn alibi_bias(positions: &Tensor, heads: usize, head_dim: usize, kind: Kind) -> Tensor {
    let slopes_h1 = Tensor::from_slice(&alibi_slopes(heads))
        .to_kind(Kind::BFloat16)
        .to_device(positions.device())
        .unsqueeze(-1);
    (slopes_h1 * positions).to_kind(kind) / (head_dim as f64).sqrt()
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
    let (added, causal) = match mask {
        Mask::Rows(rows) => return rows.attend(q_bhte, k_bhse, v_bhse, scale),
        Mask::Added(mask) => (Some(mask), false),
        Mask::Causal => (None, true),
        Mask::Full => (None, false),
    };
    let grouped = q_bhte.size()[1] != k_bhse.size()[1];
    Tensor::scaled_dot_product_attention(q_bhte, k_bhse, v_bhse, added, 0.0, causal, scale, grouped)
}
