//! Which tokens have a meaning of their own: end, padding, beginning.

use std::path::Path;

use runtime::files::read_json;
use serde_json::{Map, Value};

use crate::tokenizer::SPECIAL_TOKENS;
use crate::tokenizer_error::TokenizerError;

/// Special tokens of a tokenizer.
#[derive(Debug, Clone)]
pub(crate) struct Specials {
    pub eos: (u32, String),
    pub pad: (u32, String),
    pub bos: Option<u32>,
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

/// EOS, padding and BOS by the configuration, or where it is silent by their usual names.
pub(crate) fn resolve_specials(
    path: &Path,
    inner: &tokenizers::Tokenizer,
    config: &Map<String, Value>,
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
    let named = |token: &str| inner.token_to_id(token).map(|id| (id, token.to_owned()));
    let eos = id_of("eos_token")?
        .or_else(|| named(SPECIAL_TOKENS[0]))
        .ok_or_else(|| TokenizerError::NoSpecial {
            path: path.to_owned(),
            key: "eos_token",
        })?;
    let pad = match id_of("pad_token")? {
        Some(pad) if pad.0 != eos.0 => pad,
        _ => fallback_pad(inner, eos.0).ok_or_else(|| TokenizerError::NoSpecial {
            path: path.to_owned(),
            key: "pad_token",
        })?,
    };
    Ok(Specials {
        eos,
        pad,
        bos: id_of("bos_token")?.map(|(id, _)| id),
    })
}

/// `eos_token_id` of a `generation_config.json`: a number or a list; none where there is no such file.
pub(crate) fn end_ids(path: &Path) -> Result<Vec<u32>, TokenizerError> {
    const KEY: &str = "eos_token_id";
    if !path.exists() {
        return Ok(Vec::new());
    }
    let config: Map<String, Value> = read_json(path)?;
    let id = |value: &Value| {
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
        number.ok_or_else(|| TokenizerError::BadIds {
            path: path.to_owned(),
            key: KEY,
            found: value.to_string(),
        })
    };
    match config.get(KEY) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(ids)) => ids.iter().map(id).collect(),
        Some(single) => Ok(vec![id(single)?]),
    }
}

/// A token other than EOS for masked positions: one made for it if possible, else the first.
fn fallback_pad(inner: &tokenizers::Tokenizer, eos: u32) -> Option<(u32, String)> {
    let made_for_it = [
        "<|pad|>",
        "<pad>",
        "[PAD]",
        "<|finetune_right_pad_id|>",
        "<unk>",
    ];
    let by_name = |token: &&str| Some((inner.token_to_id(token)?, (*token).to_owned()));
    let made = made_for_it.iter().find_map(by_name);
    made.filter(|(id, _)| *id != eos).or_else(|| {
        let all = inner.get_vocab(true).into_iter();
        all.map(|(token, id)| (id, token))
            .filter(|(id, _)| *id != eos)
            .min()
    })
}
