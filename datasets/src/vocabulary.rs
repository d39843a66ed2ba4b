//! Tokenizers from the lists of pieces that GGUF and sentencepiece files hold.
//!
//! Source: ggml's `docs/gguf.md` and llama.cpp's `llama-vocab.cpp` (how texts are split before the
//! merges); transformers' `convert_slow_tokenizer.py` (`generate_merges`, `LlamaConverter`).

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::TokenizerError;
use crate::specials::GenerationIds;
use crate::tokenizer::Tokenizer;

/// What a piece is for; both formats count them like this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PieceKind {
    /// A piece of text.
    Normal,
    /// What stands for text that no piece covers.
    Unknown,
    /// A special token.
    Control,
    /// A word that is never taken apart.
    UserDefined,
    /// A number without a meaning.
    Unused,
    /// A byte, written `<0x0A>`.
    Byte,
}

impl PieceKind {
    /// The kind of a number in the file.
    pub fn of(number: i64) -> Option<Self> {
        Some(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

/// A token.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// Its text, as the file writes it.
    pub text: String,
    /// What it is for.
    pub kind: PieceKind,
    /// The higher, the earlier it is merged (sentencepiece).
    pub score: f64,
}

/// How a text becomes pieces.
#[derive(Debug, Clone, PartialEq)]
pub enum Algorithm {
    /// Byte-level BPE (GPT-2): merges in their order, and the name of what splits a text before them.
    ByteLevel {
        /// `left right`, the most frequent first.
        merges: Vec<String>,
        /// llama.cpp's name.
        splitter: String,
    },
    /// BPE over characters, bytes for what is left (sentencepiece; Llama 2).
    Sentencepiece {
        /// A space before the text.
        space_prefix: bool,
    },
}

/// All that makes a tokenizer; a token's id is its place among the pieces.
#[derive(Debug, Clone, PartialEq)]
pub struct Vocabulary {
    /// The tokens.
    pub pieces: Vec<Piece>,
    /// How a text becomes pieces.
    pub algorithm: Algorithm,
    /// Keys of `tokenizer_config.json` (`eos_token`, …) with the ids of their tokens.
    pub special: Vec<(&'static str, usize)>,
    /// The first token of every text.
    pub first: Option<usize>,
    /// The chat template.
    pub template: Option<String>,
}

/// Llama 3's and Qwen's ways to split a text differ in how many digits stay together.
const LLAMA3_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Vocabulary {
    /// The tokenizer of these pieces; `path` is where they come from.
    ///
    /// # Errors
    /// A text splitter that is not known, ids beyond the pieces, and what [`Tokenizer::load`] refuses.
    pub fn tokenizer(&self, path: &Path) -> Result<Tokenizer, TokenizerError> {
        let refuse = |reason| TokenizerError::Tokenizers {
            what: path.display().to_string(),
            reason,
        };
        let json = self.json().map_err(refuse)?;
        Tokenizer::of(path, json, self.config(), &GenerationIds::default())
    }

    /// What `tokenizer_config.json` says of these pieces.
    pub(crate) fn config(&self) -> Map<String, Value> {
        let special = self.special.iter();
        let mut config: Map<String, Value> = special
            .filter_map(|(key, id)| Some(((*key).to_owned(), json!(self.pieces.get(*id)?.text))))
            .collect();
        if let Some(template) = &self.template {
            config.insert("chat_template".to_owned(), json!(template));
        }
        config.insert(
            "tokenizer_class".to_owned(),
            json!("PreTrainedTokenizerFast"),
        );
        config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
        config
    }

    /// The `tokenizer.json` of these pieces.
    pub(crate) fn json(&self) -> Result<String, String> {
        let mut json = match &self.algorithm {
            Algorithm::ByteLevel { merges, splitter } => byte_level(merges, splitter)?,
            Algorithm::Sentencepiece { space_prefix } => self.sentencepiece(*space_prefix),
        };
        let ids = self.pieces.iter().enumerate();
        let vocab: Map<String, Value> = ids
            .map(|(id, piece)| (piece.text.clone(), json!(id)))
            .collect();
        if vocab.len() < self.pieces.len() {
            return Err("two tokens have the same text".to_owned());
        }
        json["model"]["vocab"] = Value::Object(vocab);
        json["version"] = json!("1.0");
        json["added_tokens"] = self.added_tokens();
        if let Some(first) = self.first {
            let token = self.pieces.get(first);
            let token = token.ok_or_else(|| format!("its first token {first} is none"))?;
            let token = &token.text;
            let sequence =
                |id: &str, type_id: u32| json!({ "Sequence": { "id": id, "type_id": type_id } });
            json["post_processor"] = json!({
                "type": "TemplateProcessing",
                "single": [{ "SpecialToken": { "id": token, "type_id": 0 } }, sequence("A", 0)],
                "pair": [sequence("A", 0), sequence("B", 1)],
                "special_tokens": { token: { "id": token, "ids": [first], "tokens": [token] } },
            });
        }
        Ok(json.to_string())
    }

    /// The tokens that are found in a text before anything else.
    fn added_tokens(&self) -> Value {
        let added = self.pieces.iter().enumerate().filter_map(|(id, piece)| {
            let special = match piece.kind {
                PieceKind::Control | PieceKind::Unknown => true,
                PieceKind::UserDefined => false,
                _ => return None,
            };
            Some(json!({
                "id": id, "content": piece.text, "special": special,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            }))
        });
        added.collect()
    }

    fn sentencepiece(&self, space_prefix: bool) -> Value {
        let unknown = self.pieces.iter().find(|p| p.kind == PieceKind::Unknown);
        let spaces = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
        let prefix = json!({ "type": "Prepend", "prepend": "▁" });
        let mut normalizers = vec![spaces];
        let mut decoders = vec![
            json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
        ];
        if space_prefix {
            normalizers.insert(0, prefix);
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        json!({
            "normalizer": { "type": "Sequence", "normalizers": normalizers },
            "decoder": { "type": "Sequence", "decoders": decoders },
            "model": {
                "type": "BPE", "unk_token": unknown.map(|piece| &piece.text), "fuse_unk": true,
                "byte_fallback": self.pieces.iter().any(|piece| piece.kind == PieceKind::Byte),
                "merges": self.merges(),
            },
        })
    }

    /// Every way to put a piece together of two others, the highest score first.
    fn merges(&self) -> Vec<[&str; 2]> {
        let pieces = self.pieces.iter().enumerate();
        let ids: HashMap<&str, usize> = pieces.map(|(id, piece)| (&*piece.text, id)).collect();
        let mut merges = Vec::new();
        for piece in &self.pieces {
            let cuts = piece.text.char_indices().skip(1);
            let mut ways: Vec<_> = cuts
                .filter_map(|(at, _)| {
                    let (left, right) = piece.text.split_at(at);
                    Some((*ids.get(left)?, *ids.get(right)?, left, right))
                })
                .collect();
            ways.sort_unstable();
            merges.extend(
                ways.into_iter()
                    .map(|(_, _, left, right)| (piece.score, left, right)),
            );
        }
        let key = |(score, left, right): &(f64, &str, &str)| {
            (*score, left.chars().count(), right.chars().count())
        };
        merges.sort_by(|a, b| {
            let (a, b) = (key(a), key(b));
            b.0.total_cmp(&a.0).then((b.1, b.2).cmp(&(a.1, a.2)))
        });
        let pair = |(_, left, right)| [left, right];
        merges.into_iter().map(pair).collect()
    }
}

/// A `tokenizer.json` of byte-level BPE, without its vocabulary.
fn byte_level(merges: &[String], splitter: &str) -> Result<Value, String> {
    let bytes = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
    let words = |pattern: &str| {
        json!({ "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false },
            bytes(false),
        ] })
    };
    let digits = json!({ "type": "Sequence", "pretokenizers": [
        { "type": "Digits", "individual_digits": true }, bytes(true),
    ] });
    let (before, normalizer) = match splitter {
        "gpt-2" => (bytes(true), Value::Null),
        "smollm" => (digits, Value::Null),
        "llama-bpe" => (words(LLAMA3_WORDS), Value::Null),
        "qwen2" => (words(QWEN2_WORDS), json!({ "type": "NFC" })),
        other => {
            return Err(format!(
                "texts are split by `{other}` before the merges (known: gpt-2, smollm, llama-bpe, qwen2)\n  \
                 hint: use the model's folder from where it was made, not its GGUF"
            ));
        }
    };
    Ok(json!({
        "normalizer": normalizer,
        "pre_tokenizer": before,
        "decoder": bytes(true),
        "model": {
            "type": "BPE", "merges": merges, "byte_fallback": false, "fuse_unk": false,
            "ignore_merges": splitter == "llama-bpe",
        },
    }))
}
