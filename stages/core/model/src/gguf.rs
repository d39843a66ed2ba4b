//! Models of the Llama family out of GGUF files, which llama.cpp and what is built on it use.
//!
//! Source: ggml's `docs/gguf.md` and llama.cpp's `convert_hf_to_gguf.py` (`LlamaModel`).

use std::path::Path;

use datasets::vocabulary::{Algorithm, Piece, PieceKind, Vocabulary};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::ModelError;
use crate::checkpoint::{Checkpoint, check_vocabulary};
use crate::folder::shape_of;
use crate::read::{Source, Storage, read_weights};
use crate::transformer::Model;
use crate::weights::{Meta, Metadata, Reader};
use recipe::tensors::Head;

/// The frequencies that Llama 3.1 and later divide by; what `config.json` says instead are four numbers.
pub(crate) const FREQUENCIES: &str = "rope_freqs.weight";

impl Checkpoint {
    /// Reads model and tokenizer out of a GGUF file; quantized weights become the numbers that they stand
    /// for.
    ///
    /// # Errors
    /// For a malformed file, another architecture than `llama`, types and tokenizers that are not known,
    /// and tensors that do not fit what the file says of the model.
    pub fn from_gguf(path: &Path, device: Device, kind: Kind) -> Result<Self, ModelError> {
        let reader = Reader::open(path)?;
        let file = File {
            path,
            metadata: reader.metadata(),
        };
        let config = file.config(&reader)?;
        let shape = shape_of(&config, path)?;
        let storage = Storage {
            kind,
            device,
            quantize: None,
        };
        let parameters = read_weights(path, Source::Gguf, &shape, Head::Token, storage)?;
        let model = Model::from_parameters(shape, Head::Token, 0.0, parameters);
        let vocabulary = file.vocabulary()?;
        let tokenizer = vocabulary
            .tokenizer(path)
            .map_err(|error| ModelError::Tokenizer {
                path: path.into(),
                source: error.into(),
            })?;
        check_vocabulary(path, &model, &tokenizer)?;
        Ok(Self {
            model,
            tokenizer,
            manifest: None,
        })
    }
}

/// Hugging Face's name of a tensor; `None` for a name that no Llama has.
pub(crate) fn name_of(stored: &str) -> Option<String> {
    let outside = match stored {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "output.weight" => Some("lm_head.weight"),
        FREQUENCIES => Some(FREQUENCIES),
        _ => None,
    };
    if let Some(name) = outside {
        return Some(name.to_owned());
    }
    let (layer, part) = stored.strip_prefix("blk.")?.split_once('.')?;
    let (part, end) = part.rsplit_once('.')?;
    let part = match part {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{part}.{end}"))
}

/// Undoes what the conversion to GGUF did to the rows of queries and keys: it put the numbers that are rotated
/// together side by side, where Llama's are a half apart. Other tensors stay as they are.
pub(crate) fn restore(tensor: Tensor, name: &str, heads: usize, kv_heads: usize) -> Tensor {
    let heads = if name.contains(".q_proj.") {
        heads
    } else if name.contains(".k_proj.") {
        kv_heads
    } else {
        return tensor;
    };
    let dims = tensor.size();
    let pairs = dims[0] / heads as i64 / 2;
    let apart = tensor.reshape([heads as i64, pairs, 2, -1]).transpose(1, 2);
    apart.reshape(dims)
}

/// A file's words on its model.
struct File<'a> {
    path: &'a Path,
    metadata: &'a Metadata,
}

