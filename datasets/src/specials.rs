//! Which tokens have a meaning of their own: end, padding, beginning.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::tokenizer::SPECIAL_TOKENS;
use crate::tokenizer_error::TokenizerError;

/// Special tokens of a tokenizer.
#[derive(Debug, Clone)]
pub(crate) struct Specials {
    pub eos: (u32, String),
    pub pad: (u32, String),
    pub bos: Option<u32>,
    /// What ends a reply: EOS, then what `generation_config.json` adds.
    pub stop: Vec<u32>,
}

/// What a `generation_config.json` says of special tokens.
#[derive(Debug, Clone, Default)]
pub(crate) struct GenerationIds {
    eos: Vec<u32>,
    pad: Option<u32>,
    bos: Option<u32>,
}

impl GenerationIds {
    /// `eos_token_id` is a number or a list; `pad_token_id` and `bos_token_id` may be anything, since
    /// old folders write -1 for none.
    pub fn read(config: &Map<String, Value>, path: &Path) -> Result<Self, TokenizerError> {
        const KEY: &str = "eos_token_id";
        let number = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let id = |value: &Value| {
            number(value).ok_or_else(|| TokenizerError::BadIds {
                path: path.to_owned(),
                key: KEY,
                found: value.to_string(),
            })
        };
        Ok(Self {
            eos: match config.get(KEY) {
                None | Some(Value::Null) => Vec::new(),
                Some(Value::Array(ids)) => ids.iter().map(id).collect::<Result<_, _>>()?,
                Some(single) => vec![id(single)?],
            },
            pad: config.get("pad_token_id").and_then(number),
            bos: config.get("bos_token_id").and_then(number),
        })
    }
}

impl Specials {
    /// Says in the configuration what is used here, so that whoever opens the folder later does the
    /// same. A padding token that is none of the special tokens `special_ids` stays unsaid: transformers
    /// would take its text for padding wherever it stands.
    pub fn write_to(&self, config: &mut Map<String, Value>, special_ids: &[u32]) {
        let path = Path::new("");
        let mut write = |key: &str, token: &str| {
            if special(path, config, key).ok().flatten().as_deref() != Some(token) {
                config.insert(key.to_owned(), Value::String(token.to_owned()));
            }
        };
        write("eos_token", &self.eos.1);
        if special_ids.binary_search(&self.pad.0).is_ok() {
            write("pad_token", &self.pad.1);
        } else {
            config.remove("pad_token");
        }
    }
}

/// The tokens that a chat template may name: `bos_token`, `eos_token` and the like, and those that the
/// folder names itself.
pub(crate) fn template_variables(config: &Map<String, Value>) -> BTreeMap<String, String> {
    let named = |config: &Map<String, Value>, key: &str| {
        let token = special(Path::new(""), config, key).ok().flatten();
        token.map(|token| (key.to_owned(), token))
    };
    let usual = config.keys().filter(|key| key.ends_with("_token"));
    let mut variables: BTreeMap<_, _> = usual.filter_map(|key| named(config, key)).collect();
    let own = config
        .get("extra_special_tokens")
        .and_then(Value::as_object);
    if let Some(own) = own {
        variables.extend(own.keys().filter_map(|key| named(own, key)));
    }
    variables
}

/// A special token of the configuration: a string, or an object with `content`.
pub(crate) fn special(
    path: &Path,
    config: &Map<String, Value>,
    key: &str,
) -> Result<Option<String>, TokenizerError> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(token)) => Ok(Some(token.clone())),
        Some(other) => match other.get("content").and_then(Value::as_str) {
            Some(token) => Ok(Some(token.to_owned())),
            None => Err(TokenizerError::BadSpecial {
                path: path.to_owned(),
                key: key.to_owned(),
            }),
        },
    }
}

/// EOS, padding and BOS by the configuration, or where it is silent by `generation_config.json`, or by
/// their usual names.
pub(crate) fn resolve_specials(
    path: &Path,
    inner: &tokenizers::Tokenizer,
    config: &Map<String, Value>,
    generation: &GenerationIds,
) -> Result<Specials, TokenizerError> {
    let id_of = |key: &'static str| -> Result<Option<(u32, String)>, TokenizerError> {
        let Some(token) = special(path, config, key)? else {
            return Ok(None);
        };
        match inner.token_to_id(&token) {
            Some(id) => Ok(Some((id, token))),
            None => Err(TokenizerError::UnknownSpecial {
                path: path.to_owned(),
                key,
                token,
            }),
        }
    };
    let unknown = |id: &&u32| inner.id_to_token(**id).is_none();
    if let Some(&id) = generation.eos.iter().find(unknown) {
        let path = path.with_file_name("generation_config.json");
        return Err(TokenizerError::UnknownId { path, id });
    }
    let numbered = |id: Option<u32>| id.and_then(|id| Some((id, inner.id_to_token(id)?)));
    let named = |token: &str| inner.token_to_id(token).map(|id| (id, token.to_owned()));
    let missing = |key| TokenizerError::NoSpecial {
        path: path.to_owned(),
        key,
    };
    let eos = id_of("eos_token")?
        .or_else(|| numbered(generation.eos.first().copied()))
        .or_else(|| named(SPECIAL_TOKENS[0]))
        .ok_or_else(|| missing("eos_token"))?;
    let mut stop = vec![eos.0];
    stop.extend(generation.eos.iter().filter(|id| **id != eos.0));
    let bos = id_of("bos_token")?.or_else(|| numbered(generation.bos));
    let is_not_eos = |pad: &(u32, String)| pad.0 != eos.0;
    let pad = id_of("pad_token")?
        .filter(is_not_eos)
        .or_else(|| numbered(generation.pad).filter(is_not_eos))
        .or_else(|| fallback_pad(inner, &stop))
        .ok_or_else(|| missing("pad_token"))?;
    Ok(Specials {
        bos: bos.map(|(id, _)| id),
        eos,
        pad,
        stop,
    })
}

/// A token for masked positions where none is named: one that is made or kept for it if possible, else
/// one that no text has. None of the tokens that end a reply.
fn fallback_pad(inner: &tokenizers::Tokenizer, stop: &[u32]) -> Option<(u32, String)> {
    const MADE_FOR_IT: [&str; 4] = ["<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>"];
    const KEPT: [&str; 4] = ["pad", "reserved", "unused", "extra"];
    // The byte 0, as byte-level tokenizers and sentencepiece write it.
    const WITHOUT_TEXT: [&str; 3] = ["<unk>", "\u{100}", "<0x00>"];
    let by_name = |token: &str| inner.token_to_id(token).map(|id| (id, token.to_owned()));
    let made = MADE_FOR_IT.iter().filter_map(|token| by_name(token));
    let mut kept: Vec<(u32, String)> = inner
        .get_added_tokens_decoder()
        .into_iter()
        .filter(|(_, token)| token.special && KEPT.iter().any(|word| token.content.contains(word)))
        .map(|(id, token)| (id, token.content))
        .collect();
    kept.sort();
    let without_text = WITHOUT_TEXT.iter().filter_map(|token| by_name(token));
    let mut all = made.chain(kept).chain(without_text);
    all.find(|(id, _)| !stop.contains(id))
}
