//! Folders of `model_type: chatglm` (`ChatGLM2`, `ChatGLM3`, GLM-4): read as GLM, whose parts they have, and
//! written out as `glm`. Their names and configuration are from the modelling code beside the weights.

use serde_json::{Value, json};

use super::Sizes;
use super::config::{Config, unsupported};
use crate::error::ShapeError;
use crate::shape::{Biases, Family, ModelShape, Positions, RopeScaling, Rotary};

/// `model_type` in `config.json`.
pub(super) const MODEL_TYPE: &str = "chatglm";

/// Where rows of a stored tensor go: a name of the model, and which of the stored rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The name, as in [`crate::tensors::tensors`].
    pub name: String,
    /// First row and number of rows; `None`: the whole tensor.
    pub rows: Option<(usize, usize)>,
}

pub(super) fn read(config: &Config<'_>) -> Result<ModelShape, ShapeError> {
    // ChatGLM-6B, the first, is another model under the same type.
    config.only(
        "position_encoding_2d",
        &[json!(false)],
        "false, as from ChatGLM2 on",
    )?;
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
    }
    .checked()?;
    if !config.flag("multi_query_attention", false)? {
        // Query, key and value would lie head by head in their common tensor.
        return Err(unsupported("multi_query_attention", &json!(false), "true"));
    }
    let head_dim = match config.count_opt("kv_channels")? {
        Some(head_dim) => head_dim,
        None => sizes.width / sizes.heads,
    };
    let usual = Family::Glm.shape(&sizes);
    let positions = match usual.positions {
        Positions::Rotary(rotary) => Positions::Rotary(lengthened(
            config,
            Rotary {
                width: head_dim / 2,
                ..rotary
            },
        )?),
        other => other,
    };
    let qkv = config.flag("add_qkv_bias", false)?;
    Ok(ModelShape {
        kv_heads: config.count("multi_query_group_num")?,
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

/// `rope_ratio`, by which a model was lengthened: `ChatGLM2`'s program divides positions by it, those of
/// `ChatGLM3` and GLM-4 multiply the base. Their configs differ in nothing but the name.
fn lengthened(config: &Config<'_>, rotary: Rotary) -> Result<Rotary, ShapeError> {
    let ratio = config.number("rope_ratio", 1.0)?;
    if ratio.to_bits() == 1_f64.to_bits() {
        return Ok(rotary);
    }
    let name = config.get("_name_or_path").and_then(Value::as_str);
    let name = name.unwrap_or_default().to_lowercase();
    if name.contains("chatglm2") {
        let scaling = RopeScaling::Linear { factor: ratio };
        return Ok(Rotary { scaling, ..rotary });
    }
    if name.contains("chatglm3") || name.contains("glm-4") {
        let theta = rotary.theta * ratio;
        return Ok(Rotary { theta, ..rotary });
    }
    let words = "1, and others where _name_or_path holds chatglm2, chatglm3 or glm-4";
    Err(unsupported("rope_ratio", &json!(ratio), words))
}

/// Where a stored tensor goes: query, key and value are one tensor in these folders; `None` for a name
/// that they do not have, nowhere for a constant.
pub(super) fn targets(stored: &str, shape: &ModelShape) -> Option<Vec<Target>> {
    let whole = |name: String| vec![Target { name, rows: None }];
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
        let target = |(matrix, start, len)| Target {
            name: name(&format!("self_attn.{matrix}.{end}")),
            rows: Some((start, len)),
        };
        return Some(rows.map(target).to_vec());
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
