//! Sentencepiece's `tokenizer.model`: a protobuf with the pieces of a vocabulary.
//!
//! Source: `sentencepiece_model.proto` (google/sentencepiece).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use runtime::files::read_json;
use serde_json::{Map, Value};

use crate::error::TokenizerError;
use crate::vocabulary::{Algorithm, Piece, PieceKind, Vocabulary};

/// The file's name.
const MODEL_FILE: &str = "tokenizer.model";
/// Where old folders keep the tokens that were added to it: texts with their ids.
const ADDED_FILE: &str = "added_tokens.json";

/// The `tokenizer.json` that an old folder has only as a [`MODEL_FILE`]; what that says of special tokens
/// is added to `config`. `None` where there is no such file either.
///
/// # Errors
/// For a file that is no sentencepiece model, or one that is not converted here.
pub(crate) fn json(
    dir: &Path,
    config: &mut Map<String, Value>,
) -> Result<Option<String>, TokenizerError> {
    let path = dir.join(MODEL_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let refuse = |reason: String| TokenizerError::Tokenizers {
        what: path.display().to_string(),
        reason,
    };
    let bytes = fs::read(&path).map_err(|error| refuse(error.to_string()))?;
    let mut vocabulary = vocabulary(&bytes).map_err(refuse)?;
    if config.contains_key("auto_map") {
        let reason = "the folder's tokenizer is a program of its own, which may do more than this file says\n  \
                      hint: put a tokenizer.json with the same ids beside it: AutoTokenizer (trust_remote_code) saves \
                      one where the program has a fast form, which ChatGLM2's and 3's have not"
            .to_owned();
        return Err(refuse(reason));
    }
    if config.get("add_eos_token").and_then(Value::as_bool) == Some(true) {
        let reason = format!("`add_eos_token`: EOS after every text is not converted{HINT}");
        return Err(refuse(reason));
    }
    let old_path = dir.join(ADDED_FILE);
    let old: BTreeMap<String, usize> = if old_path.exists() {
        read_json(&old_path)?
    } else {
        BTreeMap::new()
    };
    add_tokens(&mut vocabulary, config, old).map_err(refuse)?;
    if config.get("add_bos_token").and_then(Value::as_bool) == Some(false) {
        vocabulary.first = None;
    }
    for (key, value) in vocabulary.config() {
        // Python's class for this file would look for the file.
        if key == "tokenizer_class" || config.get(&key).is_none_or(Value::is_null) {
            config.insert(key, value);
        }
    }
    vocabulary.json().map(Some).map_err(refuse)
}

/// `TrainerSpec.ModelType.BPE`.
const BPE: u64 = 2;

/// Appends the tokens of `added_tokens_decoder` (ids with their tokens), and those that `old` folders keep
/// in a file of their own, that the pieces lack.
fn add_tokens(
    vocabulary: &mut Vocabulary,
    config: &Map<String, Value>,
    old: BTreeMap<String, usize>,
) -> Result<(), String> {
    let listed = config
        .get("added_tokens_decoder")
        .and_then(Value::as_object);
    let mut added = BTreeMap::new();
    for (id, token) in listed.into_iter().flatten() {
        let parts = id.parse::<usize>().ok().zip(token["content"].as_str());
        let (id, text) = parts.ok_or("`added_tokens_decoder` is not a list of ids with tokens")?;
        let special = token["special"].as_bool() == Some(true);
        added.insert(id, (text.to_owned(), special));
    }
    for (text, id) in old {
        let special = is_special(config, &text);
        let (listed, _) = added.entry(id).or_insert_with(|| (text.clone(), special));
        if *listed != text {
            return Err(format!("`{listed}` and `{text}` both have id {id}{HINT}"));
        }
    }
    for (id, (text, special)) in added {
        if id < vocabulary.pieces.len() {
            continue;
        }
        if id > vocabulary.pieces.len() {
            let expected = vocabulary.pieces.len();
            return Err(format!("`{text}` has id {id}, expected {expected}{HINT}"));
        }
        vocabulary.pieces.push(Piece {
            text,
            kind: if special {
                PieceKind::Control
            } else {
                PieceKind::UserDefined
            },
            score: 0.0,
        });
    }
    Ok(())
}

/// Whether the configuration names this token as a special one.
fn is_special(config: &Map<String, Value>, text: &str) -> bool {
    let is_text = |value: &Value| value == text || value["content"] == text;
    config.iter().any(|(key, value)| {
        let listed = value
            .as_array()
            .filter(|_| key == "additional_special_tokens");
        let more = listed.is_some_and(|tokens| tokens.iter().any(is_text));
        more || key.ends_with("_token") && is_text(value)
    })
}

const HINT: &str = "\n  hint: open the folder with transformers' AutoTokenizer and save it again \
                    (`save_pretrained`), which writes a tokenizer.json";

/// Reads a file's bytes; words for what is no such protobuf, or a model that is not converted here.
fn vocabulary(bytes: &[u8]) -> Result<Vocabulary, String> {
    let mut pieces = Vec::new();
    let mut spec = Spec::default();
    for field in Fields(bytes) {
        match field? {
            (1, Field::Bytes(piece)) => pieces.push(read_piece(piece)?),
            (2, Field::Bytes(trainer)) => spec.read_trainer(trainer)?,
            (3, Field::Bytes(normalizer)) => spec.read_normalizer(normalizer)?,
            _ => {}
        }
    }
    if pieces.is_empty() {
        return Err("no sentencepiece model".to_owned());
    }
    if spec.model_type != BPE {
        return Err(format!(
            "a sentencepiece model other than BPE is not converted{HINT}"
        ));
    }
    if spec.rewrites {
        return Err(format!(
            "a sentencepiece model that rewrites texts (other than the identity) is not converted{HINT}"
        ));
    }
    let there = |id: Option<u64>| {
        id.and_then(|id| usize::try_from(id).ok())
            .filter(|id| *id < pieces.len())
    };
    let named = [
        ("unk_token", there(spec.unk)),
        ("bos_token", there(spec.bos)),
        ("eos_token", there(spec.eos)),
        ("pad_token", there(spec.pad)),
    ];
    let special = named.into_iter().filter_map(|(key, id)| Some((key, id?)));
    Ok(Vocabulary {
        special: special.collect(),
        first: there(spec.bos),
        pieces,
        algorithm: Algorithm::Sentencepiece {
            space_prefix: spec.space_prefix,
        },
        template: None,
    })
}

/// How a model was trained and what it does to texts; the defaults are the protobuf's.
struct Spec {
    model_type: u64,
    unk: Option<u64>,
    bos: Option<u64>,
    eos: Option<u64>,
    pad: Option<u64>,
    space_prefix: bool,
    rewrites: bool,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            model_type: 1,
            unk: Some(0),
            bos: Some(1),
            eos: Some(2),
            pad: None,
            space_prefix: true,
            // Unless it says otherwise, a model removes spaces.
            rewrites: true,
        }
    }
}

