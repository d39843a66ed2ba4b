//! Log-probabilities of tokens: what every loss and every comparison of policies is made of.
//!
//! Shape suffixes: b rows, t positions, s any stretch of positions, r response positions, d width,
//! n rows times positions, v vocabulary, c a chunk of n.

use recipe::memory::KEPT_LOGITS;
use tch::Tensor;
use torch_ext::wide_kind;

use crate::transformer::Model;

/// Log-probabilities `[b, s]` of `targets_bs` (int64) under the hidden states `[b, s, d]` at the
/// same places, at a sampling temperature: `ln softmax(logits / temperature)`, in f32 (f64 for f64).
///
/// # Panics
/// For a scalar head, or shapes that do not fit.
pub fn token_logprobs(
    model: &Model,
    hidden_bsd: &Tensor,
    targets_bs: &Tensor,
    temperature: f64,
) -> Tensor {
    token_logprobs_bounded(model, hidden_bsd, targets_bs, temperature, KEPT_LOGITS)
}

fn token_logprobs_bounded(
    model: &Model,
    hidden_bsd: &Tensor,
    targets_bs: &Tensor,
    temperature: f64,
    kept_logits: usize,
) -> Tensor {
    let width = model.shape.embedding_width as i64;
    let hidden_nd = hidden_bsd.reshape([-1, width]);
    let targets_n = targets_bs.reshape([-1]);
    let rows = targets_n.numel();
    let logprobs_n = if rows * model.shape.vocab_size <= kept_logits {
        let logits_nv = scaled_logits(model, &hidden_nd, temperature);
        let chosen_n = logits_nv
            .gather(-1, &targets_n.unsqueeze(-1), false)
            .squeeze_dim(-1);
        chosen_n - logits_nv.logsumexp(-1, false)
    } else {
        let chunk = (kept_logits / model.shape.vocab_size).max(1);
        torch_ext::token_logprobs(
            &hidden_nd,
            model.output_weight(),
            &targets_n,
            temperature,
            chunk,
        )
        .unwrap_or_else(|error| panic!("{error}"))
    };
    logprobs_n.view_as(targets_bs)
}

/// Logits over the temperature, in f32 (f64 for f64).
#[expect(clippy::float_cmp, reason = "at exactly 1 there is nothing to divide")]
fn scaled_logits(model: &Model, hidden: &Tensor, temperature: f64) -> Tensor {
    let logits = model.logits(hidden);
    let precise = logits.to_kind(wide_kind(logits.kind()));
    if temperature == 1.0 {
        precise
    } else {
        precise / temperature
    }
}

/// Log-probabilities `[b, r]` of the tokens `ids_bt[:, response_start..]`, column r being the token
/// made at step r: its log-probability comes from the logits **one position earlier**. This function
/// is the only place of that off-by-one.
///
/// # Panics
/// When `response_start` is 0 (the first token has no prediction) or not inside the row.
pub fn response_logprobs(
    model: &Model,
    hidden_btd: &Tensor,
    ids_bt: &Tensor,
    response_start: i64,
    temperature: f64,
) -> Tensor {
    let num_responses = response_len(ids_bt.size()[1], response_start);
    let hidden_brd = hidden_btd.narrow(1, response_start - 1, num_responses);
    let targets_br = ids_bt.narrow(1, response_start, num_responses);
    token_logprobs(model, &hidden_brd, &targets_br, temperature)
}

fn response_len(len: i64, response_start: i64) -> i64 {
    assert!(
        0 < response_start && response_start < len,
        "a response starts at {response_start} in rows of {len}"
    );
    len - response_start
}

#[cfg(test)]
mod tests {
    use recipe::families::Sizes;
    use recipe::shape::{Family, ModelShape};
    use tch::{Device, Kind};

    use super::*;
    use crate::Head;

    #[test]
    fn chunks_give_the_values_and_gradients_of_the_whole() {
        let shape = ModelShape {
            mlp_width: 4,
            ..Family::Llama.shape(&Sizes {
                vocab_size: 19,
                max_positions: 8,
                layers: 1,
                width: 6,
                heads: 1,
            })
        };
        let model = Model::init(&shape, Head::Token, 1, Device::Cpu, Kind::Double);
        model.set_trainable(true);
        let options = (Kind::Double, Device::Cpu);
        tch::manual_seed(1);
        let hidden_bsd = Tensor::randn([3, 5, 6], options).set_requires_grad(true);
        let weights_bs = Tensor::randn([3, 5], options);
        let targets_bs = Tensor::randint(19, [3, 5], (Kind::Int64, Device::Cpu));
        // 15 rows in one piece, then in chunks of 4.
        let [whole, chunked] = [15 * 19, 4 * 19].map(|bound| {
            let logprobs = token_logprobs_bounded(&model, &hidden_bsd, &targets_bs, 0.7, bound);
            (&logprobs * &weights_bs).sum(None).backward();
            let grads = [
                hidden_bsd.grad().copy(),
                model.output_weight().grad().copy(),
            ];
            hidden_bsd.shallow_clone().zero_grad();
            model.zero_grad();
            [
                logprobs.detach(),
                grads[0].shallow_clone(),
                grads[1].shallow_clone(),
            ]
        });
        for (whole, chunked) in whole.iter().zip(&chunked) {
            assert!(whole.abs().max().double_value(&[]) > 0.0);
            assert!((whole - chunked).abs().max().double_value(&[]) < 1e-12);
        }
    }
}
