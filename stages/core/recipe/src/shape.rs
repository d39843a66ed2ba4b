//! The shape of a model: everything that decides names and sizes of its tensors, and what is
//! computed from them.
//!
//! A decoder-only transformer is put together from a few parts ([`NormKind`], [`BlockOrder`],
//! [`Positions`], [`LocalAttention`], [`Biases`], [`Activation`]); a [`Family`] is a usual choice of
//! parts with its own names for the tensors (`families`).

use serde::{Deserialize, Serialize};

/// Model families: who names the tensors. Each is one file of `families`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// GPT-1 (Radford et al. 2018): norms after the residual sum, learned positions.
    Gpt1,
    /// GPT-2 (Radford et al. 2019): learned positions, `LayerNorm`, GELU.
    Gpt2,
    /// GPT-3's alternating dense and banded attention (Brown et al. 2020), as GPT-Neo stores it.
    GptNeo,
    /// GPT-NeoX and Pythia (Black et al. 2022, Biderman et al. 2023): parallel residual, partial
    /// rotary positions.
    GptNeox,
    /// OPT (Zhang et al. 2022): learned positions, `ReLU`.
    Opt,
    /// `LLaMA`, Llama 2 and 3 (Touvron et al. 2023): `RMSNorm`, `SwiGLU`, `RoPE`, grouped-query
    /// attention.
    Llama,
    /// Mistral (Jiang et al. 2023): Llama with a sliding window.
    Mistral,
    /// Qwen2 and Qwen2.5 (Yang et al. 2024): Llama with biases of query, key and value.
    Qwen2,
    /// Qwen3 (Yang et al. 2025): Llama with norms of queries and keys.
    Qwen3,
    /// Falcon (Almazrouei et al. 2023): parallel attention, multi-query or grouped, rotary or `ALiBi`.
    Falcon,
    /// GLM (Zeng et al. 2024), the open lineage of `ChatGLM`: partial interleaved rotary positions,
    /// grouped-query attention.
    Glm,
}

/// What a norm computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// Mean and variance, weight and bias (Ba et al. 2016).
    Layer,
    /// The root mean square, weight alone (Zhang and Sennrich 2019).
    Rms,
}

/// How attention and MLP of a block follow each other, and where their norms stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockOrder {
    /// `x + attention(norm x)`, then `x + mlp(norm x)`; a final norm behind the last block.
    PreNorm,
    /// `norm(x + attention(x))`, then `norm(x + mlp(x))`; no final norm (Vaswani et al. 2017).
    PostNorm,
    /// `x + attention(n) + mlp(n)` with one norm `n = norm x` (Wang and Komatsuzaki 2021).
    ParallelOneNorm,
    /// `x + attention(norm x) + mlp(norm' x)`.
    ParallelTwoNorms,
}

/// How a model knows the order of its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// A trained vector a position, added to the embedding; `unused` rows precede the first.
    Learned {
        /// Rows before that of position 0 (OPT: 2).
        unused: usize,
        /// Rows of a second table, for the places within a span of infilled text, from 1 on (GLM; Du et
        /// al. 2022, section 2.1); at place 0, outside of spans, it adds nothing. 0: there is none.
        #[serde(default, skip_serializing_if = "is_zero")]
        places: usize,
    },
    /// Sines and cosines of falling frequency, added to the embedding (Vaswani et al. 2017,
    /// section 3.5); nothing is stored.
    Sinusoidal,
    /// Queries and keys rotated by angles that grow with the position (Su et al. 2021).
    Rotary(Rotary),
    /// Attention falls off linearly with the distance, at another rate in each head (Press et al.
    /// 2022); computed as Falcon does, where the slopes are rounded to bf16 and scaled as the products are.
    Alibi,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the form that serde calls it in"
)]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Positions {
    /// The word of a configuration.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Learned { .. } => "learned",
            Self::Sinusoidal => "sinusoidal",
            Self::Rotary(_) => "rotary",
            Self::Alibi => "alibi",
        }
    }
}

/// Rotary positions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rotary {
    /// Numbers of a head that are rotated, from the first on; even.
    pub width: usize,
    /// Pairs are neighbours (GLM), not halves (Llama).
    pub interleaved: bool,
    /// Base of the frequencies.
    pub theta: f64,
    /// How the frequencies are stretched to a longer context.
    pub scaling: RopeScaling,
}

