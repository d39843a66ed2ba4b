//! Which tokens have a meaning of their own: end, padding, beginning.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::tokenizer_error::TokenizerError;
use crate::tokenizer_train::SPECIAL_TOKENS;

/// Tokens made for padding, by their usual names.
const MADE_FOR_PADDING: [&str; 5] = [
    "<|pad|>",
    "<pad>",
    "[PAD]",
    "<|finetune_right_pad_id|>",
    "<|padding|>",
];

/// A letter that only vocabularies with bytes can write: an Egyptian hieroglyph.
const RARE: &str = "\u{13000}";

/// Special tokens of a tokenizer.
#[derive(Debug, Clone)]
pub(crate) struct Specials {
    /// What ends a turn or document; the published GPT-1 has nothing for it.
    pub eos: Option<(u32, String)>,
    /// What fills masked positions; never EOS.
    pub pad: Pad,
    pub bos: Option<u32>,
    /// What ends a reply: EOS, then what the model's configuration adds.
    pub stop: Vec<u32>,
}

/// A token for masked positions.
#[derive(Debug, Clone)]
pub(crate) enum Pad {
    /// One that no text holds: whoever opens a folder may find a row's end by it.
    Special(u32, String),
    /// One that texts may hold, since there is none of the other kind: what is masked may be anything, but
    /// nothing may be concluded from it.
    Word(u32),
}

impl Pad {
    pub(crate) fn id(&self) -> u32 {
        match self {
            Self::Special(id, _) | Self::Word(id) => *id,
        }
    }
}

/// What a model's configuration says of special tokens.
#[derive(Debug, Clone, Default)]
pub(crate) struct GenerationIds {
    eos: Vec<u32>,
    pad: Option<u32>,
    bos: Option<u32>,
    /// Whether what the vocabulary lacks is passed over.
    may_lack: bool,
}

impl GenerationIds {
    /// Those of a `generation_config.json`. `pad_token_id` and `bos_token_id` may be anything, since old
    /// folders write -1 for none.
    pub fn read(config: &Map<String, Value>, path: &Path) -> Result<Self, TokenizerError> {
        let number = |key| config.get(key).and_then(number);
        Ok(Self {
            eos: end_ids(config, path)?,
            pad: number("pad_token_id"),
            bos: number("bos_token_id"),
            may_lack: false,
        })
    }

    /// EOS of a model's `config.json`. Some families write their default there, whatever the vocabulary.
    pub fn of_model(config: &Map<String, Value>, path: &Path) -> Result<Self, TokenizerError> {
        Ok(Self {
            eos: end_ids(config, path)?,
            may_lack: true,
            ..Self::default()
        })
    }

    /// The tokens that end a reply; those that `inner` lacks are refused or passed over.
    fn ends(&self, inner: &tokenizers::Tokenizer, path: &Path) -> Result<Vec<u32>, TokenizerError> {
        let is_known = |id: &u32| inner.id_to_token(*id).is_some();
        match self.eos.iter().find(|id| !is_known(id)) {
            Some(&id) if !self.may_lack => Err(TokenizerError::UnknownId {
                path: path.with_file_name("generation_config.json"),
                id,
            }),
            _ => Ok(self.eos.iter().copied().filter(is_known).collect()),
        }
    }
}

fn number(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// `eos_token_id`: a number or a list.
fn end_ids(config: &Map<String, Value>, path: &Path) -> Result<Vec<u32>, TokenizerError> {
    const KEY: &str = "eos_token_id";
    let id = |value: &Value| {
        number(value).ok_or_else(|| TokenizerError::BadIds {
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

impl Specials {
    /// Says in the configuration what is used here, so that whoever opens the folder later does the
    /// same. A padding token that texts may hold stays unsaid: transformers would take its text for padding
    /// wherever it stands.
    pub fn write_to(&self, config: &mut Map<String, Value>) {
        let path = Path::new("");
        let mut write = |key: &str, token: &str| {
            if special(path, config, key).ok().flatten().as_deref() != Some(token) {
                config.insert(key.to_owned(), Value::String(token.to_owned()));
            }
        };
        if let Some((_, token)) = &self.eos {
            write("eos_token", token);
        }
        match &self.pad {
            Pad::Special(_, token) => write("pad_token", token),
            Pad::Word(_) => drop(config.remove("pad_token")),
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

/// EOS, padding and BOS by the configuration, or where it is silent by `generation`, or by their usual names.
/// `special_ids` are those of all special tokens, ascending.
pub(crate) fn resolve_specials(
    path: &Path,
    inner: &tokenizers::Tokenizer,
    config: &Map<String, Value>,
    generation: &GenerationIds,
    special_ids: &[u32],
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
    let ends = generation.ends(inner, path)?;
    let numbered = |id: Option<u32>| id.and_then(|id| Some((id, inner.id_to_token(id)?)));
    let named = |token: &str| inner.token_to_id(token).map(|id| (id, token.to_owned()));
    let eos = id_of("eos_token")?
        .or_else(|| numbered(ends.first().copied()))
        .or_else(|| named(SPECIAL_TOKENS[0]));
    let eos_id = eos.as_ref().map(|(id, _)| *id);
    let more = ends.into_iter().filter(|id| Some(*id) != eos_id);
    let stop: Vec<u32> = eos_id.into_iter().chain(more).collect();
    let bos = id_of("bos_token")?.or_else(|| numbered(generation.bos));
    let is_not_eos = |pad: &(u32, String)| Some(pad.0) != eos_id;
    let (id, token) = id_of("pad_token")?
        .filter(is_not_eos)
        .or_else(|| numbered(generation.pad).filter(is_not_eos))
        .or_else(|| fallback_pad(inner, &stop))
        .ok_or_else(|| TokenizerError::NoPad { path: path.into() })?;
    let is_special =
        special_ids.binary_search(&id).is_ok() || MADE_FOR_PADDING.contains(&token.as_str());
    Ok(Specials {
        bos: bos.map(|(id, _)| id),
        eos,
        pad: if is_special && !stands_for_the_unknown(inner, id) {
            Pad::Special(id, token)
        } else {
            Pad::Word(id)
        },
        stop,
    })
}

/// Whether texts become this token where the vocabulary has no other for them (the published GPT-1).
fn stands_for_the_unknown(inner: &tokenizers::Tokenizer, id: u32) -> bool {
    let written = inner.encode_fast(RARE, false);
    written.is_ok_and(|written| written.get_ids().contains(&id))
}

/// A token for masked positions where none is named: one that is made or kept for it if possible, else
/// one that no text has. None of the tokens that end a reply.
fn fallback_pad(inner: &tokenizers::Tokenizer, stop: &[u32]) -> Option<(u32, String)> {
    const KEPT: [&str; 4] = ["pad", "reserved", "unused", "extra"];
    // The byte 0, as byte-level tokenizers and sentencepiece write it.
    const WITHOUT_TEXT: [&str; 3] = ["<unk>", "\u{100}", "<0x00>"];
    let by_name = |token: &str| inner.token_to_id(token).map(|id| (id, token.to_owned()));
    let made = MADE_FOR_PADDING.iter().filter_map(|token| by_name(token));
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
