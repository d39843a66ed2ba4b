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
    let mut rows = Vec::with_capacity(pairs.len());
    for chunk in pairs.chunks(batch.max(1)) {
        let (padded, start) = pad_pairs(chunk, pad_id);
        let input = Input::from_padded(&padded, model.device());
        let logprobs_br = no_grad(|| {
            let hidden_btd = model.hidden(&input);
            let ids_bt = &input.ids_bt;
            model::response_logprobs(model, &hidden_btd, ids_bt, start as i64, temperature)
        });
        rows.extend(truncated(
            &logprobs_br,
            chunk.iter().map(|(_, response)| response.len()),
        ));
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
