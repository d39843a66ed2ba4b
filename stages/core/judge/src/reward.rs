//! A reward model as a judge.
//!
//! Shapes: `b` sequences of a batch, `t` tokens, `d` width.

use datasets::collate::{Side, pad};
use model::{Head, Input, Model};
use tch::{Device, Kind, Tensor};
use thiserror::Error;

/// Why sequences could not be scored.
#[derive(Debug, Error)]
pub enum JudgeError {
    /// The model predicts tokens.
    #[error(
        "this model has a token head, and a reward model needs a scalar one\n  \
         hint: use the checkpoint of a reward stage, or a `...ForSequenceClassification` of one label"
    )]
    NoScalarHead,
    /// A batch of no rows.
    #[error("batch is 0, and must be at least 1\n  hint: set `micro_batch` to 1 or more")]
    EmptyBatch,
    /// A row without a token, and so without a last one.
    #[error(
        "row {row} is empty, and the reward is read at its last token\n  hint: leave such rows out"
    )]
    EmptyRow {
        /// Index of the row.
        row: usize,
    },
    /// A row that the model's positions cannot hold.
    #[error(
        "row {row} has {tokens} tokens, and the reward model reads at most {max_positions}\n  \
         hint: lower `max_prompt_tokens` or `max_new_tokens`, or train a reward model of longer context"
    )]
    TooLong {
        /// Index of the row.
        row: usize,
        /// Its tokens.
        tokens: usize,
        /// The model's bound.
        max_positions: usize,
    },
    /// A token that the model's embedding does not have.
    #[error(
        "row {row} has token {token}, and the reward model has {vocab_size}\n  \
         hint: encode the rows with the reward model's own tokenizer"
    )]
    UnknownToken {
        /// Index of the row.
        row: usize,
        /// The token.
        token: u32,
        /// The model's bound.
        vocab_size: usize,
    },
    /// A score that is no number.
    #[error(
        "the reward of row {row} is {score}\n  hint: the reward model's weights are not finite"
    )]
    NonFinite {
        /// Index of the row.
        row: usize,
        /// The score.
        score: f64,
    },
}

/// A model with a scalar head that scores whole sequences.
#[derive(Debug)]
pub struct RewardJudge {
    model: Model,
}

impl RewardJudge {
    /// Takes a reward model.
    ///
    /// # Errors
    /// When its head is not scalar.
    pub fn new(model: Model) -> Result<Self, JudgeError> {
        match model.head {
            Head::Scalar => Ok(Self { model }),
            Head::Token => Err(JudgeError::NoScalarHead),
        }
    }

    /// The reward model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The raw reward of each row (prompt and response), read at the row's last token; `reward_shift` is
    /// not applied. Computed without gradients, at most `batch` rows at a time, rows of like length
    /// together; `pad_id` fills the rest and changes nothing.
    ///
    /// # Errors
    /// When a row is empty, longer than the model's positions or of another vocabulary, when `batch` is
    /// 0, and when a score is not finite.
    pub fn score(
        &self,
        rows: &[Vec<u32>],
        pad_id: u32,
        batch: usize,
    ) -> Result<Vec<f64>, JudgeError> {
        self.validate(rows, batch)?;
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|&row| std::cmp::Reverse(rows[row].len()));
        let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
        let batches: Vec<Tensor> = tch::no_grad(|| {
            let model = self.model.for_inference(batch.min(rows.len()) * longest);
            order
                .chunks(batch)
                .map(|members| {
                    let members: Vec<&[u32]> = members.iter().map(|&row| &rows[row][..]).collect();
                    score_batch(&model, &members, pad_id)
                })
                .collect()
        });
        let mut scores = vec![0.0; rows.len()];
        if batches.is_empty() {
            return Ok(scores);
        }
        let sorted = to_host(&Tensor::cat(&batches, 0));
        for (&row, score) in order.iter().zip(sorted) {
            if !score.is_finite() {
                return Err(JudgeError::NonFinite { row, score });
            }
            scores[row] = score;
        }
        Ok(scores)
    }

    fn validate(&self, rows: &[Vec<u32>], batch: usize) -> Result<(), JudgeError> {
        if batch == 0 {
            return Err(JudgeError::EmptyBatch);
        }
        let max_positions = self.model.shape.max_positions;
        let vocab_size = self.model.shape.vocab_size;
        for (row, ids) in rows.iter().enumerate() {
            if ids.is_empty() {
                return Err(JudgeError::EmptyRow { row });
            }
            if ids.len() > max_positions {
                return Err(JudgeError::TooLong {
                    row,
                    tokens: ids.len(),
                    max_positions,
                });
            }
            if let Some(&token) = ids.iter().find(|&&id| id as usize >= vocab_size) {
                return Err(JudgeError::UnknownToken {
                    row,
                    token,
                    vocab_size,
                });
            }
        }
        Ok(())
    }
}

/// Rewards of one right-padded batch, on the model's device, in f64.
fn score_batch(model: &Model, rows: &[&[u32]], pad_id: u32) -> Tensor {
    let padded = pad(rows, Side::Right, pad_id, None);
    let lengths: Vec<usize> = rows.iter().map(|row| row.len()).collect();
    let input = Input::from_padded(&padded, model.device()).wanted_last(&lengths);
    let hidden_btd = model.hidden(&input);
    let scores_b = model.scalar_at_last(&hidden_btd, &lengths);
    scores_b.to_kind(Kind::Double)
}

fn to_host(values_b: &Tensor) -> Vec<f64> {
    let values_b = values_b.to_device(Device::Cpu).contiguous();
    let mut values = vec![0.0; values_b.numel()];
    values_b.copy_data(&mut values, values_b.numel());
    values
}
