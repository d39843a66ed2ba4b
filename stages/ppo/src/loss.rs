//! The clipped losses of PPO (Schulman et al. 2017, equation 7; value clipping as in the code of
//! Ziegler et al. 2019). Each is a sum over response tokens; the caller divides by the number of
//! tokens of the whole update, so that micro-batches and ranks change nothing.
//!
//! Shapes: `b` episodes, `r` response columns. `mask_br` is 1 on the tokens that were made.

use tch::{Kind, Tensor};

/// A loss to differentiate and what to report of it; sums over tokens.
pub struct ClippedLoss {
    /// The loss, a scalar on the graph.
    pub sum: Tensor,
    /// Tokens whose clipped branch was the larger one.
    pub clipped: f64,
}

/// `sum over tokens of max(-A ratio, -A clip(ratio, 1 - eps, 1 + eps))`.
pub fn policy_loss(
    logprobs_br: &Tensor,
    behaviour_br: &Tensor,
    advantages_br: &Tensor,
    mask_br: &Tensor,
    clip: f64,
) -> ClippedLoss {
    let ratio_br = ((logprobs_br - behaviour_br) * mask_br).exp();
    let plain_br = -(advantages_br * &ratio_br);
    let clipped_br = -(advantages_br * ratio_br.clamp(1.0 - clip, 1.0 + clip));
    larger_of(&plain_br, &clipped_br, mask_br)
}

/// `sum over tokens of 1/2 max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2)`;
/// without a clip, `1/2 (V - R)^2`.
pub fn value_loss(
    values_br: &Tensor,
    old_values_br: &Tensor,
    returns_br: &Tensor,
    mask_br: &Tensor,
    clip: Option<f64>,
) -> ClippedLoss {
    let plain_br = (values_br - returns_br).square() * 0.5;
    let Some(clip) = clip else {
        return ClippedLoss {
            sum: (plain_br * mask_br).sum(None::<Kind>),
            clipped: 0.0,
        };
    };
    let bounded_br = old_values_br + (values_br - old_values_br).clamp(-clip, clip);
    let clipped_br = (bounded_br - returns_br).square() * 0.5;
    larger_of(&plain_br, &clipped_br, mask_br)
}

fn larger_of(plain_br: &Tensor, clipped_br: &Tensor, mask_br: &Tensor) -> ClippedLoss {
    let chosen_br = (clipped_br.gt_tensor(plain_br).to_kind(Kind::Double)) * mask_br;
    ClippedLoss {
        sum: (plain_br.maximum(clipped_br) * mask_br).sum(None::<Kind>),
        clipped: chosen_br.sum(Kind::Double).double_value(&[]),
    }
}
