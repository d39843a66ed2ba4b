//! Parameters, floating-point operations and memory, from shapes alone.
//!
//! Parameters are exact. Operations count multiplications and additions of matrix products, and
//! attention as if every token saw the whole context (Chowdhery et al. 2022, appendix B). Memory is that of
//! weights, states and activations; what of it is alive at once is in [`crate::memory`].

use crate::plan::{Dtype, Execution, LoraPlan, OptimizerPlan, Quantization};
use crate::shape::ModelShape;
use crate::shares::Parts;
use crate::tensors::{Head, TensorSpec, tensors};

/// On a CPU a model is copied for sampling and scoring, its matrices in another order, where it is not larger than
/// this.
pub const PACKED_BYTES: usize = 2 << 30;

impl Dtype {
    /// Bytes of one number.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
            Self::F64 => 8,
        }
    }
}

impl Quantization {
    /// Weights that share a scale and a minimum where there are four bits for each.
    pub const GROUP: u64 = 64;

    /// Bytes of a matrix `[outputs, inputs]`: codes, and scales (and minima) in f32. A group that the
    /// inputs do not fill takes the room of a whole one.
    pub fn matrix_bytes(self, [outputs, inputs]: [u64; 2]) -> u64 {
        match self {
            Self::Int8 => outputs * (inputs + 4),
            Self::Int4 => outputs * inputs.div_ceil(Self::GROUP) * (Self::GROUP / 2 + 2 * 4),
        }
    }
}

impl ModelShape {
    /// Trainable numbers of the language model, tied embeddings counted once.
    pub fn num_parameters(&self) -> u64 {
        num_numbers(self, Head::Token)
    }

    /// Trainable numbers with a scalar head (no bias) in place of the output projection.
    pub fn num_parameters_scalar(&self) -> u64 {
        num_numbers(self, Head::Scalar)
    }

    /// Numbers that take part in a matrix product for every token: blocks and output projection.
    pub fn num_matrix_parameters(&self) -> u64 {
        let attention = 2 * self.width * (self.heads + self.kv_heads) * self.head_dim;
        let num_mlp_matrices = if self.gated { 3 } else { 2 };
        let block = attention + num_mlp_matrices * self.width * self.mlp_width;
        let project = if self.embedding_width == self.width {
            0
        } else {
            2 * self.width * self.embedding_width
        };
        (self.layers * block + project + self.vocab_size * self.embedding_width) as u64
    }

    /// Operations of attention's two products, per token of a sequence of `context`.
    fn attention_flops_per_token(&self, context: usize) -> f64 {
        (4 * self.layers * self.heads * self.head_dim * context) as f64
    }

    /// Operations of a forward pass, per token of a sequence of `context`.
    pub fn forward_flops_per_token(&self, context: usize) -> f64 {
        2.0 * self.num_matrix_parameters() as f64 + self.attention_flops_per_token(context)
    }

    /// Operations of a forward and a backward pass, per token, where the forward pass takes `forward`:
    /// `6 N` and the attention term. Frozen matrices get no gradient of their own, so that beside adapters
    /// it is `4 N`, the attention term, and `6` for each number of the adapters.
    pub fn training_flops_per_token(
        &self,
        forward: f64,
        context: usize,
        lora: Option<&LoraPlan>,
    ) -> f64 {
        match lora {
            None => 3.0 * forward,
            Some(lora) => {
                let adapters = 6.0 * lora.num_parameters(self) as f64;
                2.0 * forward + self.attention_flops_per_token(context) + adapters
            }
        }
    }

    /// Numbers that are trained: all, or the adapters and a scalar head.
    pub fn num_trainable(&self, head: Head, lora: Option<&LoraPlan>) -> u64 {
        match (lora, head) {
            (None, _) => num_numbers(self, head),
            (Some(lora), Head::Token) => lora.num_parameters(self),
            (Some(lora), Head::Scalar) => lora.num_parameters(self) + self.embedding_width as u64,
        }
    }

    /// Keys and values of one sequence.
    pub fn cache_bytes(&self, tokens: usize, dtype: Dtype) -> u64 {
        (2 * self.layers * self.kv_heads * self.head_dim * tokens) as u64 * dtype.bytes()
    }

    /// What a block keeps for its backward pass, numbers per token: the inputs and outputs of its two
    /// norms, query, key, value, attention's output, and of the MLP what its products make and what the last of them
    /// reads (a gate is applied in one pass, and only its inputs are kept).
    pub(crate) fn block_activations(&self) -> u64 {
        let mlp = if self.gated { 3 } else { 2 } * self.mlp_width;
        (4 * self.width + 2 * (self.heads + self.kv_heads) * self.head_dim + mlp) as u64
    }

