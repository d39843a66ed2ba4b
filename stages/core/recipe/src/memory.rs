//! What a stage has in memory at its peak: what stays through all of it, and the most that comes and goes beside that.
//!
//! A pass is followed from its forward to its update, since what is alive at once is less than all that is made: when
//! activations are all there, gradients are not there yet, and the other way round. Counted is what grows with the
//! model or the batch; what a process holds without a model (the metric `memory/start`) is not.

use crate::arithmetic::{packed_bytes, weight_bytes};
use crate::plan::{Dtype, Execution, LoraPlan, Quantization};
use crate::shape::ModelShape;
use crate::tensors::Head;

/// Where tensors lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the machine's memory: models are copied into another order for sampling and scoring.
    Cpu,
    /// In a GPU's.
    Gpu,
}

/// Where a stage runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Site {
    /// Where its tensors lie.
    pub place: Place,
    /// Ranks that share out its work, each with memory of its own.
    pub ranks: usize,
}

impl Site {
    /// One process that does all.
    pub fn alone(place: Place) -> Self {
        Self { place, ranks: 1 }
    }

    /// A rank's rows of so many.
    pub(crate) fn rows(self, all: usize) -> usize {
        all.div_ceil(self.ranks)
    }
}

/// Logits that are computed at once in the loss of predicted tokens, in f32, bytes. GPUs need larger matrices to be
/// busy.
pub fn logit_chunk_bytes(place: Place) -> usize {
    match place {
        Place::Cpu => 64 << 20,
        Place::Gpu => 512 << 20,
    }
}

/// Log-probabilities keep up to this many logits for their backward pass (128 MiB in f32); beyond, they are computed
/// anew in it, a chunk of as many at a time.
pub const KEPT_LOGITS: usize = 1 << 25;

/// Prompt tokens that are read in one step of decoding, at most (and one prompt at least).
pub const PROMPT_TOKENS_PER_STEP: usize = 8192;

/// Logits that decoding makes at a time, at most (64 MiB in f32).
pub const LOGITS_AT_ONCE: usize = 1 << 24;

/// Positions of a block of the KV cache (`torch_ext::CACHE_BLOCK`, which this crate cannot ask).
pub const CACHE_BLOCK: usize = 16;

/// What a loss reads of the last hidden states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The next token at every place, in chunks.
    Tokens,
    /// Log-probabilities of so many chosen tokens.
    Chosen(usize),
    /// One number a place.
    Scalar,
}

/// A model and how it is kept and computed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held<'a> {
    pub(crate) shape: &'a ModelShape,
    pub(crate) head: Head,
    pub(crate) lora: Option<&'a LoraPlan>,
    pub(crate) quantize: Option<Quantization>,
    pub(crate) execution: &'a Execution,
    pub(crate) site: Site,
}

/// The micro-batches of one kind of an update.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Passes {
    /// Tokens of one.
    pub(crate) tokens: usize,
    pub(crate) loss: Loss,
    /// There are gradients before one of them begins: it is not the update's first.
    pub(crate) on_gradients: bool,
    /// It is the update's only one.
    pub(crate) only: bool,
}

