//! Tests of this crate, and the small things that they share.

mod adapters;
mod meeting;
mod optimizer;
mod ranks;
mod schedule;
mod snapshots;
mod stage;
mod token_loss;

use std::collections::BTreeMap;

use datasets::Tokenizer;
use model::{Head, Input, Model, RecordOptions};
use recipe::families::Sizes;
use recipe::plan::{OptimizerPlan, Schedule};
use recipe::shape::{Family, ModelShape};
use tch::{Device, Kind, Tensor, no_grad};

use crate::{LmRow, Targets};

type Outcome = Result<(), Box<dyn std::error::Error>>;

const VOCAB: usize = 270;

fn plan() -> OptimizerPlan {
    OptimizerPlan {
        lr: 1e-2,
        betas: [0.9, 0.95],
        eps: 1e-8,
        weight_decay: 0.1,
        schedule: Schedule::Cosine,
        floor: 0.1,
        warmup: 2,
        warmup_from: 0.1,
        clip: 1.0,
    }
}

fn shape() -> ModelShape {
    ModelShape {
        kv_heads: 1,
        mlp_width: 32,
        tie_embeddings: true,
        ..Family::Llama.shape(&Sizes {
            vocab_size: VOCAB,
            max_positions: 16,
            layers: 2,
            width: 16,
            heads: 2,
        })
    }
}

fn tiny_model(seed: u64, kind: Kind) -> Model {
    Model::init(&shape(), Head::Token, seed, Device::Cpu, kind)
}

fn tiny_tokenizer() -> Result<Tokenizer, Box<dyn std::error::Error>> {
    let texts = (0..50).map(|n| format!("the weather was number {n}, thank you for asking"));
    Ok(Tokenizer::train(texts, VOCAB)?)
}

fn options() -> RecordOptions {
    RecordOptions {
        checkpointing: false,
        dropout: 0.0,
        dropout_key: 0,
    }
}

/// Rows of ids that no two steps share, and a mask that leaves out some of them.
fn batch(rows: i64, cols: i64, step: i64) -> (Tensor, Tensor) {
    let place_bt = Tensor::arange(rows * cols, (Kind::Int64, Device::Cpu)).view([rows, cols]);
    let ids_bt = ((&place_bt + step * 131) * 7919).remainder(VOCAB as i64);
    let mask_bt = (place_bt + step).remainder(5).not_equal(0);
    (ids_bt, mask_bt)
}

fn input(ids_bt: &Tensor) -> Input {
    Input::dense(ids_bt.shallow_clone())
}

/// Next tokens, where the mask is true.
fn targets(ids_bt: &Tensor, mask_bt: &Tensor) -> Targets {
    let rows: Vec<LmRow> = (0..ids_bt.size()[0])
        .map(|row| {
            let ids: Vec<i64> = ids_bt.get(row).try_into().expect("ids");
            let mask: Vec<bool> = mask_bt.get(row).try_into().expect("a mask");
            LmRow::next_tokens(ids.iter().map(|id| *id as u32).collect(), &mask)
        })
        .collect();
    let wanted: Vec<&[Option<u32>]> = rows.iter().map(|row| &row.targets[..]).collect();
    Targets::new(&wanted, ids_bt.device())
}

fn grads_of(model: &Model) -> BTreeMap<String, Tensor> {
    model
        .params()
        .iter()
        .map(|(name, param)| (name.clone(), param.grad().copy()))
        .collect()
}

fn norm(tensor: &Tensor) -> f64 {
    no_grad(|| tensor.to_kind(Kind::Double).norm().double_value(&[]))
}

/// The bytes of a tensor, so that equality means equality of bits.
fn bytes(tensor: &Tensor) -> Vec<u8> {
    let tensor = tensor.detach().contiguous();
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.copy_data_u8(&mut bytes, tensor.numel());
    bytes
}
