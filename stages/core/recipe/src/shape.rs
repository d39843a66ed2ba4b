//! The shape of a model: everything that decides names and sizes of its tensors.

use serde::{Deserialize, Serialize};

/// Model families: who names the tensors and which parts a block has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Learned positions, `LayerNorm`, GELU (Radford et al. 2019).
    Gpt2,
    /// `RMSNorm`, `SwiGLU`, `RoPE`, grouped-query attention (Touvron et al. 2023).
    Llama,
}

/// The shape of a decoder-only transformer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelShape {
    /// Family.
    pub family: Family,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence, tokens (GPT-2: rows of the position embedding).
    pub max_positions: usize,
    /// Blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width of the MLP.
    pub mlp_width: usize,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// Base of the rotary frequencies (Llama).
    pub rope_theta: f64,
    /// The output projection is the embedding.
    pub tie_embeddings: bool,
}

impl ModelShape {
    /// Base of the rotary frequencies where nothing states another (Su et al. 2021).
    pub const DEFAULT_ROPE_THETA: f64 = 10_000.0;
}
