//! Training and held-out parts of a dataset, and the proof that they share nothing.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use runtime::hash::hash_bytes;
use runtime::seeds::uniform;
use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::files::{Batches, batches};
use crate::rows::{DatasetKind, Message, Row};
use crate::stats::absent_from;

/// Share of a single file's conversations that is held out.
const HELDOUT_OF_A_FILE: f64 = 0.05;
/// Seed of that split: it belongs to the data, not to a run.
const FILE_SEED: u64 = 0;

/// Parts of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// What is learned from.
    Train,
    /// What only evaluation sees.
    Heldout,
}

impl Split {
    pub(crate) fn in_words(self) -> &'static str {
        match self {
            Self::Train => "training",
            Self::Heldout => "held-out",
        }
    }
}

/// The file of a split: `<kind>.parquet` or `<kind>.heldout.parquet` in a folder that an import or
/// label stage made; a file stands for itself.
pub fn dataset_file(dir_or_file: &Path, kind: DatasetKind, split: Split) -> PathBuf {
    if !dir_or_file.is_dir() {
        return dir_or_file.to_owned();
    }
    let stem = kind.file_stem();
    dir_or_file.join(match split {
        Split::Train => format!("{stem}.parquet"),
        Split::Heldout => format!("{stem}.heldout.parquet"),
    })
}

/// All rows of one part of a dataset.
///
/// A folder has a file per part. A single file is split by conversation: 5 % are held out, by a
/// hash of the conversation's id; then held-out rows lose every prompt that training has.
///
/// # Errors
/// As [`crate::read`], and a part without rows.
pub fn load_split<R: Row>(path: &Path, split: Split) -> Result<Vec<R>, DataError> {
    let file = existing_file(path, R::KIND, split)?;
    let rows = crate::read::<R>(&file)?;
    if path.is_dir() {
        return Ok(rows);
    }
    let num_rows = rows.len();
    let [train, heldout] = split_rows(rows, FILE_SEED, HELDOUT_OF_A_FILE)?;
    let part = match split {
        Split::Train => train,
        Split::Heldout => heldout,
    };
    require_rows(path, split, &part, num_rows)?;
    Ok(part)
}

/// The rows of one part, some at a time; for kinds without prompts.
pub(crate) fn split_batches<R: Row>(path: &Path, split: Split) -> Result<Batches<R>, DataError> {
    let all = batches::<R>(&existing_file(path, R::KIND, split)?)?;
    if path.is_dir() {
        return Ok(all);
    }
    let wanted = move |row: &R| part_of(row, FILE_SEED, HELDOUT_OF_A_FILE) == split;
    Ok(Box::new(all.map(move |batch| {
        Ok(batch?.into_iter().filter(wanted).collect())
    })))
}

/// [`dataset_file`], with an error that lists what a folder does hold.
pub(crate) fn existing_file(
    path: &Path,
    kind: DatasetKind,
    split: Split,
) -> Result<PathBuf, DataError> {
    let file = dataset_file(path, kind, split);
    if file.exists() || !path.is_dir() {
        return Ok(file);
    }
    let mut found: Vec<String> = std::fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    found.sort();
    let hint = format!("the folder holds: {}", found.join(", "));
    Err(DataError::Missing { path: file, hint })
}

/// The part of a row: a function of its conversation alone.
pub(crate) fn part_of<R: Row>(row: &R, seed: u64, heldout: f64) -> Split {
    let draw = uniform(seed, "split", conversation_key(row.conversation()), 0);
    if draw < heldout {
        Split::Heldout
    } else {
        Split::Train
    }
}

/// A number that stands for a conversation in counter-based randomness.
pub(crate) fn conversation_key(conversation: &str) -> u64 {
    let hash = hash_bytes(conversation.as_bytes());
    u64::from_str_radix(&hash[..16], 16).unwrap_or_default()
}

/// Splits rows by conversation, then takes from the held-out ones every prompt of training.
pub(crate) fn split_rows<R: Row>(
    rows: Vec<R>,
    seed: u64,
    heldout: f64,
) -> Result<[Vec<R>; 2], DataError> {
    let (train, held): (Vec<R>, Vec<R>) = rows
        .into_iter()
        .partition(|row| part_of(row, seed, heldout) == Split::Train);
    let keys = |rows: &[R]| -> Option<Vec<String>> {
        rows.iter()
            .map(|row| row.prompt().map(normalized_prompt))
            .collect()
    };
    let (Some(train_keys), Some(held_keys)) = (keys(&train), keys(&held)) else {
        return Ok([train, held]);
    };
    let kept: HashSet<usize> = absent_from(&held_keys, &train_keys)?.into_iter().collect();
    let held = held
        .into_iter()
        .enumerate()
        .filter(|(i, _)| kept.contains(i));
    Ok([train, held.map(|(_, row)| row).collect()])
}

pub(crate) fn require_rows<R: Row>(
    path: &Path,
    split: Split,
    part: &[R],
    rows: usize,
) -> Result<(), DataError> {
    if part.is_empty() {
        return Err(DataError::EmptySplit {
            path: path.to_owned(),
            part: split.in_words(),
            kind: R::KIND.file_stem(),
            rows,
        });
    }
    Ok(())
}

/// A prompt up to case and white space; the same for prompts that differ in nothing else.
pub fn normalized_prompt(messages: &[Message]) -> String {
    let mut key = String::new();
    for message in messages {
        key.push_str(&message.role);
        for word in message.content.split_whitespace() {
            key.push(' ');
            key.push_str(&word.to_lowercase());
        }
        key.push('\n');
    }
    key
}

/// Proves that the two parts share no conversation, and no prompt where the rows have one.
///
/// # Errors
/// The first conversation or prompt that is in both.
pub fn assert_disjoint<R: Row>(train: &[R], heldout: &[R]) -> Result<(), DataError> {
    let conversations: HashSet<&str> = train.iter().map(R::conversation).collect();
    if let Some(row) = heldout
        .iter()
        .find(|row| conversations.contains(row.conversation()))
    {
        let value = row.conversation().to_owned();
        return Err(DataError::NotDisjoint {
            what: "conversation",
            value,
        });
    }
    let prompts: HashSet<String> = train
        .iter()
        .filter_map(R::prompt)
        .map(normalized_prompt)
        .collect();
    let mut keys = heldout.iter().filter_map(R::prompt).map(normalized_prompt);
    match keys.find(|key| prompts.contains(key)) {
        Some(value) => Err(DataError::NotDisjoint {
            what: "prompt",
            value: value.trim_end().to_owned(),
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
#[path = "split_tests.rs"]
mod tests;
