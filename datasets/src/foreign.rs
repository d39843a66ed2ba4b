//! Readers of foreign formats.

use std::collections::BTreeMap;
use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::conversation::Conversation;
use crate::error::DataError;
use crate::files::open;
use crate::rows::Text;

/// Bytes of a document made of a text file's paragraphs, at least.
const DOCUMENT_BYTES: usize = 2000;

#[derive(Deserialize)]
struct ChitchatConversation {
    messages: Vec<Vec<ChitchatMessage>>,
}

#[derive(Deserialize)]
struct ChitchatMessage {
    text: String,
    sender: String,
}

/// The conversations of chitchat's `dataset.json`. A turn is everything that one person says
/// before the other speaks, joined by spaces.
pub(crate) fn read_chitchat(path: &Path) -> Result<Vec<Conversation>, DataError> {
    let reader = BufReader::new(open(path)?);
    let read: BTreeMap<String, ChitchatConversation> =
        serde_json::from_reader(reader).map_err(|source| DataError::Foreign {
            path: path.to_owned(),
            reason: source.to_string(),
            hint: "expected dataset.json of the package chitchat-dataset: {id: {\"messages\": \
                   [[{\"text\", \"sender\"}]]}}",
        })?;
    let conversation = |(id, found): (String, ChitchatConversation)| Conversation {
        id,
        source: "chitchat",
        turns: turns(found.messages.into_iter().flatten()),
    };
    Ok(read.into_iter().map(conversation).collect())
}

fn turns(messages: impl Iterator<Item = ChitchatMessage>) -> Vec<String> {
    let mut turns: Vec<String> = Vec::new();
    let mut speaker = None;
    for message in messages.filter(|message| !message.text.trim().is_empty()) {
        match turns.last_mut() {
            Some(turn) if speaker.as_ref() == Some(&message.sender) => {
                turn.push(' ');
                turn.push_str(message.text.trim());
            }
            _ => turns.push(message.text.trim().to_owned()),
        }
        speaker = Some(message.sender);
    }
    turns
}

/// The documents of a text file (paragraphs, gathered up to a length) or of a folder (one
/// document per `.txt` file).
pub(crate) fn read_plain_text(path: &Path) -> Result<Vec<Text>, DataError> {
    let files = if path.is_dir() {
        text_files(path)?
    } else {
        vec![path.to_owned()]
    };
    let mut documents = Vec::new();
    for file in &files {
        let text = fs::read_to_string(file).map_err(|source| DataError::Io {
            path: file.clone(),
            source,
        })?;
        let stem = file
            .file_stem()
            .map(|stem| stem.to_string_lossy().replace('/', "-"));
        let stem = stem.unwrap_or_default();
        if path.is_dir() {
            documents.push((stem, text.trim().to_owned()));
        } else {
            let parts = gather_paragraphs(&text).into_iter().enumerate();
            documents.extend(parts.map(|(i, part)| (format!("{stem}-{i:06}"), part)));
        }
    }
    documents.retain(|(_, text)| !text.is_empty());
    if documents.is_empty() {
        return Err(DataError::Empty {
            path: path.to_owned(),
        });
    }
    let row = |(id, text)| Text {
        id,
        text,
        source: path.display().to_string(),
    };
    Ok(documents.into_iter().map(row).collect())
}

fn text_files(dir: &Path) -> Result<Vec<PathBuf>, DataError> {
    let io = |source| DataError::Io {
        path: dir.to_owned(),
        source,
    };
    let entries = fs::read_dir(dir).map_err(io)?;
    let mut files: Vec<PathBuf> = entries
        .map(|entry| Ok(entry.map_err(io)?.path()))
        .collect::<Result<_, DataError>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    Ok(files)
}

/// Consecutive paragraphs joined until a document has [`DOCUMENT_BYTES`].
fn gather_paragraphs(text: &str) -> Vec<String> {
    let text = text.replace("\r\n", "\n");
    let mut documents: Vec<String> = Vec::new();
    for paragraph in text
        .split("\n\n")
        .map(str::trim)
        .filter(|paragraph| !paragraph.is_empty())
    {
        match documents.last_mut() {
            Some(document) if document.len() < DOCUMENT_BYTES => {
                document.push_str("\n\n");
                document.push_str(paragraph);
            }
            _ => documents.push(paragraph.to_owned()),
        }
    }
    documents
}
