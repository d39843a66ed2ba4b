//! Readers of foreign formats.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::conversation::Conversation;
use crate::error::DataError;
use crate::files::{Batches, open};
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
/// document per `.txt` file), some at a time.
pub(crate) fn plain_text_batches(path: &Path) -> Result<Batches<Text>, DataError> {
    let source = path.display().to_string();
    let row = move |(id, text)| Text {
        id,
        text,
        source: source.clone(),
    };
    let documents: Box<dyn Iterator<Item = Result<(String, String), DataError>> + Send> =
        if path.is_dir() {
            let whole = |file: PathBuf| {
                let text = fs::read_to_string(&file).map_err(|source| DataError::Io {
                    path: file.clone(),
                    source,
                })?;
                Ok((stem_of(&file), text.trim().to_owned()))
            };
            Box::new(text_files(path)?.into_iter().map(whole))
        } else {
            let stem = stem_of(path);
            let named = move |(i, text): (usize, Result<String, DataError>)| {
                Ok((format!("{stem}-{i:06}"), text?))
            };
            Box::new(Gathered::open(path)?.enumerate().map(named))
        };
    let is_text = |document: &Result<(String, String), DataError>| !matches!(document, Ok((_, text)) if text.is_empty());
    let mut rows = documents
        .filter(is_text)
        .map(move |document| Ok(vec![row(document?)]));
    match rows.next() {
        None => Err(DataError::Empty {
            path: path.to_owned(),
        }),
        Some(first) => Ok(Box::new(std::iter::once(first).chain(rows))),
    }
}

/// Bytes of what [`plain_text_batches`] reads.
pub(crate) fn plain_text_bytes(path: &Path) -> Result<u64, DataError> {
    let files = if path.is_dir() {
        text_files(path)?
    } else {
        vec![path.to_owned()]
    };
    let bytes = files.iter().filter_map(|file| fs::metadata(file).ok());
    Ok(bytes.map(|metadata| metadata.len()).sum())
}

fn stem_of(file: &Path) -> String {
    let stem = file.file_stem().unwrap_or_default();
    stem.to_string_lossy().replace('/', "-")
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

/// Consecutive paragraphs joined until a document has [`DOCUMENT_BYTES`]. An empty line ends a paragraph.
struct Gathered {
    path: PathBuf,
    lines: Lines<BufReader<File>>,
}

impl Gathered {
    fn open(path: &Path) -> Result<Self, DataError> {
        Ok(Self {
            path: path.to_owned(),
            lines: BufReader::new(open(path)?).lines(),
        })
    }

    /// The next paragraph that is not empty.
    fn paragraph(&mut self) -> Option<io::Result<String>> {
        let mut paragraph = String::new();
        loop {
            match self.lines.next() {
                Some(Ok(line)) if line.is_empty() || line == "\r" => {}
                Some(Ok(line)) => {
                    paragraph.push_str(line.trim_end_matches('\r'));
                    paragraph.push('\n');
                    continue;
                }
                Some(Err(error)) => return Some(Err(error)),
                None if paragraph.trim().is_empty() => return None,
                None => {}
            }
            if !paragraph.trim().is_empty() {
                return Some(Ok(paragraph.trim().to_owned()));
            }
            paragraph.clear();
        }
    }
}

impl Iterator for Gathered {
    type Item = Result<String, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut document = String::new();
        while document.len() < DOCUMENT_BYTES {
            match self.paragraph() {
                Some(Ok(paragraph)) if document.is_empty() => document = paragraph,
                Some(Ok(paragraph)) => {
                    document.push_str("\n\n");
                    document.push_str(&paragraph);
                }
                Some(Err(source)) => {
                    let path = self.path.clone();
                    return Some(Err(DataError::Io { path, source }));
                }
                None => break,
            }
        }
        (!document.is_empty()).then_some(Ok(document))
    }
}