impl Spec {
    fn read_trainer(&mut self, bytes: &[u8]) -> Result<(), String> {
        for field in Fields(bytes) {
            // -1 (no such token) is a huge number here, beyond every vocabulary.
            match field? {
                (3, Field::Number(number)) => self.model_type = number,
                (40, Field::Number(id)) => self.unk = Some(id),
                (41, Field::Number(id)) => self.bos = Some(id),
                (42, Field::Number(id)) => self.eos = Some(id),
                (43, Field::Number(id)) => self.pad = Some(id),
                _ => {}
            }
        }
        Ok(())
    }

    fn read_normalizer(&mut self, bytes: &[u8]) -> Result<(), String> {
        let (mut table, mut removes) = (false, true);
        for field in Fields(bytes) {
            match field? {
                (2, Field::Bytes(charsmap)) => table = !charsmap.is_empty(),
                (3, Field::Number(prefix)) => self.space_prefix = prefix != 0,
                (4, Field::Number(number)) => removes = number != 0,
                _ => {}
            }
        }
        self.rewrites = table || removes;
        Ok(())
    }
}

fn read_piece(bytes: &[u8]) -> Result<Piece, String> {
    let mut piece = Piece {
        text: String::new(),
        kind: PieceKind::Normal,
        score: 0.0,
    };
    for field in Fields(bytes) {
        match field? {
            (1, Field::Bytes(text)) => {
                let text = std::str::from_utf8(text).map_err(|_| "a piece that is not UTF-8")?;
                text.clone_into(&mut piece.text);
            }
            (2, Field::Fixed32(score)) => piece.score = f32::from_le_bytes(score).into(),
            (3, Field::Number(kind)) => {
                let kind = i64::try_from(kind).ok().and_then(PieceKind::of);
                piece.kind = kind.ok_or("a piece of unknown kind")?;
            }
            _ => {}
        }
    }
    Ok(piece)
}

/// A field's value.
enum Field<'a> {
    Number(u64),
    Fixed32([u8; 4]),
    Fixed64,
    Bytes(&'a [u8]),
}

/// The fields of a protobuf message, with their numbers.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Field::Number(self.varint()?),
            1 => self.take(8).map(|_| Field::Fixed64)?,
            2 => {
                let len = usize::try_from(self.varint()?).ok()?;
                Field::Bytes(self.take(len)?)
            }
            5 => Field::Fixed32(self.take(4)?.try_into().ok()?),
            _ => return None,
        };
        Some((tag >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Field<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            // Nothing after it can be understood.
            self.0 = &[];
        }
        Some(field.ok_or_else(|| "no sentencepiece model: it ends early".to_owned()))
    }
}
