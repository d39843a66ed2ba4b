//! Gradients of a model in a folder, for whoever compares them (`make parity`):
//!
//! `gradients MODEL ROWS OUT` writes to `OUT` (safetensors, by the tensors' names) the gradients of the sum over the
//! rows in `ROWS` (JSON lists of token ids, one a line) of `-ln p` of every token but the first; of the rewards for
//! a model with a scalar head. In f32 on the CPU, each row by itself.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

use model::{Head, Input, Model, ModelError, RecordOptions, response_logprobs, weights};
use tch::{Device, Kind, Tensor};

const PLAIN: RecordOptions = RecordOptions {
    checkpointing: false,
    dropout: 0.0,
    dropout_key: 0,
};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, folder, rows, out] = &arguments[..] else {
        return Err("usage: gradients MODEL ROWS OUT".into());
    };
    let model = Model::load(Path::new(folder), Device::Cpu, Kind::Float)?;
    model.set_trainable(true);
    for line in std::fs::read_to_string(rows)?.lines() {
        let ids: Vec<i64> = serde_json::from_str(line)?;
        if ids.len() > 1 || model.head == Head::Scalar {
            add_gradients(&model, &ids)?;
        }
    }
    let grads: BTreeMap<String, Tensor> = model
        .params()
        .iter()
        .map(|(name, param)| (name.clone(), param.grad()))
        .filter(|(_, grad)| grad.defined())
        .collect();
    weights::write(Path::new(out), &grads)?;
    Ok(())
}

fn add_gradients(model: &Model, ids: &[i64]) -> Result<(), ModelError> {
    let ids_bt = Tensor::from_slice(ids).unsqueeze(0);
    let input = Input::dense(ids_bt.shallow_clone());
    let (hidden_btd, tape) = model.record(&input, &PLAIN)?;
    let loss = match model.head {
        Head::Token => -response_logprobs(model, &hidden_btd, &ids_bt, 1, 1.0).sum(Kind::Float),
        Head::Scalar => model
            .scalar_at_last(&hidden_btd, &[ids.len()])
            .sum(Kind::Float),
    };
    loss.backward();
    tape.backward(model)?;
    Ok(())
}
