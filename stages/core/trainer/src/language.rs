//! The loss over a set of token rows: micro-batching for training and for evaluation.
//!
//! Shape suffixes: b rows, t columns, d width.

use std::rc::Rc;

use datasets::LmRow;
use model::{Input, Model, RecordOptions};
use runtime::seeds;
use tch::no_grad;

use crate::{Ranks, StageContext, Stepper, Targets, TrainerError, lm_micro_step, token_loss};

/// How a set of rows is differentiated.
#[derive(Debug, Clone, Copy)]
pub struct LmOptions {
    /// Rows per forward pass.
    pub micro_batch: usize,
    /// Fills short rows.
    pub pad_id: u32,
    /// Weight of the mean token loss.
    pub coef: f64,
    /// Recompute activations in the backward pass.
    pub checkpointing: bool,
    /// Residual dropout.
    pub dropout: f64,
    /// Key of the update's dropout.
    pub dropout_key: u64,
}

impl LmOptions {
    /// As a stage's execution says, without dropout.
    pub fn new(ctx: &StageContext, pad_id: u32, coef: f64) -> Self {
        let execution = &ctx.plan.execution;
        Self {
            micro_batch: execution.micro_batch,
            pad_id,
            coef,
            checkpointing: execution.checkpointing,
            dropout: 0.0,
            dropout_key: 0,
        }
    }

    /// With residual dropout, keyed by the update.
    #[must_use]
    pub fn with_dropout(self, dropout: f64, seed: u64, step: u64) -> Self {
        Self {
            dropout,
            dropout_key: seeds::key(seed, "dropout", step, 0),
            ..self
        }
    }
}

/// A loss over tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LmLoss {
    /// Sum of `-ln p`, nats.
    pub sum: f64,
    /// Tokens that were predicted.
    pub tokens: f64,
}

impl LmLoss {
    /// Nats per token.
    pub fn mean(&self) -> f64 {
        self.sum / self.tokens.max(1.0)
    }
}

/// Adds to the gradients those of `coef` times the mean token loss of *all* `rows`, micro-batch by
/// micro-batch; of several ranks each takes its share of them, and learns the loss of all. Rows of like length go together.
///
/// # Errors
/// Where libtorch fails.
pub fn lm_backward(
    model: &Model,
    stepper: &mut Stepper,
    rows: &[LmRow],
    options: &LmOptions,
) -> Result<LmLoss, TrainerError> {
    let tokens = rows.iter().map(LmRow::num_targets).sum::<usize>() as f64;
    let scale = options.coef / tokens.max(1.0);
    let ranks = Rc::clone(&stepper.division().ranks);
    let own = ranks.share(&by_length(rows));
    stepper.expect(own.len().div_ceil(options.micro_batch));
    let mut sum = 0.0;
    for (index, micro) in own.chunks(options.micro_batch).enumerate() {
        let (input, targets) = to_input(micro, options.pad_id, model);
        let record = RecordOptions {
            checkpointing: options.checkpointing,
            dropout: options.dropout,
            dropout_key: seeds::key(options.dropout_key, "micro-batch", ranks.number(index), 0),
        };
        sum += lm_micro_step(model, &input, &targets, scale, &record, |block| {
            stepper.block_done(block)
        })?;
        stepper.accumulate()?;
    }
    stepper.observe_loss(scale * sum);
    of_all_ranks(&ranks, LmLoss { sum, tokens })
}

/// The loss of `rows` without gradients, of which each rank takes its share.
///
/// # Errors
/// Where libtorch fails.
pub fn lm_evaluate(
    model: &Model,
    rows: &[LmRow],
    pad_id: u32,
    micro_batch: usize,
    ranks: &Ranks,
) -> Result<LmLoss, TrainerError> {
    let tokens = rows.iter().map(LmRow::num_targets).sum::<usize>() as f64;
    let mut sum = 0.0;
    let _whole = model.whole()?;
    for micro in ranks.share(&by_length(rows)).chunks(micro_batch) {
        let (input, targets) = to_input(micro, pad_id, model);
        let hidden_btd = no_grad(|| model.hidden(&input));
        sum += token_loss(model, &hidden_btd, &targets)?;
    }
    of_all_ranks(ranks, LmLoss { sum, tokens })
}

/// A loss whose tokens were counted over all rows, and whose sum is of this rank's.
fn of_all_ranks(ranks: &Ranks, loss: LmLoss) -> Result<LmLoss, TrainerError> {
    let mut sum = [loss.sum];
    ranks.sum(&mut sum)?;
    Ok(LmLoss {
        sum: sum[0],
        ..loss
    })
}

/// Shortest first, so that a micro-batch pads little.
fn by_length(rows: &[LmRow]) -> Vec<&LmRow> {
    let mut sorted: Vec<&LmRow> = rows.iter().collect();
    sorted.sort_by_key(|row| row.ids.len());
    sorted
}

fn to_input(rows: &[&LmRow], pad_id: u32, model: &Model) -> (Input, Targets) {
    let wanted: Vec<&[Option<u32>]> = rows.iter().map(|row| &row.targets[..]).collect();
    let input = Input::from_rows(rows, pad_id, model.device());
    (input, Targets::new(&wanted, model.device()))
}
