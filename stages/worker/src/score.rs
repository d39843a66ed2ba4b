//! `rlhf score`.

use anyhow::{Result, bail};
use datasets::Tokenizer;
use datasets::collate::{Side, pad};
use judge::RewardJudge;
use model::{Head, Input, Model};
use recipe::request::ScoreRequest;
use runtime::events::{Event, emit};
use serde_json::json;
use tch::{Device, Kind, Tensor, no_grad};

use crate::{compute, rows};

/// Prints log-probabilities (language model) or rewards (reward model), a JSON line a row.
pub fn run(request: &ScoreRequest) -> Result<()> {
    let model = compute::load(&request.model, request.adapter.as_deref(), &request.compute)?;
    let tokenizer = Tokenizer::load(&request.model)?;
    let rows = rows::read(&request.data)?;
    let rows = rows
        .iter()
        .map(|row| row.ids_to_score(&tokenizer))
        .collect::<Result<Vec<_>>>()?;
    check(&rows, &model, &request.data.display().to_string())?;
    match model.head {
        Head::Token => {
            for chunk in rows.chunks(request.compute.batch) {
                for (ids, logprobs) in
                    chunk
                        .iter()
                        .zip(logprobs(&model, chunk, tokenizer.pad_id())?)
                {
                    output(&json!({ "input_ids": ids, "logprobs": logprobs }));
                }
            }
        }
        Head::Scalar => {
            let judge = RewardJudge::new(model)?;
            let rewards = judge.score(&rows, tokenizer.pad_id(), request.compute.batch)?;
            for (ids, reward) in rows.iter().zip(rewards) {
                let normalized = judge.model().normalized(reward);
                output(&json!({
                    "input_ids": ids, "reward": reward, "reward_normalized": normalized
                }));
            }
        }
    }
    Ok(())
}

fn output(value: &serde_json::Value) {
    emit(&Event::Output {
        line: value.to_string(),
    });
}

fn check(rows: &[Vec<u32>], model: &Model, path: &str) -> Result<()> {
    let (max_positions, vocab_size) = (model.shape.max_positions, model.shape.vocab_size);
    for (index, row) in rows.iter().enumerate() {
        let place = format!("{path}: row {}", index + 1);
        if row.is_empty() {
            bail!("{place}: has no tokens\n  hint: leave empty rows out");
        }
        if row.len() > max_positions {
            let tokens = row.len();
            bail!(
                "{place}: has {tokens} tokens, the model's context is {max_positions}\n  hint: shorten it"
            );
        }
        if let Some(id) = row.iter().find(|id| **id as usize >= vocab_size) {
            bail!(
                "{place}: token {id} is not below the model's vocabulary of {vocab_size}\n  hint: use the model's own tokenizer"
            );
        }
    }
    Ok(())
}

/// `ln p(ids[i+1] | ids[..=i])` of each row: one number fewer than tokens.
fn logprobs(model: &Model, rows: &[Vec<u32>], pad_id: u32) -> Result<Vec<Vec<f64>>> {
    if rows.iter().all(|row| row.len() == 1) {
        return Ok(vec![Vec::new(); rows.len()]);
    }
    let slices: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
    let input = Input::from_padded(&pad(&slices, Side::Right, pad_id, None), model.device());
    let logprobs_br = no_grad(|| {
        let hidden_btd = model.hidden(&input);
        model::response_logprobs(model, &hidden_btd, &input.ids_bt, 1, 1.0)
    });
    rows.iter()
        .zip(0..)
        .map(|(row, b)| prefix(&logprobs_br.get(b), row.len() - 1))
        .collect()
}

fn prefix(x_r: &Tensor, length: usize) -> Result<Vec<f64>> {
    let x = x_r
        .narrow(0, 0, length as i64)
        .to_kind(Kind::Double)
        .to_device(Device::Cpu);
    Ok(Vec::try_from(x)?)
}
