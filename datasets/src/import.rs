//! Foreign data to our files: converted, split by conversation, checked, counted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};

use crate::conversation::Conversation;
use crate::error::DataError;
use crate::files::{Batches, batches, read, write};
use crate::foreign::{plain_text_batches, plain_text_bytes, read_chitchat};
use crate::rows::{Comparison, DatasetKind, Demonstration, Prompt, Row, Text};
use crate::sorted::write_sorted;
use crate::split::{
    Split, assert_disjoint, conversation_key, dataset_file, require_rows, split_rows,
};
use crate::stats::Lengths;
use crate::{passkey, synthetic};

/// What can be imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImportFormat {
    /// `dataset.json` of the chitchat dataset (Myers, Etchart and Fulda 2020).
    Chitchat,
    /// JSON Lines, or Parquet, with the fields of that kind.
    Jsonl(DatasetKind),
    /// A text file, or a folder of them.
    PlainText,
    /// Dialogues from a generator of ours; no file is read.
    Synthetic,
    /// Texts that hide a number and ask for it ([`crate::passkey`]); no file is read.
    Passkey,
}

/// Names of the formats in a configuration.
const FORMATS: [(&str, ImportFormat); 8] = [
    ("chitchat", ImportFormat::Chitchat),
    ("texts", ImportFormat::Jsonl(DatasetKind::Text)),
    (
        "demonstrations",
        ImportFormat::Jsonl(DatasetKind::Demonstrations),
    ),
    ("comparisons", ImportFormat::Jsonl(DatasetKind::Comparisons)),
    ("prompts", ImportFormat::Jsonl(DatasetKind::Prompts)),
    ("plain-text", ImportFormat::PlainText),
    ("synthetic", ImportFormat::Synthetic),
    ("passkey", ImportFormat::Passkey),
];
const FORMAT_NAMES: &str =
    "chitchat, texts, demonstrations, comparisons, prompts, plain-text, synthetic, passkey";

impl ImportFormat {
    /// The format of a configuration's word.
    ///
    /// # Errors
    /// A word that names no format.
    pub fn parse(name: &str) -> Result<Self, DataError> {
        let found = FORMATS.iter().find(|(known, _)| *known == name);
        found
            .map(|(_, format)| *format)
            .ok_or_else(|| DataError::Format {
                name: name.to_owned(),
                known: FORMAT_NAMES,
            })
    }

    /// The configuration's word for it.
    pub fn name(self) -> &'static str {
        FORMATS
            .iter()
            .find(|(_, format)| *format == self)
            .map_or("", |(name, _)| name)
    }

    /// Whether the data is generated, and no file read.
    pub fn is_generated(self) -> bool {
        matches!(self, Self::Synthetic | Self::Passkey)
    }

    /// Kinds of files that an import of this format makes.
    pub fn kinds(self) -> &'static [DatasetKind] {
        match self {
            Self::Chitchat | Self::Synthetic => &[
                DatasetKind::Text,
                DatasetKind::Demonstrations,
                DatasetKind::Prompts,
            ],
            Self::PlainText | Self::Passkey | Self::Jsonl(DatasetKind::Text) => {
                &[DatasetKind::Text]
            }
            Self::Jsonl(DatasetKind::Demonstrations) => &[DatasetKind::Demonstrations],
            Self::Jsonl(DatasetKind::Comparisons) => &[DatasetKind::Comparisons],
            Self::Jsonl(DatasetKind::Prompts) => &[DatasetKind::Prompts],
        }
    }
}

/// What to import, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct ImportOptions {
    /// The format.
    pub format: ImportFormat,
    /// The file or folder; `None` for generated data.
    pub path: Option<PathBuf>,
    /// Share of the conversations that is held out, above 0 and below 1.
    pub heldout: f64,
    /// Decides which conversations are held out, and what synthetic speakers say.
    pub seed: u64,
    /// Messages a prompt keeps, counted from its end. An odd number starts with the user.
    pub prompt_turns: usize,
    /// Conversations or documents to generate (generated data only).
    pub conversations: usize,
    /// Sentences of filler in a document at most (passkey only).
    pub sentences: usize,
}

/// What an import did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ImportReport {
    /// Conversations, documents or rows that were read.
    pub read: u64,
    /// How many of them were left out, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Held-out rows that were left out because training has their prompt.
    pub heldout_prompts_removed: u64,
    /// Rows and their lengths in bytes of text, by file name.
    pub files: BTreeMap<String, Lengths>,
}

/// Imports data into `out_dir`, which then holds `<kind>.parquet` and `<kind>.heldout.parquet` for
/// every kind that the format can make. The same input gives the same bytes.
///
/// # Errors
/// An impossible option, malformed input, or a part that would be empty.
pub fn import(options: &ImportOptions, out_dir: &Path) -> Result<ImportReport, DataError> {
    check_options(options)?;
    fs::create_dir_all(out_dir).map_err(|source| DataError::Io {
        path: out_dir.to_owned(),
        source,
    })?;
    let mut importer = Importer {
        options,
        out_dir,
        report: ImportReport::default(),
    };
    match options.format {
        ImportFormat::Chitchat => {
            let conversations = read_chitchat(importer.input()?)?;
            importer.conversations(conversations)?;
        }
        ImportFormat::Synthetic => {
            importer.conversations(synthetic::generate(options.seed, options.conversations))?;
        }
        ImportFormat::Passkey => {
            let documents = options.conversations;
            importer.rows(passkey::generate(
                options.seed,
                documents,
                options.sentences,
            ))?;
        }
        ImportFormat::PlainText => {
            let path = importer.input()?;
            importer.texts(plain_text_batches(path)?, plain_text_bytes(path)?)?;
        }
        ImportFormat::Jsonl(DatasetKind::Text) => {
            let path = importer.input()?;
            let bytes = fs::metadata(path).map_or(0, |metadata| metadata.len());
            importer.texts(batches(path)?, bytes)?;
        }
        ImportFormat::Jsonl(DatasetKind::Demonstrations) => importer.file::<Demonstration>()?,
        ImportFormat::Jsonl(DatasetKind::Comparisons) => importer.file::<Comparison>()?,
        ImportFormat::Jsonl(DatasetKind::Prompts) => importer.file::<Prompt>()?,
    }
    Ok(importer.report)
}

