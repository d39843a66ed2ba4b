//! Masks, rotary positions and attention.
//!
//! Shape suffixes: b rows, h heads, t query positions, s key positions, e width of a head.

use tch::{Kind, Tensor};

use recipe::shape::ModelShape;

/// Which keys a query sees.
#[derive(Debug)]
pub(crate) enum Mask {
    /// All keys up to the query's own position; queries and keys are the same positions.
    Causal,
    /// All keys.
    Full,
    /// Where `true`, bool `[b, 1, t, s]`.
    Explicit(Tensor),
}

impl Mask {
    /// The mask for `queries` positions that follow `past` cached ones. `valid_bs` is `true` on real
    /// keys. Every query sees at least itself, so that no softmax is over nothing (NaN).
    pub(crate) fn new(past: i64, queries: i64, valid_bs: Option<&Tensor>, like: &Tensor) -> Self {
        match valid_bs {
            None if past == 0 => Self::Causal,
            None if queries == 1 => Self::Full,
            _ => {
                let options = (Kind::Int64, like.device());
                let keys_s = Tensor::arange(past + queries, options);
                let queries_t1 = Tensor::arange_start(past, past + queries, options).unsqueeze(1);
                let causal_ts = keys_s.le_tensor(&queries_t1);
                let own_ts = keys_s.eq_tensor(&queries_t1);
                let seen = match valid_bs {
                    Some(valid_bs) => causal_ts
                        .logical_and(&valid_bs.unsqueeze(1))
                        .logical_or(&own_ts),
                    None => causal_ts.unsqueeze(0),
                };
                Self::Explicit(seen.unsqueeze(1))
            }
        }
    }
}

/// Rotary position embedding (Su et al. 2021), in the half-split form of Llama's Hugging Face code:
/// `x cos + rotate_half(x) sin`.
#[derive(Debug)]
pub(crate) struct Rotary {
    cos_b1te: Tensor,
    sin_b1te: Tensor,
}

impl Rotary {
    /// Tables for the given positions, computed in f32 (f64 for f64 models), as transformers does.
    pub(crate) fn new(shape: &ModelShape, positions_bt: &Tensor, kind: Kind) -> Self {
        let precise = if kind == Kind::Double {
            Kind::Double
        } else {
            Kind::Float
        };
        let width = shape.head_dim as i64;
        let exponents =
            Tensor::arange_start_step(0, width, 2, (Kind::Int64, positions_bt.device()));
        let exponents = exponents.to_kind(precise) / width as f64;
        let theta = Tensor::from(shape.rope_theta)
            .to_kind(precise)
            .to_device(positions_bt.device());
        let frequencies_f = theta.pow(&exponents).reciprocal();
        let angles_btf = positions_bt.to_kind(precise).unsqueeze(-1) * frequencies_f;
        let angles_b1te = Tensor::cat(&[&angles_btf, &angles_btf], -1).unsqueeze(1);
        Self {
            cos_b1te: angles_b1te.cos().to_kind(kind),
            sin_b1te: angles_b1te.sin().to_kind(kind),
        }
    }

    pub(crate) fn rotate(&self, x_bhte: &Tensor) -> Tensor {
        let halves = x_bhte.chunk(2, -1);
        let rotated = Tensor::cat(&[&-&halves[1], &halves[0]], -1);
        x_bhte * &self.cos_b1te + rotated * &self.sin_b1te
    }
}

/// `softmax(q k^T / sqrt(e)) v`; keys and values may have fewer heads (Ainslie et al. 2023).
pub(crate) fn attend(q_bhte: &Tensor, k_bhse: &Tensor, v_bhse: &Tensor, mask: &Mask) -> Tensor {
    let explicit = if let Mask::Explicit(mask) = mask {
        Some(mask)
    } else {
        None
    };
    let causal = matches!(mask, Mask::Causal);
    let grouped = q_bhte.size()[1] != k_bhse.size()[1];
    Tensor::scaled_dot_product_attention(
        q_bhte, k_bhse, v_bhse, explicit, 0.0, causal, None, grouped,
    )
}