impl File<'_> {
    /// The `config.json` of the same model.
    fn config(&self, reader: &Reader) -> Result<Value, ModelError> {
        let architecture = self.text("general.architecture")?;
        if architecture != "llama" {
            return Err(self.unsupported(format!(
                "general.architecture is `{architecture}`, and only `llama` is read"
            )));
        }
        let tensors = reader.tensors();
        let rows = tensors
            .get("token_embd.weight")
            .and_then(|dims| dims.first());
        let heads = self.count("llama.attention.head_count")?;
        let mut config = json!({
            "model_type": "llama",
            "vocab_size": rows.copied().unwrap_or(0),
            "max_position_embeddings": self.count("llama.context_length")?,
            "num_hidden_layers": self.count("llama.block_count")?,
            "hidden_size": self.count("llama.embedding_length")?,
            "intermediate_size": self.count("llama.feed_forward_length")?,
            "num_attention_heads": heads,
            "num_key_value_heads": self.count_or("llama.attention.head_count_kv", heads)?,
            "rms_norm_eps": self.number("llama.attention.layer_norm_rms_epsilon", 1e-5)?,
            "rope_theta": self.number("llama.rope.freq_base", 1e4)?,
            "head_dim": self.head_dim()?,
            "tie_word_embeddings": !tensors.contains_key("output.weight"),
            "attention_bias": tensors.contains_key("blk.0.attn_q.bias"),
            "mlp_bias": tensors.contains_key("blk.0.ffn_up.bias"),
        });
        config["rope_scaling"] = self.rope_scaling()?;
        if tensors.contains_key(FREQUENCIES) {
            // The largest divisor is the factor; what else the numbers say is compared when they are read.
            let divisors = reader.read(FREQUENCIES, Kind::Double, Device::Cpu)?;
            config["rope_scaling"] = json!({
                "rope_type": "llama3",
                "factor": divisors.max().double_value(&[]),
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            });
        }
        Ok(config)
    }

    /// The table `rope_scaling` of the same model, as llama.cpp understands the file: without a type,
    /// positions are divided by the factor, which has another name in old files; 0 is none.
    fn rope_scaling(&self) -> Result<Value, ModelError> {
        self.check_rope_keys()?;
        let old = self.number("llama.rope.scale_linear", 0.0)?;
        let factor = self.number("llama.rope.scaling.factor", old)?;
        let kind = match self.metadata.get("llama.rope.scaling.type") {
            None => "linear",
            Some(_) => self.text("llama.rope.scaling.type")?,
        };
        if kind == "none" || factor == 0.0 {
            return Ok(Value::Null);
        }
        let original = "llama.rope.scaling.original_context_length";
        let original = if self.metadata.contains_key(original) {
            json!(self.count(original)?)
        } else {
            Value::Null
        };
        Ok(json!({
            "rope_type": kind,
            "factor": factor,
            "original_max_position_embeddings": original,
        }))
    }

    /// Refuses what would change rotary positions and has no place in [`File::config`].
    fn check_rope_keys(&self) -> Result<(), ModelError> {
        let keys = self.metadata.iter();
        let words = keys.filter_map(|(key, value)| Some((key.strip_prefix("llama.rope.")?, value)));
        for (key, value) in words {
            let says_nothing = match key {
                "freq_base"
                | "scale_linear"
                | "scaling.type"
                | "scaling.factor"
                | "scaling.original_context_length"
                | "scaling.finetuned" => true,
                "scaling.attn_factor" => *value == Meta::Float(1.0),
                "dimension_count" => *value == Meta::Int(self.head_dim()?),
                _ => false,
            };
            if !says_nothing {
                let reason = format!("llama.rope.{key} is {value:?}, which is not computed here");
                return Err(self.unsupported(reason));
            }
        }
        Ok(())
    }

    fn head_dim(&self) -> Result<i64, ModelError> {
        let heads = self.count("llama.attention.head_count")?;
        let usual = self.count("llama.embedding_length")? / heads;
        self.count_or("llama.attention.key_length", usual)
    }

    fn vocabulary(&self) -> Result<Vocabulary, ModelError> {
        let tokens = self.list("tokenizer.ggml.tokens")?;
        let kinds = self.list("tokenizer.ggml.token_type")?;
        let model = self.text("tokenizer.ggml.model")?;
        let algorithm = match model {
            "gpt2" => {
                let merges = self.list("tokenizer.ggml.merges")?.iter();
                let merges = merges.map(|merge| self.as_text(merge, "tokenizer.ggml.merges"));
                Algorithm::ByteLevel {
                    merges: merges.collect::<Result<_, _>>()?,
                    splitter: self.splitter()?.to_owned(),
                }
            }
            "llama" => Algorithm::Sentencepiece {
                space_prefix: self.flag("tokenizer.ggml.add_space_prefix", true),
            },
            other => {
                return Err(self.malformed(&format!(
                    "tokenizer.ggml.model is `{other}` (known: gpt2, llama)"
                )));
            }
        };
        if self.flag("tokenizer.ggml.add_eos_token", false) {
            let reason = "tokenizer.ggml.add_eos_token is true: EOS after every text";
            return Err(self.unsupported(reason.to_owned()));
        }
        let scores = match algorithm {
            Algorithm::Sentencepiece { .. } => self.scores(tokens.len())?,
            Algorithm::ByteLevel { .. } => vec![0.0; tokens.len()],
        };
        let mut pieces = Vec::with_capacity(tokens.len());
        for ((id, token), score) in tokens.iter().enumerate().zip(scores) {
            let kind = match kinds.get(id) {
                Some(Meta::Int(number)) => PieceKind::of(*number),
                _ => None,
            };
            pieces.push(Piece {
                text: self.as_text(token, "tokenizer.ggml.tokens")?,
                kind: kind.ok_or_else(|| {
                    self.malformed("tokenizer.ggml.token_type does not fit its tokens")
                })?,
                score,
            });
        }
        let adds_bos = self.flag("tokenizer.ggml.add_bos_token", model == "llama");
        let id = |key: &str| match self.metadata.get(key) {
            Some(Meta::Int(id)) => usize::try_from(*id).ok().filter(|id| *id < pieces.len()),
            _ => None,
        };
        let named = [
            ("bos_token", id("tokenizer.ggml.bos_token_id")),
            ("eos_token", id("tokenizer.ggml.eos_token_id")),
            ("unk_token", id("tokenizer.ggml.unknown_token_id")),
            ("pad_token", id("tokenizer.ggml.padding_token_id")),
        ];
        let special = named.into_iter().filter_map(|(key, id)| Some((key, id?)));
        Ok(Vocabulary {
            special: special.collect(),
            first: named[0].1.filter(|_| adds_bos),
            template: self.text("tokenizer.chat_template").ok().map(str::to_owned),
            algorithm,
            pieces,
        })
    }

    /// How texts are split before the merges; files from before 2024 do not say it.
    fn splitter(&self) -> Result<&str, ModelError> {
        const KEY: &str = "tokenizer.ggml.pre";
        if !self.metadata.contains_key(KEY) {
            let reason = format!("it does not say `{KEY}`, how texts are split before the merges");
            return Err(self.unsupported(reason));
        }
        self.text(KEY)
    }

    /// A score for each of `len` tokens.
    fn scores(&self, len: usize) -> Result<Vec<f64>, ModelError> {
        let scores = self.list("tokenizer.ggml.scores")?.iter();
        let scores = scores.map(|score| match score {
            Meta::Float(score) => Some(*score),
            _ => None,
        });
        let scores = scores.collect::<Option<Vec<f64>>>();
        let scores = scores.filter(|scores| scores.len() == len);
        scores.ok_or_else(|| self.malformed("tokenizer.ggml.scores does not fit its tokens"))
    }

    /// What llama.cpp knows and this program does not.
    fn unsupported(&self, reason: String) -> ModelError {
        ModelError::Config {
            path: self.path.into(),
            reason,
            hint: "use the model's Hugging Face folder",
        }
    }

    fn malformed(&self, reason: &str) -> ModelError {
        ModelError::Malformed {
            path: self.path.into(),
            reason: reason.to_owned(),
        }
    }

    fn value(&self, key: &str) -> Result<&Meta, ModelError> {
        let value = self.metadata.get(key);
        value.ok_or_else(|| self.malformed(&format!("it does not say `{key}`")))
    }

    fn text(&self, key: &str) -> Result<&str, ModelError> {
        match self.value(key)? {
            Meta::Text(text) => Ok(text),
            other => Err(self.malformed(&format!("`{key}` is {other:?}, expected a text"))),
        }
    }

    fn as_text(&self, value: &Meta, key: &str) -> Result<String, ModelError> {
        match value {
            Meta::Text(text) => Ok(text.clone()),
            other => Err(self.malformed(&format!("`{key}` holds {other:?}, expected texts"))),
        }
    }

    fn list(&self, key: &str) -> Result<&[Meta], ModelError> {
        match self.value(key)? {
            Meta::List(items) => Ok(items),
            other => Err(self.malformed(&format!("`{key}` is {other:?}, expected a list"))),
        }
    }

    fn count(&self, key: &str) -> Result<i64, ModelError> {
        match self.value(key)? {
            Meta::Int(number @ 1..=0x7fff_ffff) => Ok(*number),
            Meta::List(_) => Err(self.malformed(&format!("`{key}` differs from layer to layer"))),
            other => Err(self.malformed(&format!("`{key}` is {other:?}, expected a count"))),
        }
    }

    fn count_or(&self, key: &str, default: i64) -> Result<i64, ModelError> {
        if self.metadata.contains_key(key) {
            return self.count(key);
        }
        Ok(default)
    }

    fn number(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        match self.metadata.get(key) {
            None => Ok(default),
            // f32 in the file: the shortest decimal of it is what was meant.
            Some(Meta::Float(number)) => {
                Ok((*number as f32).to_string().parse().unwrap_or(*number))
            }
            Some(other) => Err(self.malformed(&format!("`{key}` is {other:?}, expected a number"))),
        }
    }

    fn flag(&self, key: &str, default: bool) -> bool {
        match self.metadata.get(key) {
            Some(Meta::Bool(flag)) => *flag,
            _ => default,
        }
    }
}