fn check_options(options: &ImportOptions) -> Result<(), DataError> {
    if !(options.heldout > 0.0 && options.heldout < 1.0) {
        return Err(DataError::Option {
            option: "heldout",
            value: options.heldout.to_string(),
            reason: "must be above 0 and below 1",
            hint: "it is the share of conversations that only evaluation sees, for example 0.05",
        });
    }
    if options.prompt_turns == 0 {
        return Err(DataError::Option {
            option: "prompt_turns",
            value: "0".to_owned(),
            reason: "a prompt needs a message",
            hint: "1 keeps the last message only",
        });
    }
    if options.format.is_generated() && options.conversations == 0 {
        return Err(DataError::Option {
            option: "conversations",
            value: "0".to_owned(),
            reason: "nothing would be generated",
            hint: "a few hundred are enough for a test",
        });
    }
    if options.format == ImportFormat::Passkey && options.sentences == 0 {
        return Err(DataError::Option {
            option: "sentences",
            value: "0".to_owned(),
            reason: "nothing would be hidden in nothing",
            hint: "five of them are about twenty-five tokens",
        });
    }
    Ok(())
}

struct Importer<'a> {
    options: &'a ImportOptions,
    out_dir: &'a Path,
    report: ImportReport,
}

impl<'a> Importer<'a> {
    /// The file or folder to be read.
    fn input(&self) -> Result<&'a Path, DataError> {
        let path = self
            .options
            .path
            .as_deref()
            .ok_or_else(|| DataError::Option {
                option: "path",
                value: "(none)".to_owned(),
                reason: "this format reads a file",
                hint: "set `path`, relative to the configuration file",
            })?;
        match fs::metadata(path) {
            Ok(_) => Ok(path),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(DataError::Missing {
                path: path.to_owned(),
                hint: "check `path`; it is relative to the configuration file".to_owned(),
            }),
            Err(source) => Err(DataError::Io {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Rows of a file that has our fields already.
    fn file<R: Row>(&mut self) -> Result<(), DataError> {
        let rows = read::<R>(self.input()?)?;
        self.rows(rows)
    }

    /// Texts, which need not fit into memory.
    fn texts(&mut self, texts: Batches<Text>, num_bytes: u64) -> Result<(), DataError> {
        let how = (self.options.seed, self.options.heldout);
        let (read, parts) = write_sorted(texts, num_bytes, how, self.out_dir)?;
        self.report.read = read;
        for (path, lengths) in parts {
            self.report_file(&path, &lengths)?;
        }
        Ok(())
    }

    fn report_file(&mut self, path: &Path, lengths: &[usize]) -> Result<(), DataError> {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        self.report
            .files
            .insert(name.unwrap_or_default(), Lengths::of(lengths)?);
        Ok(())
    }

    fn rows<R: Row>(&mut self, mut rows: Vec<R>) -> Result<(), DataError> {
        self.report.read = rows.len() as u64;
        rows.sort_by_cached_key(|row| conversation_key(row.conversation()));
        self.save(rows)
    }

    /// Everything that can be made of conversations.
    fn conversations(&mut self, conversations: Vec<Conversation>) -> Result<(), DataError> {
        self.report.read = conversations.len() as u64;
        let mut usable = Vec::with_capacity(conversations.len());
        for conversation in conversations {
            match conversation.flaw() {
                Some(reason) => *self.report.dropped.entry(reason.to_owned()).or_default() += 1,
                None => usable.push(conversation),
            }
        }
        usable.sort_by_cached_key(|conversation| conversation_key(&conversation.id));
        self.save(usable.iter().map(Conversation::text).collect())?;
        self.save(
            usable
                .iter()
                .flat_map(Conversation::demonstrations)
                .collect(),
        )?;
        let turns = self.options.prompt_turns;
        self.save(
            usable
                .iter()
                .flat_map(|conversation| conversation.prompts(turns))
                .collect(),
        )
    }

    /// Splits rows, proves the parts disjoint, and writes them.
    fn save<R: Row>(&mut self, rows: Vec<R>) -> Result<(), DataError> {
        let num_rows = rows.len();
        let [train, heldout] = split_rows(rows, self.options.seed, self.options.heldout)?;
        self.report.heldout_prompts_removed += (num_rows - train.len() - heldout.len()) as u64;
        assert_disjoint(&train, &heldout)?;
        for (split, part) in [(Split::Train, train), (Split::Heldout, heldout)] {
            let path = dataset_file(self.out_dir, R::KIND, split);
            require_rows(&path, split, &part, num_rows)?;
            write(&path, &part)?;
            let lengths: Vec<usize> = part.iter().map(Row::num_bytes).collect();
            self.report_file(&path, &lengths)?;
        }
        Ok(())
    }
}
