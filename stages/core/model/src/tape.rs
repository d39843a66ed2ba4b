//! The forward and backward pass of training, block by block.
//!
//! Each block's input is a leaf of its own, so a block's backward pass runs alone: its graph is
//! freed, or made anew (activation checkpointing), before the next one's. This is where
//! checkpointing, sharding and overlap have their place. CONTRIBUTING.md, "The backward pass", has
//! the measurement behind it.
//!
//! Shape suffixes: b rows, t positions, d width.

use tch::Tensor;

use crate::ModelError;
use crate::context::{Context, Output, Pass};
use crate::draw::seeded;
use crate::input::Input;
use crate::transformer::Model;

/// How a pass is recorded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RecordOptions {
    /// Keep only the blocks' inputs, and compute the rest anew in the backward pass.
    pub checkpointing: bool,
    /// Rate of residual dropout: on what attention and MLP add to the residual stream.
    pub dropout: f64,
    /// What this pass's dropout masks (those before adapters, too) depend on, together with the block (not the batch's layout).
    pub dropout_key: u64,
}

/// A recorded forward pass, waiting for its backward pass.
#[derive(Debug)]
pub struct Tape {
    options: RecordOptions,
    context: Context,
    embedded_btd: Tensor,
    /// Each block's input (a leaf), and its output unless checkpointing.
    blocks: Vec<(Tensor, Option<Tensor>)>,
    /// Input (a leaf) and output of the final norm.
    norm: (Tensor, Tensor),
    hidden_btd: Tensor,
    output: Output,
}

impl Model {
    /// A training pass: hidden states after the final norm `[b, t, d]`, a leaf that collects the
    /// loss's gradient, and the tape that carries it on.
    ///
    /// ```text
    /// let (hidden, tape) = model.record(&input, &options)?;
    /// loss_of(&hidden).backward();       // gradients of the head and of `hidden`
    /// tape.backward(&model)?;            // gradients of all else
    /// ```
    ///
    /// # Errors
    /// Where the model is [divided](Self::sharded) and another rank fails.
    pub fn record(
        &self,
        input: &Input,
        options: &RecordOptions,
    ) -> Result<(Tensor, Tape), ModelError> {
        let Pass {
            embedded_btd,
            mut context,
            output,
        } = self.pass(input);
        context.adapter_dropout = self.adapter_dropout();
        let mut x_btd = leaf(&embedded_btd);
        let num_blocks = self.blocks().len();
        let mut blocks = Vec::with_capacity(num_blocks);
        for index in 0..num_blocks {
            let next = Some(index + 1).filter(|next| *next < num_blocks);
            self.enter(index, next)?;
            let forward = || self.run_block(index, &x_btd, &context, options);
            let y_btd = if options.checkpointing {
                tch::no_grad(forward)
            } else {
                forward()
            };
            // The backward pass begins with the last one.
            if next.is_some() {
                self.leave(index);
            }
            let y_leaf = leaf(&y_btd);
            blocks.push((x_btd, (!options.checkpointing).then_some(y_btd)));
            x_btd = y_leaf;
        }
        let normed = self.final_norm(&x_btd);
        let hidden_btd = leaf(&output.fill(&normed.detach()));
        let tape = Tape {
            options: *options,
            context,
            embedded_btd,
            blocks,
            norm: (x_btd, normed),
            hidden_btd: hidden_btd.shallow_clone(),
            output,
        };
        Ok((hidden_btd, tape))
    }

    fn run_block(
        &self,
        index: usize,
        x_btd: &Tensor,
        context: &Context,
        options: &RecordOptions,
    ) -> Tensor {
        let columns = self.columns(index);
        let run = || self.blocks()[index].forward(x_btd, context, None, options.dropout, columns);
        if options.dropout == 0.0 && context.adapter_dropout == 0.0 {
            return run();
        }
        seeded(
            runtime::seeds::key(options.dropout_key, "dropout", 0, index as u64),
            run,
        )
    }
}

impl Tape {
    /// Carries the gradient of the hidden states through all blocks and the embeddings; adds to the
    /// parameters' `.grad()`. The parameters must be those of the forward pass.
    ///
    /// # Errors
    /// [`ModelError::NoGradient`] when the loss's own backward pass has not run; libtorch's errors.
    pub fn backward(self, model: &Model) -> Result<(), ModelError> {
        self.backward_by_block(model, |_| Ok(()))
    }

    /// The same; `done` is told of each block whose gradients are made, from the last one on. Those of all else are made
    /// in the end.
    ///
    /// # Errors
    /// As [`Self::backward`], and those of `done`.
    pub fn backward_by_block<E: From<ModelError>>(
        self,
        model: &Model,
        mut done: impl FnMut(usize) -> Result<(), E>,
    ) -> Result<(), E> {
        let grad = self.hidden_btd.grad();
        if !grad.defined() {
            return Err(ModelError::NoGradient.into());
        }
        let backward = |y: &Tensor, grad: &Tensor| {
            torch_ext::backward(&[y], &[grad]).map_err(|error| E::from(error.into()))
        };
        let (x_btd, y_btd) = self.norm;
        let grad = self.output.of(&grad);
        backward(&y_btd, &grad)?;
        let mut grad = x_btd.grad();
        drop((x_btd, y_btd, self.hidden_btd));
        for (index, (x_btd, y_btd)) in self.blocks.into_iter().enumerate().rev() {
            model.enter(index, index.checked_sub(1))?;
            let y_btd = y_btd
                .unwrap_or_else(|| model.run_block(index, &x_btd, &self.context, &self.options));
            backward(&y_btd, &grad)?;
            grad = x_btd.grad();
            drop((x_btd, y_btd));
            model.leave(index);
            done(index)?;
        }
        if self.embedded_btd.requires_grad() {
            backward(&self.embedded_btd, &grad)?;
        }
        Ok(())
    }
}

/// The same numbers, as the start of a graph of their own.
fn leaf(x: &Tensor) -> Tensor {
    x.detach().set_requires_grad(true)
}