    /// The gradients of a block's activations, numbers per token, of which its MLP's lie beside each other: that of what
    /// the last product reads, and those of what it is made of.
    pub(crate) fn block_gradients(&self) -> usize {
        let mlp = if self.gated { 3 } else { 2 } * self.mlp_width;
        2 * self.width + mlp
    }

    /// Activations that a training pass over `tokens` tokens keeps: those of every block, or with checkpointing
    /// the blocks' inputs.
    pub fn activation_bytes(&self, tokens: usize, execution: &Execution) -> u64 {
        let per_block = if execution.checkpointing {
            self.width as u64
        } else {
            self.block_activations()
        };
        self.layers as u64 * per_block * tokens as u64 * execution.dtype.bytes()
    }
}

fn num_numbers(shape: &ModelShape, head: Head) -> u64 {
    num_parts(shape, head).all()
}

/// What `rlhf plan` calls [`packed_bytes`].
pub(crate) const PACKED: &str = "weights in another order while it samples, on a CPU";

/// The copy of a model that is made on a CPU for sampling from it: none of more than [`PACKED_BYTES`], and none of
/// codes.
pub fn packed_bytes(
    shape: &ModelShape,
    head: Head,
    dtype: Dtype,
    quantize: Option<Quantization>,
) -> u64 {
    let whole = weight_bytes(num_numbers(shape, head), dtype);
    let output = match head {
        Head::Token => 0,
        Head::Scalar => (shape.vocab_size * shape.embedding_width) as u64,
    };
    let matrices = weight_bytes(shape.num_matrix_parameters() - output, dtype);
    let in_few_bits = quantize.is_some() || dtype == Dtype::F64;
    if in_few_bits || whole > PACKED_BYTES as u64 {
        0
    } else {
        matrices
    }
}

/// Weights alone.
pub fn weight_bytes(num_parameters: u64, dtype: Dtype) -> u64 {
    num_parameters * dtype.bytes()
}

/// Bytes of a model that is not trained: its blocks' matrices as `quantize` says, all else in `dtype`.
pub fn frozen_bytes(
    shape: &ModelShape,
    head: Head,
    dtype: Dtype,
    quantize: Option<Quantization>,
) -> u64 {
    frozen_parts(shape, head, dtype, quantize).all()
}

/// [`frozen_bytes`] within and outside of the blocks.
pub(crate) fn frozen_parts(
    shape: &ModelShape,
    head: Head,
    dtype: Dtype,
    quantize: Option<Quantization>,
) -> Parts {
    parts_of(shape, head, |spec| {
        match (quantize, spec.block_matrix(shape)) {
            (Some(quantize), Some(dims)) => quantize.matrix_bytes(dims.map(|n| n as u64)),
            _ => spec.dims.iter().product::<i64>() as u64 * dtype.bytes(),
        }
    })
}

/// Numbers within and outside of the blocks.
pub(crate) fn num_parts(shape: &ModelShape, head: Head) -> Parts {
    parts_of(shape, head, |spec| spec.dims.iter().product::<i64>() as u64)
}

fn parts_of(shape: &ModelShape, head: Head, count: impl Fn(&TensorSpec) -> u64) -> Parts {
    let specs = tensors(shape, head);
    let of = |in_block: bool| -> u64 {
        let specs = specs.iter().filter(|spec| spec.in_block(shape) == in_block);
        specs.map(&count).sum()
    };
    Parts {
        blocks: of(true),
        outside: of(false),
    }
}

/// What the optimizer keeps of each number: Adam's two moments, and with `bf16` weights the f32 master weight.
pub fn state_bytes(num_parameters: u64, dtype: Dtype) -> u64 {
    let per_parameter = match dtype {
        Dtype::F32 | Dtype::F64 => 2 * dtype.bytes(),
        Dtype::Bf16 => 4 + 8,
    };
    num_parameters * per_parameter
}

/// The lowest learning rate of a run that is past its warm-up.
pub fn final_learning_rate(plan: &OptimizerPlan) -> f64 {
    match plan.schedule {
        crate::plan::Schedule::Constant => plan.lr,
        crate::plan::Schedule::Linear | crate::plan::Schedule::Cosine => plan.lr * plan.floor,
    }
}