/// Rotary frequencies stretched beyond the context that they were trained on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeScaling {
    /// As trained.
    None,
    /// All positions divided by `factor` (Chen et al. 2023).
    Linear {
        /// How many times longer.
        factor: f64,
    },
    /// The base grows with the row: `theta (factor n / original - factor + 1)^(w / (w - 2))` for a row of
    /// `n` tokens beyond `original`, `w` the turned numbers ("dynamic NTK", of the users bloc97 and
    /// emozilla; transformers' `_compute_dynamic_ntk_parameters`). A row is as long as it is at the time:
    /// cached keys keep the angles of the length that they were made at, so beyond `original`, decoding
    /// with a cache is another computation than a full pass.
    Dynamic {
        /// How many times longer rows may be.
        factor: f64,
        /// Positions trained on; within them nothing is scaled.
        original: usize,
    },
    /// High frequencies kept, low ones divided, a ramp between (Peng et al. 2023).
    Yarn(Yarn),
    /// Llama 3.1's own ramp between kept and divided frequencies (Grattafiori et al. 2024).
    Llama3 {
        /// How many times longer.
        factor: f64,
        /// Wavelengths above `original / low_frequency` are divided.
        low_frequency: f64,
        /// Wavelengths below `original / high_frequency` are kept.
        high_frequency: f64,
        /// Positions trained on.
        original: usize,
    },
}

impl RopeScaling {
    /// transformers' `rope_type`.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::None => "default",
            Self::Linear { .. } => "linear",
            Self::Dynamic { .. } => "dynamic",
            Self::Yarn(_) => "yarn",
            Self::Llama3 { .. } => "llama3",
        }
    }
}

/// `YaRN`'s numbers (Peng et al. 2023, section 3).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Yarn {
    /// How many times longer.
    pub factor: f64,
    /// Positions trained on.
    pub original: usize,
    /// Turns within `original` above which a frequency is kept.
    pub beta_fast: f64,
    /// Turns below which it is divided.
    pub beta_slow: f64,
    /// Queries and keys are multiplied by this.
    pub attention_factor: f64,
    /// The ramp's ends are whole dimensions.
    pub truncate: bool,
}

/// Layers that see a band of the last `window` tokens, the query's own included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalAttention {
    /// Tokens seen.
    pub window: usize,
    /// Which layers, ascending; all others see everything before.
    pub layers: Vec<usize>,
}

/// Which matrices have biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Biases {
    /// Query, key and value.
    pub qkv: bool,
    /// Attention's output.
    pub output: bool,
    /// The MLP's.
    pub mlp: bool,
}

impl Biases {
    /// None.
    pub const NONE: Self = Self {
        qkv: false,
        output: false,
        mlp: false,
    };
    /// All.
    pub const ALL: Self = Self {
        qkv: true,
        output: true,
        mlp: true,
    };
}

/// The MLP's activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// GELU in its tanh approximation (Hendrycks and Gimpel 2016; `gelu_new`).
    GeluTanh,
    /// GELU by the error function.
    Gelu,
    /// `ReLU`.
    Relu,
    /// `SiLU`, also called swish.
    Silu,
}

/// The shape of a decoder-only transformer.
#[expect(
    clippy::struct_excessive_bools,
    reason = "parts that do not depend on each other"
)]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelShape {
    /// Family.
    pub family: Family,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence, tokens (learned positions: rows of their table).
    pub max_positions: usize,
    /// Blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width of the embedding; where it differs from `width`, two matrices lead in and out (OPT-350m).
    pub embedding_width: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width of the MLP.
    pub mlp_width: usize,
    /// What a norm computes.
    pub norm: NormKind,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// Norms of each head's queries and keys, before they are rotated (Qwen3).
    pub qk_norm: bool,
    /// How attention and MLP follow each other.
    pub order: BlockOrder,
    /// How the model knows the order of tokens.
    pub positions: Positions,
    /// Layers with a sliding window; `None` where no layer has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<LocalAttention>,
    /// Attention's products are divided by the root of `head_dim` (GPT-Neo: not).
    pub scaled_attention: bool,
    /// Which matrices have biases.
    pub biases: Biases,
    /// The MLP's activation.
    pub activation: Activation,
    /// The MLP has a gate: `down(activation(gate x) * up x)` (Shazeer 2020).
    pub gated: bool,
    /// The output projection is the embedding.
    pub tie_embeddings: bool,
}

impl ModelShape {
    /// Base of the rotary frequencies where nothing states another (Su et al. 2021).
    pub const DEFAULT_ROPE_THETA: f64 = 10_000.0;

    /// The rotary positions, where the model has them.
    pub fn rotary(&self) -> Option<&Rotary> {
        match &self.positions {
            Positions::Rotary(rotary) => Some(rotary),
            _ => None,
        }
    }

    /// The longest row whose rotary angles depend on a token's position alone: with dynamic scaling the
    /// trained length.
    pub fn fixed_positions(&self) -> usize {
        match self.rotary().map(|rotary| rotary.scaling) {
            Some(RopeScaling::Dynamic { original, .. }) => original,
            _ => self.max_positions,
        }
    }

    /// The same without a table for places within spans, which only infilling has a use for.
    #[must_use]
    pub fn without_places(self) -> Self {
        self.with_places(0)
    }

    /// The same with such a table of `count` places, where its positions are learned.
    #[must_use]
    pub fn with_places(mut self, count: usize) -> Self {
        if let Positions::Learned { places, .. } = &mut self.positions {
            *places = count;
        }
        self
    }

    /// Whether a norm follows the last block.
    pub fn final_norm(&self) -> bool {
        self.order != BlockOrder::PostNorm
    }
}
