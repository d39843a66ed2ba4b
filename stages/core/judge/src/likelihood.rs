//! A language model as a judge: how likely it finds responses.
//!
//! Shapes: `b` rows of a batch, `t` columns of prompt and response, `r` response columns.

use datasets::collate::pad_pairs;
use model::{Input, Model};
use tch::{Device, Kind, Tensor, no_grad};

/// Log-probabilities of every response token, given its prompt and the tokens before it, at most `batch`
/// rows at a time; pairs are (prompt ids, response ids). Logits are divided by `temperature`.
pub fn response_logprobs(
    model: &Model,
    pairs: &[(&[u32], &[u32])],
    pad_id: u32,
    temperature: f64,
    batch: usize,
) -> Vec<Vec<f64>> {
    let head = |model: &Model, hidden_btd: &Tensor, ids_bt: &Tensor, start| {
        model::response_logprobs(model, hidden_btd, ids_bt, start, temperature)
    };
    of_responses(model, pairs, pad_id, batch, head)
}

/// What `head` makes of the hidden states, for every response token: it takes the model, the hidden states, the
/// ids and the first response column, and gives a row of response columns for each pair. Without gradients,
/// at most `batch` rows at a time, rows of like length together.
pub fn of_responses(
    model: &Model,
    pairs: &[(&[u32], &[u32])],
    pad_id: u32,
    batch: usize,
    head: impl Fn(&Model, &Tensor, &Tensor, i64) -> Tensor,
) -> Vec<Vec<f64>> {
    let longest = pairs
        .iter()
        .map(|(prompt, response)| prompt.len() + response.len())
        .max();
    let model = &no_grad(|| model.for_inference(batch * longest.unwrap_or(0)));
    let mut order: Vec<usize> = (0..pairs.len()).collect();
    order.sort_by_key(|&row| (pairs[row].1.len(), pairs[row].0.len()));
    let mut rows = vec![Vec::new(); pairs.len()];
    for members in order.chunks(batch.max(1)) {
        let chunk: Vec<(&[u32], &[u32])> = members.iter().map(|&row| pairs[row]).collect();
        let (padded, start) = pad_pairs(&chunk, pad_id);
        let input = Input::from_padded(&padded, model.device()).wanted_from(start as i64 - 1);
        let x_br = no_grad(|| head(model, &model.hidden(&input), &input.ids_bt, start as i64));
        let lengths = chunk.iter().map(|(_, response)| response.len());
        for (&row, values) in members.iter().zip(truncated(&x_br, lengths)) {
            rows[row] = values;
        }
    }
    rows
}

/// The rows of a response-shaped tensor, each at its true length.
pub fn truncated(x_br: &Tensor, lengths: impl Iterator<Item = usize>) -> Vec<Vec<f64>> {
    let num_columns = x_br.size()[1].max(1) as usize;
    let flat = x_br
        .to_device(Device::Cpu)
        .to_kind(Kind::Double)
        .contiguous()
        .flatten(0, -1);
    let flat: Vec<f64> = Vec::try_from(flat).unwrap_or_default();
    flat.chunks(num_columns)
        .zip(lengths)
        .map(|(row, length)| row[..length].to_vec())
        .collect()
}
