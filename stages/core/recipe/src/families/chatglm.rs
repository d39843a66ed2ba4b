//! Folders of `model_type: chatglm` (`ChatGLM2`-6B and `ChatGLM3`-6B): read as GLM, whose parts they have, and
//! written out as `glm`. Their names and configuration are from the modelling code beside the weights.

use serde_json::json;

use super::Sizes;
use super::config::Config;
use crate::error::ShapeError;
use crate::shape::{Biases, Family, ModelShape, Positions, Rotary};

/// `model_type` in `config.json`.
pub(super) const MODEL_TYPE: &str = "chatglm";

/// Where a stored tensor goes: a name of the model, and which of the stored rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The name, as in [`crate::tensors::tensors`].
    pub name: String,
    /// First row and number of rows; `None`: the whole tensor.
    pub rows: Option<(usize, usize)>,
}

pub(super) fn read(config: &Config<'_>) -> Result<ModelShape, ShapeError> {
    config.only("rmsnorm", &[json!(true)], "true")?;
    config.only("post_layer_norm", &[json!(true)], "true")?;
    config.only("add_bias_linear", &[json!(false)], "false")?;
    let residual = "apply_residual_connection_post_layernorm";
    config.only(residual, &[json!(false)], "false")?;
    config.absent("pre_seq_len")?;
    config.only("quantization_bit", &[json!(0)], "0")?;
    let sizes = Sizes {
        vocab_size: config.count("padded_vocab_size")?,
        max_positions: config.count("seq_length")?,
        layers: config.count("num_layers")?,
        width: config.count("hidden_size")?,
        heads: config.count("num_attention_heads")?,
    };
    let kv_heads = if config.flag("multi_query_attention", false)? {
        config.count("multi_query_group_num")?
    } else {
        sizes.heads
    };
    let head_dim = match config.count_opt("kv_channels")? {
        Some(head_dim) => head_dim,
        None => sizes.width / sizes.heads,
    };
    let usual = Family::Glm.shape(&sizes);
    let positions = match usual.positions {
        Positions::Rotary(rotary) => Positions::Rotary(Rotary {
            width: head_dim / 2,
            theta: ModelShape::DEFAULT_ROPE_THETA * config.number("rope_ratio", 1.0)?,
            ..rotary
        }),
        other => other,
    };
    let qkv = config.flag("add_qkv_bias", false)?;
    Ok(ModelShape {
        kv_heads,
        head_dim,
        mlp_width: config.count("ffn_hidden_size")?,
        norm_eps: config.number("layernorm_epsilon", 1e-5)?,
        positions,
        biases: Biases {
            qkv,
            ..Biases::NONE
        },
        tie_embeddings: config.flag("tie_word_embeddings", false)?,
        ..usual
    })
}

/// Where a stored tensor goes: query, key and value are one tensor in these folders; `None` for a name
/// that they do not have, no part for a constant.
pub(super) fn parts(stored: &str, shape: &ModelShape) -> Option<Vec<Part>> {
    let whole = |name: String| vec![Part { name, rows: None }];
    match stored {
        "transformer.embedding.word_embeddings.weight" => {
            return Some(whole("model.embed_tokens.weight".to_owned()));
        }
        "transformer.encoder.final_layernorm.weight" => {
            return Some(whole("model.norm.weight".to_owned()));
        }
        "transformer.output_layer.weight" => return Some(whole("lm_head.weight".to_owned())),
        "transformer.rotary_pos_emb.inv_freq" => return Some(Vec::new()),
        _ => {}
    }
    let (layer, part) = stored
        .strip_prefix("transformer.encoder.layers.")?
        .split_once('.')?;
    let name = |part: &str| format!("model.layers.{layer}.{part}");
    if let Some(end) = part.strip_prefix("self_attention.query_key_value.") {
        let [queries, keys] = [shape.heads, shape.kv_heads].map(|heads| heads * shape.head_dim);
        let rows = [
            ("q_proj", 0, queries),
            ("k_proj", queries, keys),
            ("v_proj", queries + keys, keys),
        ];
        let part = |(matrix, start, len)| Part {
            name: name(&format!("self_attn.{matrix}.{end}")),
            rows: Some((start, len)),
        };
        return Some(rows.map(part).to_vec());
    }
    let renamed = match part {
        "self_attention.dense.weight" => "self_attn.o_proj.weight",
        "mlp.dense_h_to_4h.weight" => "mlp.gate_up_proj.weight",
        "mlp.dense_4h_to_h.weight" => "mlp.down_proj.weight",
        "input_layernorm.weight" | "post_attention_layernorm.weight" => part,
        _ => return None,
    };
    Some(whole(name(renamed)))
}
