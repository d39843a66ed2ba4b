//! The loss of predicted tokens, in chunks, so that the logits of a whole batch never exist at once.
//!
//! Shape suffixes: b rows, t columns, d width, n target tokens of the batch, c target tokens of one
//! chunk, v vocabulary.

use model::{Input, Model, RecordOptions};
use recipe::memory::{Place, logit_chunk_bytes};
use tch::{Device, Reduction, Tensor, no_grad, with_grad};
use torch_ext::wide_kind;

use crate::error::TrainerError;

/// What is to be predicted in a batch: at which hidden states, and which tokens.
#[derive(Debug)]
pub struct Targets {
    /// Rows of `hidden_btd` flattened to `[b * t, d]`.
    places_n: Tensor,
    ids_n: Tensor,
}

impl Targets {
    /// Those of rows that are padded on the right to the longest of them: at each token what is to be
    /// predicted there, from all that it sees.
    pub fn new(rows: &[&[Option<u32>]], device: Device) -> Self {
        let columns = rows.iter().map(|row| row.len()).max().unwrap_or(0);
        let (mut places, mut ids) = (Vec::new(), Vec::new());
        for (index, row) in rows.iter().enumerate() {
            for (column, id) in row.iter().enumerate() {
                if let Some(id) = id {
                    places.push((index * columns + column) as i64);
                    ids.push(i64::from(*id));
                }
            }
        }
        let to_tensor = |numbers: &[i64]| Tensor::from_slice(numbers).to_device(device);
        Self {
            places_n: to_tensor(&places),
            ids_n: to_tensor(&ids),
        }
    }

    /// How many there are. The sum of these over all micro-batches (and ranks) of an update is the count
    /// that its loss is divided by.
    pub fn len(&self) -> i64 {
        self.ids_n.size()[0]
    }

    /// Whether nothing is to be predicted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Target tokens per chunk.
fn chunk_length(model: &Model) -> i64 {
    let row_bytes = model.shape.vocab_size * size_of::<f32>();
    let place = if model.device().is_cuda() {
        Place::Gpu
    } else {
        Place::Cpu
    };
    (logit_chunk_bytes(place) / row_bytes).max(1) as i64
}

/// `(start, length)` of each chunk.
fn chunks(num_targets: i64, length: i64) -> impl Iterator<Item = (i64, i64)> {
    let starts = (0..num_targets).step_by(length as usize);
    starts.map(move |start| (start, length.min(num_targets - start)))
}

/// Sum of `-ln p(ids_c)`, a scalar in f32 (f64 for f64 models).
fn nll_sum(model: &Model, hidden_cd: &Tensor, ids_c: &Tensor) -> Tensor {
    let logits_cv = model.logits(hidden_cd);
    let logits_cv = logits_cv.to_kind(wide_kind(logits_cv.kind()));
    logits_cv.cross_entropy_loss::<Tensor>(ids_c, None, Reduction::Sum, -100, 0.0)
}

/// Sum over the targets of `-ln p(token)`, in nats, without a gradient: for evaluation. `hidden_btd` is
/// [`Model::hidden`] of the batch whose `targets` they are.
///
/// # Errors
/// Where libtorch fails.
pub fn token_loss(
    model: &Model,
    hidden_btd: &Tensor,
    targets: &Targets,
) -> Result<f64, TrainerError> {
    no_grad(|| {
        let hidden_nd = flat(hidden_btd);
        let mut sum = 0.0;
        for (start, length) in chunks(targets.len(), chunk_length(model)) {
            let hidden_cd =
                hidden_nd.f_index_select(0, &targets.places_n.narrow(0, start, length))?;
            sum += nll_sum(model, &hidden_cd, &targets.ids_n.narrow(0, start, length))
                .f_double_value(&[])?;
        }
        Ok(sum)
    })
}

/// Forward and backward pass of one micro-batch: adds the gradients of `scale * sum(-ln p)` over the
/// targets to the parameters' `.grad`, and returns the unscaled sum in nats. `done` is told of each
/// block whose gradients are made ([`model::Tape::backward_by_block`]). A batch without targets adds zeros.
///
/// `scale` is one over the target tokens of the *whole update* (times a loss coefficient, if any), so
/// that eight micro-batches of one row give the gradients of one of eight rows. Each chunk of logits is
/// freed by its own backward pass before the next is made.
///
/// # Errors
/// Where libtorch or the model's backward pass fails.
pub fn lm_micro_step(
    model: &Model,
    input: &Input,
    targets: &Targets,
    scale: f64,
    options: &RecordOptions,
    done: impl FnMut(usize) -> Result<(), TrainerError>,
) -> Result<f64, TrainerError> {
    let (hidden_btd, tape) = model.record(input, options)?;
    let sum = head_step(model, &hidden_btd, targets, scale, chunk_length(model))?;
    tape.backward_by_block(model, done)?;
    Ok(sum)
}

/// Adds the gradients of the head and of the hidden states, which are a leaf.
pub(crate) fn head_step(
    model: &Model,
    hidden_btd: &Tensor,
    targets: &Targets,
    scale: f64,
    chunk_length: i64,
) -> Result<f64, TrainerError> {
    let hidden_nd = flat(&hidden_btd.detach());
    let mut grad_nd = hidden_nd.zeros_like();
    let mut sum = 0.0;
    for (start, length) in chunks(targets.len(), chunk_length) {
        let places_c = targets.places_n.narrow(0, start, length);
        let hidden_cd = hidden_nd
            .f_index_select(0, &places_c)?
            .set_requires_grad(true);
        let ids_c = targets.ids_n.narrow(0, start, length);
        let loss = with_grad(|| nll_sum(model, &hidden_cd, &ids_c));
        sum += loss.f_double_value(&[])?;
        with_grad(|| loss * scale).f_backward()?;
        let _ = grad_nd.f_index_copy_(0, &places_c, &hidden_cd.grad())?;
    }
    torch_ext::backward(&[hidden_btd], &[&grad_nd.view_as(hidden_btd)])?;
    Ok(sum)
}

fn flat(hidden_btd: &Tensor) -> Tensor {
    let width = hidden_btd.size()[2];
    hidden_btd.reshape([-1, width])
}
