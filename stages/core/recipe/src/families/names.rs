//! How a family names its tensors.

/// The names of a model's tensors: whole ones without `.weight` and `.bias`, those of a block
/// relative to the block.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// What precedes all names of the trunk; the oldest folders leave it out.
    pub trunk: &'static str,
    /// The token embedding.
    pub embedding: &'static str,
    /// The table of learned positions.
    pub positions: &'static str,
    /// The matrices that lead from the embedding's width to the model's, and back.
    pub project: [&'static str; 2],
    /// The list of blocks.
    pub block: &'static str,
    /// The norm before (or behind) attention, and the MLP's.
    pub norms: [&'static str; 2],
    /// Query, key and value.
    pub qkv: QkvNames,
    /// Norms of queries and keys.
    pub qk_norms: [&'static str; 2],
    /// Attention's output.
    pub output: &'static str,
    /// The MLP.
    pub mlp: MlpNames,
    /// The norm behind the last block.
    pub final_norm: &'static str,
    /// The output projection.
    pub head: &'static str,
    /// Matrices are `[in, out]` (`Conv1D`), not `[out, in]`.
    pub in_out: bool,
    /// Ends of the names of constants that folders store among the weights.
    pub buffers: &'static [&'static str],
}

/// Names and layout of query, key and value.
#[derive(Debug, Clone, Copy)]
pub enum QkvNames {
    /// Three matrices.
    Split([&'static str; 3]),
    /// One: all queries, then all keys, then all values.
    Thirds(&'static str),
    /// One: for each key head its queries, its key and its value.
    Groups(&'static str),
}

/// Names of the MLP's matrices.
#[derive(Debug, Clone, Copy)]
pub enum MlpNames {
    /// Up and down.
    Plain([&'static str; 2]),
    /// Gate, up and down.
    Gated([&'static str; 3]),
    /// Gate and up in one matrix, one behind the other; and down.
    FusedGate([&'static str; 2]),
}

impl Names {
    /// The table of places within spans. The name is ours, as other programs know no such decoder.
    pub fn places(&self) -> String {
        format!("{}span_positions", self.trunk)
    }

    /// Those of the Llama lineage.
    pub(super) const LLAMA: Self = Self {
        trunk: "model.",
        embedding: "model.embed_tokens",
        positions: "",
        project: ["", ""],
        block: "model.layers",
        norms: ["input_layernorm", "post_attention_layernorm"],
        qkv: QkvNames::Split(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        qk_norms: ["self_attn.q_norm", "self_attn.k_norm"],
        output: "self_attn.o_proj",
        mlp: MlpNames::Gated(["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]),
        final_norm: "model.norm",
        head: "lm_head",
        in_out: false,
        buffers: &[".rotary_emb.inv_freq"],
    };
}
