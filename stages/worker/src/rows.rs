//! The rows of `--data` files: whatever of `input_ids`, `text`, `prompt`, `completion` and `messages`
//! they have.

use std::path::Path;

use anyhow::{Context, Result, bail};
use datasets::{Message, Tokenizer};
use serde_json::{Map, Value};

/// One row, with the place that errors name.
pub struct Row {
    fields: Map<String, Value>,
    place: String,
}

/// Reads JSON lines or Parquet.
pub fn read(path: &Path) -> Result<Vec<Row>> {
    let rows = datasets::json_rows(path)?;
    let place = |index: usize| format!("{}: row {}", path.display(), index + 1);
    Ok(rows
        .into_iter()
        .enumerate()
        .map(|(index, fields)| Row {
            fields,
            place: place(index),
        })
        .collect())
}

impl Row {
    /// Tokens to be scored. `input_ids` are taken as they are; the tokenizer adds its special tokens to
    /// `text` and `prompt`; a template adds its own.
    pub fn ids_to_score(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        if let Some(ids) = self.input_ids()? {
            return Ok(ids);
        }
        if let Some(text) = self.text("text")? {
            return Ok(tokenizer.encode_with_special(text)?);
        }
        if let Some(prompt) = self.text("prompt")? {
            let Some(completion) = self.text("completion")? else {
                bail!(
                    "{}: has `prompt` and no `completion`\n  hint: add `completion`, or say `text`",
                    self.place
                );
            };
            let mut ids = tokenizer.encode_with_special(prompt)?;
            ids.extend(tokenizer.encode(completion)?);
            return Ok(ids);
        }
        if let Some(messages) = self.messages()? {
            return Ok(tokenizer.encode(&tokenizer.render(&messages, false)?)?);
        }
        bail!(
            "{}: none of `input_ids`, `text`, `prompt`, `messages` is there\n  \
             hint: give each row one of them",
            self.place
        )
    }

    /// Tokens to be continued. A `prompt` is raw; `messages` go through the template, with its
    /// generation prompt.
    pub fn ids_to_continue(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        if let Some(ids) = self.input_ids()? {
            return Ok(ids);
        }
        if let Some(prompt) = self.text("prompt")? {
            return Ok(tokenizer.encode_with_special(prompt)?);
        }
        if let Some(messages) = self.messages()? {
            return Ok(tokenizer.encode_prompt(&messages)?);
        }
        bail!(
            "{}: none of `input_ids`, `prompt`, `messages` is there\n  \
             hint: give each row one of them",
            self.place
        )
    }

    fn input_ids(&self) -> Result<Option<Vec<u32>>> {
        self.field("input_ids", "a list of token ids")
    }

    fn messages(&self) -> Result<Option<Vec<Message>>> {
        self.field("messages", "a list of {role, content}")
    }

    fn text(&self, name: &str) -> Result<Option<&str>> {
        match self.fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => bail!("{}: `{name}` must be a string, is {other}", self.place),
        }
    }

    fn field<T: serde::de::DeserializeOwned>(&self, name: &str, what: &str) -> Result<Option<T>> {
        match self.fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value.clone())
                .map(Some)
                .with_context(|| format!("{}: `{name}` must be {what}", self.place)),
        }
    }
}
