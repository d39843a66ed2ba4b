//! The kinds of rows that stages exchange, and what makes a row valid.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::columnar::Columnar;
pub use crate::comparison::{Comparison, Pair, Response};

/// The roles a message may have.
const ROLES: [&str; 3] = ["system", "user", "assistant"];

/// One message of a dialogue.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self {
            role: role.to_owned(),
            content: content.into(),
        }
    }

    /// Whether the assistant says it, so that it is learned.
    pub fn is_assistant(&self) -> bool {
        self.role == "assistant"
    }
}

/// A document for pretraining.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    /// Unique; the part before the first `/` names the conversation or document it belongs to.
    pub id: String,
    /// The document.
    pub text: String,
    /// Where it comes from.
    pub source: String,
}

/// A dialogue whose assistant turns are to be imitated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Demonstration {
    /// As in [`Text`].
    pub id: String,
    /// The dialogue.
    pub messages: Vec<Message>,
}

/// A dialogue that waits for the assistant's next turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    /// As in [`Text`].
    pub id: String,
    /// The dialogue so far.
    pub messages: Vec<Message>,
}

/// The kinds of datasets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DatasetKind {
    /// Rows are [`Text`]s.
    Text,
    /// Rows are [`Demonstration`]s.
    Demonstrations,
    /// Rows are [`Comparison`]s.
    Comparisons,
    /// Rows are [`Prompt`]s.
    Prompts,
}

impl DatasetKind {
    /// Name of the file in a dataset's folder, without extension.
    pub const fn file_stem(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Demonstrations => "demonstrations",
            Self::Comparisons => "comparisons",
            Self::Prompts => "prompts",
        }
    }

    /// The fields of a row, in words.
    pub(crate) const fn fields(self) -> &'static str {
        match self {
            Self::Text => "`id`, `text`, `source`",
            Self::Demonstrations | Self::Prompts => "`id`, `messages` ([{`role`, `content`}])",
            Self::Comparisons => {
                "`id`, `prompt` ([{`role`, `content`}]), `responses` ([{`content`, `rank`?, \
                 `rating`?, `model`?}]), `labeler`?, `pairs`?"
            }
        }
    }
}

impl fmt::Display for DatasetKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.file_stem())
    }
}

/// A row of a dataset.
pub trait Row: Columnar + Clone + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The kind of dataset it belongs to.
    const KIND: DatasetKind;

    /// The row's id.
    fn id(&self) -> &str;

    /// Whether the row makes sense.
    ///
    /// # Errors
    /// What is wrong, naming field and value.
    fn check(&self) -> Result<(), String>;

    /// The messages that a model answers, where evaluation must not have seen them in training.
    fn prompt(&self) -> Option<&[Message]> {
        None
    }

    /// Bytes of text in it.
    fn num_bytes(&self) -> usize;

    /// The conversation (or document) it belongs to: its id up to the first `/`.
    fn conversation(&self) -> &str {
        self.id().split('/').next().unwrap_or_default()
    }
}

impl Row for Text {
    const KIND: DatasetKind = DatasetKind::Text;

    fn id(&self) -> &str {
        &self.id
    }

    fn num_bytes(&self) -> usize {
        self.text.len()
    }

    fn check(&self) -> Result<(), String> {
        check_id(&self.id)?;
        if self.text.is_empty() {
            return Err("`text` is empty".to_owned());
        }
        Ok(())
    }
}

impl Row for Demonstration {
    const KIND: DatasetKind = DatasetKind::Demonstrations;

    fn id(&self) -> &str {
        &self.id
    }

    fn num_bytes(&self) -> usize {
        messages_bytes(&self.messages)
    }

    fn check(&self) -> Result<(), String> {
        check_id(&self.id)?;
        check_messages("messages", &self.messages)
    }
}

impl Row for Prompt {
    const KIND: DatasetKind = DatasetKind::Prompts;

    fn id(&self) -> &str {
        &self.id
    }

    fn num_bytes(&self) -> usize {
        messages_bytes(&self.messages)
    }

    fn check(&self) -> Result<(), String> {
        check_id(&self.id)?;
        check_messages("messages", &self.messages)?;
        check_unanswered("messages", &self.messages)
    }

    fn prompt(&self) -> Option<&[Message]> {
        Some(&self.messages)
    }
}

pub(crate) fn messages_bytes(messages: &[Message]) -> usize {
    messages.iter().map(|message| message.content.len()).sum()
}

pub(crate) fn check_id(id: &str) -> Result<(), String> {
    if id.is_empty() {
        Err("`id` is empty".to_owned())
    } else {
        Ok(())
    }
}

pub(crate) fn check_messages(field: &str, messages: &[Message]) -> Result<(), String> {
    if messages.is_empty() {
        return Err(format!("`{field}` is empty"));
    }
    match messages.iter().find(|m| !ROLES.contains(&m.role.as_str())) {
        Some(message) => Err(format!(
            "`{field}.role` is `{}`, not one of {}",
            message.role,
            ROLES.join(", ")
        )),
        None => Ok(()),
    }
}

pub(crate) fn check_unanswered(field: &str, messages: &[Message]) -> Result<(), String> {
    match messages.last() {
        Some(last) if last.is_assistant() => Err(format!(
            "`{field}` ends with the assistant, so there is nothing to answer"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "rows_tests.rs"]
mod tests;