impl Held<'_> {
    pub(crate) fn dtype(&self) -> Dtype {
        self.execution.dtype
    }

    pub(crate) fn num_trained(&self) -> u64 {
        self.shape.num_trainable(self.head, self.lora)
    }

    /// The output projection, which is trained as a whole.
    pub(crate) fn head_bytes(&self) -> u64 {
        match (self.head, self.lora) {
            (Head::Token, None) => {
                let numbers = self.shape.vocab_size * self.shape.embedding_width;
                numbers as u64 * self.dtype().bytes()
            }
            _ => 0,
        }
    }

    /// Gradients as the backward passes leave them.
    fn gradient_bytes(&self) -> u64 {
        weight_bytes(self.num_trained(), self.dtype())
    }

    /// The copy of a model on a CPU in which it samples and scores.
    pub(crate) fn packed_bytes(&self) -> u64 {
        match self.site.place {
            Place::Cpu => packed_bytes(self.shape, self.head, self.dtype(), self.quantize),
            Place::Gpu => 0,
        }
    }

    /// The most that a pass without gradients over `tokens` tokens has at once: the residual stream before and behind
    /// what a block adds, and the larger of attention's and the MLP's.
    pub(crate) fn forward_bytes(&self, tokens: usize) -> u64 {
        let shape = self.shape;
        let attention = 2 * (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
        let mlp = if shape.gated { 3 } else { 2 } * shape.mlp_width;
        let numbers = 3 * shape.width + attention.max(mlp);
        (numbers * tokens) as u64 * self.dtype().bytes()
    }

    /// Logits and what is made of them while their loss is computed and, with `backward`, differentiated.
    fn logit_bytes(&self, tokens: usize, loss: Loss, backward: bool) -> u64 {
        let vocab_size = self.shape.vocab_size;
        let wide = self.dtype().wide().bytes();
        let (rows, copies) = match loss {
            Loss::Scalar => return 0,
            Loss::Tokens => {
                let chunk = (logit_chunk_bytes(self.site.place) / (4 * vocab_size)).max(1);
                // ln p, its gradient, and that of the logits.
                (tokens.min(chunk), if backward { 3 } else { 2 })
            }
            Loss::Chosen(chosen) if chosen * vocab_size <= KEPT_LOGITS => {
                // The logits, the gradients of the chosen ones and of the sum, and what that is made of.
                (chosen, if backward { 4 } else { 2 })
            }
            // The logits, and what their sum is made of.
            Loss::Chosen(_) => ((KEPT_LOGITS / vocab_size).max(1), 2),
        };
        copies * (rows * vocab_size) as u64 * wide
    }

    /// Scoring by a copy that is packed for it.
    pub(crate) fn scoring_bytes(&self, tokens: usize, loss: Loss) -> u64 {
        self.packed_bytes() + self.evaluating_bytes(tokens, loss)
    }

    /// The model whole, and a pass of which nothing is differentiated, or the logits behind it. To save a model takes less.
    pub(crate) fn evaluating_bytes(&self, tokens: usize, loss: Loss) -> u64 {
        let pass = self.forward_bytes(tokens);
        self.whole_blocks_bytes() + pass.max(self.logit_bytes(tokens, loss, false))
    }

    /// Decoding of `rows` rows of `prompt` tokens and up to `new` more, `alike` of each prompt. The cache is made for rows
    /// of their own, but a processor has no memory for what is never written: full blocks of a prompt are there once.
    pub(crate) fn sampling_bytes(
        &self,
        (rows, alike): (usize, usize),
        (prompt, new): (usize, usize),
    ) -> u64 {
        // The last token of a response is not read again.
        let blocks = (prompt + new - 1).div_ceil(CACHE_BLOCK);
        let shared = match self.site.place {
            Place::Cpu => prompt / CACHE_BLOCK * (rows - rows.div_ceil(alike)),
            Place::Gpu => 0,
        };
        let positions = (rows * blocks - shared) * CACHE_BLOCK;
        let cache = self.shape.cache_bytes(positions, self.dtype());
        let rows_read = rows.div_ceil(alike);
        let tokens = (rows_read * prompt).min(PROMPT_TOKENS_PER_STEP.max(prompt));
        let logits = (rows * self.shape.vocab_size).min(LOGITS_AT_ONCE) as u64;
        let logits = logits * self.dtype().bytes();
        let weights = self.packed_bytes() + self.whole_blocks_bytes();
        weights + cache + self.forward_bytes(tokens).max(logits)
    }

    /// The most that a forward pass, its backward pass and the update have at once beside weights and optimizer.
    pub(crate) fn update_bytes(&self, passes: &Passes) -> u64 {
        let Passes {
            tokens,
            loss,
            on_gradients,
            only,
        } = *passes;
        let bytes = |numbers: usize| (numbers * tokens) as u64 * self.dtype().bytes();
        let before = if on_gradients {
            self.waiting_bytes(only)
        } else {
            0
        };
        let head = self.head_bytes();
        let kept = self.shape.activation_bytes(tokens, self.execution);
        // Of the final norm: input, output and its gradient.
        let kept = kept + bytes(3 * self.shape.embedding_width);
        let logits = self.logit_bytes(tokens, loss, true);
        // The last block's backward pass, its activations made anew where they were not kept.
        let anew = if self.execution.checkpointing {
            self.shape.block_activations() as usize
        } else {
            0
        };
        let first_block = bytes(anew + self.shape.block_gradients());
        let passing = self.passing_bytes(passes);
        let first_block = first_block + passing.map_or(0, |[first, _]| first);
        // The last block's weights stay for its backward pass.
        let logits = logits + self.gathered_bytes(1);
        let begins = before + kept + logits.max(head + first_block);
        let last = passing.map_or_else(|| self.all_gradients(before, on_gradients), |[_, end]| end);
        let ends = last + bytes(2 * self.shape.width);
        begins.max(ends).max(self.waiting_bytes(only))
    }

    /// Every gradient at the end of a backward pass, those of the embedding last, which are added to what is there.
    fn all_gradients(&self, before: u64, on_gradients: bool) -> u64 {
        let accumulated = match self.dtype() {
            Dtype::Bf16 => self.gradient_bytes() + before,
            Dtype::F32 | Dtype::F64 => self.gradient_bytes(),
        };
        let added = if self.shape.tie_embeddings || on_gradients {
            self.head_bytes()
        } else {
            0
        };
        accumulated + added
    }
}

impl Dtype {
    /// The type of master weights and of sums of gradients.
    pub(crate) fn wide(self) -> Self {
        match self {
            Self::Bf16 | Self::F32 => Self::F32,
            Self::F64 => Self::F64,
        }
    }
}
