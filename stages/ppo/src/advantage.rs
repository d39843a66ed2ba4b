//! Per-token rewards, generalised advantage estimation, and whitening.
//!
//! Shapes: `b` episodes, `r` response columns. `mask_br` is 1 on the tokens that an episode made,
//! its EOS included, and 0 behind them; every tensor here is 0 where the mask is.

use tch::{Kind, Tensor};

/// Rewards of every token: `-beta * (ln pi - ln pi_ref)`, plus the score at the last token.
///
/// Ouyang et al. 2022, equation 2, first line; the penalty is the k1 estimator, token by token.
/// `score_index_b` (i64) is the column of each episode's last token.
pub fn token_rewards(
    logprobs_br: &Tensor,
    reference_br: &Tensor,
    mask_br: &Tensor,
    score_b: &Tensor,
    score_index_b: &Tensor,
    kl_coef: f64,
) -> Tensor {
    let penalty_br = (logprobs_br - reference_br) * mask_br * -kl_coef;
    let score_b1 = score_b.to_kind(penalty_br.kind()).unsqueeze(1);
    penalty_br.scatter_add(1, &score_index_b.unsqueeze(1), &score_b1)
}

/// Advantages and returns (Schulman et al. 2016, equation 16), for episodes that end with their
/// response: the value behind the last token is 0.
///
/// `delta_t = r_t + gamma V_{t+1} - V_t`, `A_t = delta_t + gamma lambda A_{t+1}`,
/// `return_t = A_t + V_t`. Column `t` of `values_br` is the value before token `t` is made.
pub fn gae(
    rewards_br: &Tensor,
    values_br: &Tensor,
    mask_br: &Tensor,
    gamma: f64,
    lambda: f64,
) -> (Tensor, Tensor) {
    let (num_episodes, num_columns) = rewards_br.size2().unwrap_or((0, 0));
    let options = (rewards_br.kind(), rewards_br.device());
    let values_br = values_br * mask_br;
    let mut next_value_b = Tensor::zeros([num_episodes], options);
    let mut next_advantage_b = Tensor::zeros([num_episodes], options);
    let mut columns = Vec::with_capacity(num_columns as usize);
    for t in (0..num_columns).rev() {
        let (value_b, mask_b) = (values_br.select(1, t), mask_br.select(1, t));
        let delta_b = rewards_br.select(1, t) + gamma * &next_value_b - &value_b;
        next_advantage_b = (delta_b + gamma * lambda * next_advantage_b) * mask_b;
        next_value_b = value_b;
        columns.push(next_advantage_b.shallow_clone());
    }
    columns.reverse();
    let advantages_br = Tensor::stack(&columns, 1);
    let returns_br = &advantages_br + &values_br;
    (advantages_br, returns_br)
}

/// Mean and standard deviation (biased) over the places where the mask is 1.
pub struct Moments {
    /// Mean.
    pub mean: f64,
    /// Standard deviation, dividing by the number of places.
    pub deviation: f64,
}

/// Moments of `x_br` over the mask, in `f64`.
pub fn masked_moments(x_br: &Tensor, mask_br: &Tensor) -> Moments {
    let (x, mask) = (x_br.to_kind(Kind::Double), mask_br.to_kind(Kind::Double));
    let count = mask.sum(Kind::Double).double_value(&[]).max(1.0);
    let mean = (&x * &mask).sum(Kind::Double).double_value(&[]) / count;
    let centred = (x - mean) * mask;
    let variance = (&centred * &centred).sum(Kind::Double).double_value(&[]) / count;
    Moments {
        mean,
        deviation: variance.sqrt(),
    }
}

/// Shifts and scales to mean 0 and deviation 1 over the mask; 0 elsewhere.
pub fn whiten(x_br: &Tensor, mask_br: &Tensor, moments: &Moments) -> Tensor {
    (x_br - moments.mean) / (moments.deviation + 1e-8) * mask_br
}
