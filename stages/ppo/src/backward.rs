//! Forward and backward pass of a micro-batch: one pass of each model that is trained.
//!
//! Shapes: `b` episodes, `t` columns of prompt and response, `r` response columns, `d` width.

use model::{Model, RecordOptions};
use tch::Tensor;
use trainer::TrainerError;

use crate::loss::{ClippedLoss, policy_loss, value_loss};
use crate::rollout::{EpisodeBatch, response_values};

/// What the losses depend on beside models and episodes.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Ratio clip of the policy loss.
    pub clip: f64,
    /// Clip of the value loss around the old values; `None`: unclipped.
    pub value_clip: Option<f64>,
    /// Divides logits.
    pub temperature: f64,
    /// Response tokens of the whole update, by which sums over tokens are divided.
    pub tokens: f64,
    /// How passes are recorded.
    pub record: RecordOptions,
}

/// Values from a head on the policy's trunk.
#[derive(Debug, Clone, Copy)]
pub struct ValueHead<'a> {
    /// The model that has the policy's parameters and the head.
    pub value: &'a Model,
    /// The weight of the value loss beside the policy's.
    pub coef: f64,
}

/// A loss whose gradients were made: a sum over response tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Done {
    /// The loss.
    pub sum: f64,
    /// Tokens whose clipped branch was the larger one.
    pub clipped: f64,
}

impl From<&ClippedLoss> for Done {
    fn from(loss: &ClippedLoss) -> Self {
        Self {
            sum: loss.sum.double_value(&[]),
            clipped: loss.clipped,
        }
    }
}

/// What a pass of the policy gave.
#[derive(Debug)]
pub struct PolicyPass {
    /// Log-probabilities of the response tokens, without a graph.
    pub logprobs_br: Tensor,
    /// The policy's own loss.
    pub policy: Done,
    /// That of values from a head on its trunk.
    pub value: Option<Done>,
    /// The sum that was differentiated: policy, and the value loss at its weight.
    pub sum: f64,
}

/// Adds the gradients of the policy loss, and with a value head those of `policy + coef value`, both over
/// `terms.tokens`. `done` is told of each block whose gradients are made.
///
/// # Errors
/// Where libtorch fails.
pub fn policy_backward(
    policy: &Model,
    head: Option<ValueHead>,
    batch: &EpisodeBatch,
    terms: &Terms,
    done: impl FnMut(usize) -> Result<(), TrainerError>,
) -> Result<PolicyPass, TrainerError> {
    let (hidden_btd, tape) = policy.record(&batch.input, &terms.record)?;
    let logprobs_br = model::response_logprobs(
        policy,
        &hidden_btd,
        &batch.input.ids_bt,
        batch.response_start,
        terms.temperature,
    );
    let loss = policy_loss(
        &logprobs_br,
        &batch.logprobs_br,
        &batch.advantages_br,
        &batch.mask_br,
        terms.clip,
    );
    let value = head.map(|head| loss_of_values(head.value, &hidden_btd, batch, terms));
    let sum = match (&value, head) {
        (Some(value), Some(head)) => &loss.sum + &value.sum * head.coef,
        _ => loss.sum.shallow_clone(),
    };
    (&sum / terms.tokens).backward();
    tape.backward_by_block(policy, done)?;
    Ok(PolicyPass {
        logprobs_br: logprobs_br.detach(),
        policy: Done::from(&loss),
        value: value.as_ref().map(Done::from),
        sum: sum.double_value(&[]),
    })
}

/// Adds the gradients of the loss of a value model of its own; `done` as in [`policy_backward`].
///
/// # Errors
/// Where libtorch fails.
pub fn value_backward(
    value: &Model,
    batch: &EpisodeBatch,
    terms: &Terms,
    done: impl FnMut(usize) -> Result<(), TrainerError>,
) -> Result<Done, TrainerError> {
    let (hidden_btd, tape) = value.record(&batch.input, &terms.record)?;
    let loss = loss_of_values(value, &hidden_btd, batch, terms);
    (&loss.sum / terms.tokens).backward();
    tape.backward_by_block(value, done)?;
    Ok(Done::from(&loss))
}

fn loss_of_values(
    value: &Model,
    hidden_btd: &Tensor,
    batch: &EpisodeBatch,
    terms: &Terms,
) -> ClippedLoss {
    value_loss(
        &response_values(value, hidden_btd, batch.response_start),
        &batch.values_br,
        &batch.returns_br,
        &batch.mask_br,
        terms.value_clip,
    )
}
