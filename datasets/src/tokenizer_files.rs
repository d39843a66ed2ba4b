//! The files of a tokenizer's folder, read and put together.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use runtime::files::{FileError, read_json};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokenizers::normalizers::Precompiled;

use crate::specials::GenerationIds;
use crate::tokenizer_error::TokenizerError;

pub(crate) const JSON_FILE: &str = "tokenizer.json";
pub(crate) const CONFIG_FILE: &str = "tokenizer_config.json";
const GENERATION_FILE: &str = "generation_config.json";
const MODEL_FILE: &str = "config.json";
/// Where old folders keep special tokens.
const SPECIALS_FILE: &str = "special_tokens_map.json";
const TEMPLATE_FILE: &str = "chat_template.jinja";
/// Where further templates lie, each under its name.
const TEMPLATE_DIR: &str = "additional_chat_templates";
/// The template that is used where a folder has several.
const DEFAULT_TEMPLATE: &str = "default";
const TEMPLATE_KEY: &str = "chat_template";

/// What a folder says of its tokenizer.
pub(crate) struct TokenizerFiles {
    /// `tokenizer.json`, where there is one.
    pub json: Option<String>,
    /// `tokenizer_config.json`, with the special tokens and templates of other files.
    pub config: Map<String, Value>,
    /// What `generation_config.json` says of special tokens, or where there is none, what `config.json` says
    /// of EOS.
    pub generation: GenerationIds,
}

impl TokenizerFiles {
    /// Reads them; what `tokenizer_config.json` says of a special token wins over
    /// `special_tokens_map.json`, a template in a file of its own over one in `tokenizer_config.json`.
    pub fn read(dir: &Path) -> Result<Self, TokenizerError> {
        let object = |name: &str| -> Result<Map<String, Value>, TokenizerError> {
            let path = dir.join(name);
            Ok(if path.exists() {
                read_json(&path)?
            } else {
                Map::new()
            })
        };
        let mut config = object(CONFIG_FILE)?;
        for (key, value) in object(SPECIALS_FILE)? {
            if config.get(&key).is_none_or(Value::is_null) {
                config.insert(key, value);
            }
        }
        let mut templates = configured_templates(&dir.join(CONFIG_FILE), &config)?;
        templates.extend(template_files(dir)?);
        match templates.remove(DEFAULT_TEMPLATE) {
            Some(only) if templates.is_empty() => {
                config.insert(TEMPLATE_KEY.to_owned(), Value::String(only));
            }
            Some(default) => {
                templates.insert(DEFAULT_TEMPLATE.to_owned(), default);
                let named = templates.iter();
                let named =
                    named.map(|(name, template)| json!({"name": name, "template": template}));
                config.insert(TEMPLATE_KEY.to_owned(), named.collect());
            }
            None if templates.is_empty() => {
                config.remove(TEMPLATE_KEY);
            }
            None => {
                let names: Vec<String> = templates.into_keys().collect();
                return Err(TokenizerError::NoDefaultTemplate {
                    path: dir.to_owned(),
                    names: names.join(", "),
                });
            }
        }
        let generation = dir.join(GENERATION_FILE);
        Ok(Self {
            json: read_text(&dir.join(JSON_FILE))?,
            generation: if generation.exists() {
                GenerationIds::read(&object(GENERATION_FILE)?, &generation)?
            } else {
                GenerationIds::of_model(&object(MODEL_FILE)?, &dir.join(MODEL_FILE))?
            },
            config,
        })
    }
}

/// The default template of a configuration that [`TokenizerFiles::read`] put together, or of ours.
pub(crate) fn default_template(config: &Map<String, Value>) -> Option<String> {
    let mut templates = configured_templates(Path::new(CONFIG_FILE), config).ok()?;
    templates.remove(DEFAULT_TEMPLATE)
}

/// The templates of a `tokenizer_config.json` by name: one text, or a list of named ones.
fn configured_templates(
    path: &Path,
    config: &Map<String, Value>,
) -> Result<BTreeMap<String, String>, TokenizerError> {
    let malformed = || TokenizerError::BadTemplates { path: path.into() };
    let text = |entry: &Value, key: &str| {
        let text = entry.get(key).and_then(Value::as_str);
        text.map(str::to_owned).ok_or_else(malformed)
    };
    match config.get(TEMPLATE_KEY) {
        None | Some(Value::Null) => Ok(BTreeMap::new()),
        Some(Value::String(only)) => Ok([(DEFAULT_TEMPLATE.to_owned(), only.clone())].into()),
        Some(Value::Array(named)) => named
            .iter()
            .map(|entry| Ok((text(entry, "name")?, text(entry, "template")?)))
            .collect(),
        Some(_) => Err(malformed()),
    }
}

/// The templates that lie in files of their own.
fn template_files(dir: &Path) -> Result<BTreeMap<String, String>, TokenizerError> {
    let mut templates = BTreeMap::new();
    let further = dir.join(TEMPLATE_DIR);
    if further.is_dir() {
        for entry in fs::read_dir(&further).map_err(FileError::io("read", &further))? {
            let path = entry.map_err(FileError::io("read", &further))?.path();
            let is_template = path.extension().is_some_and(|end| end == "jinja");
            if let Some(name) = path.file_stem().filter(|_| is_template) {
                let template = read_text(&path)?.unwrap_or_default();
                templates.insert(name.to_string_lossy().into_owned(), template);
            }
        }
    }
    if let Some(template) = read_text(&dir.join(TEMPLATE_FILE))? {
        templates.insert(DEFAULT_TEMPLATE.to_owned(), template);
    }
    Ok(templates)
}

fn read_text(path: &Path) -> Result<Option<String>, TokenizerError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(TokenizerError::Tokenizers {
            what: path.display().to_string(),
            reason: e.to_string(),
        }),
    }
}

/// What `tokenizers` panics at where it is damaged: a decoder that is no JSON, and `SentencePiece`'s table of
/// normalisations.
#[derive(Deserialize)]
struct Fragile {
    #[serde(default)]
    normalizer: Value,
    #[serde(default, rename = "decoder")]
    _decoder: Value,
}

/// Refuses a `tokenizer.json` at which `tokenizers` would panic.
pub(crate) fn check_json(json: &str) -> Result<(), serde_json::Error> {
    let fragile: Fragile = serde_json::from_str(json)?;
    check_normalizer(&fragile.normalizer)
}

fn check_normalizer(normalizer: &Value) -> Result<(), serde_json::Error> {
    match normalizer["type"].as_str() {
        Some("Precompiled") => {
            // It is read from text alone.
            serde_json::from_str::<Precompiled>(&normalizer.to_string()).map(drop)
        }
        Some("Sequence") => {
            let parts = normalizer["normalizers"].as_array();
            parts.into_iter().flatten().try_for_each(check_normalizer)
        }
        _ => Ok(()),
    }
}
