//! Writing the token cache: tokenized in parallel, streamed, never whole in memory.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, RecordBatch, UInt16Array, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::KeyValue;

use crate::error::{DataError, TokenizerError};
use crate::files::{WriteError, write_data, writer_properties};
use crate::parallel;
use crate::rows::Text;
use crate::split::{Split, split_batches};
use crate::tokenizer::Tokenizer;

/// The kind in a cache file's metadata.
pub(crate) const TOKENS: &str = "tokens";
/// Rows of a row group, which is what is read at once.
const GROUP_ROWS: usize = 1024;

const BYTES_KEY: &str = "rlhf.bytes";
const DROPPED_KEY: &str = "rlhf.dropped_tokens";

/// What packing counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Packed {
    /// UTF-8 bytes behind the predicted tokens.
    pub bytes: u64,
    /// Tokens that filled no row.
    pub dropped: usize,
}

impl Packed {
    pub fn from_metadata(entries: Option<&Vec<KeyValue>>) -> Option<Self> {
        let value = |key: &str| {
            entries?
                .iter()
                .find(|entry| entry.key == key)?
                .value
                .as_deref()
        };
        let bytes = value(BYTES_KEY)?.parse().ok()?;
        Some(Self {
            bytes,
            dropped: value(DROPPED_KEY)?.parse().ok()?,
        })
    }
}

/// A token, and the UTF-8 bytes of text behind it.
type Token = (u32, u32);

/// Tokenizes one part of a text dataset into `path`.
pub(crate) fn write_rows(
    path: &Path,
    texts_path: &Path,
    split: Split,
    tokenizer: &Tokenizer,
    context: usize,
) -> Result<(), DataError> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(|source| DataError::Io {
            path: dir.to_owned(),
            source,
        })?;
    }
    write_data(path, |file| {
        pack_into(file, texts_path, split, tokenizer, context)
    })
}

fn pack_into(
    file: &mut BufWriter<File>,
    texts_path: &Path,
    split: Split,
    tokenizer: &Tokenizer,
    context: usize,
) -> Result<(), WriteError> {
    let mut rows = RowWriter::new(file, context, tokenizer.vocab_size())?;
    for batch in split_batches::<Text>(texts_path, split)? {
        let documents = encode_documents(&batch?, tokenizer).map_err(DataError::from)?;
        rows.push(documents)?;
    }
    if rows.num_rows == 0 && rows.pending.len() < context {
        return Err(WriteError::from(DataError::Foreign {
            path: texts_path.to_owned(),
            reason: format!(
                "the {} texts do not fill one row of {context} tokens",
                split.in_words()
            ),
            hint: "give more text, or lower `context`",
        }));
    }
    rows.finish()
}

/// The tokens of documents, each ended by EOS, in parallel.
fn encode_documents(
    texts: &[Text],
    tokenizer: &Tokenizer,
) -> Result<Vec<Vec<Token>>, TokenizerError> {
    parallel::try_map(texts, |row| encode_document(&row.text, tokenizer))
}

/// A document's tokens with the bytes behind each: from where the previous token ended to where
/// this one ends, so that their sum is the document's length, whatever the tokenizer trims.
/// Special tokens count no bytes.
fn encode_document(text: &str, tokenizer: &Tokenizer) -> Result<Vec<Token>, TokenizerError> {
    tokenizer.require_eos()?;
    let (ids, offsets) = tokenizer.encode_with_offsets(text)?;
    let mut tokens = Vec::with_capacity(ids.len() + 1);
    let mut done = 0;
    for (i, (&id, &(_, end))) in ids.iter().zip(&offsets).enumerate() {
        let end = if i + 1 == ids.len() {
            text.len()
        } else {
            end.max(done)
        };
        let bytes = if tokenizer.is_special(id) {
            0
        } else {
            (end - done) as u32
        };
        tokens.push((id, bytes));
        done = end;
    }
    if ids.last() != Some(&tokenizer.eos_id()) {
        tokens.push((tokenizer.eos_id(), 0));
    }
    Ok(tokens)
}

/// Cuts a stream of tokens into rows, and writes a row group whenever one is full.
struct RowWriter<'a> {
    writer: ArrowWriter<&'a mut BufWriter<File>>,
    schema: SchemaRef,
    context: usize,
    is_short: bool,
    pending: Vec<Token>,
    num_rows: usize,
    bytes: u64,
}

impl<'a> RowWriter<'a> {
    fn new(
        file: &'a mut BufWriter<File>,
        context: usize,
        vocab_size: usize,
    ) -> Result<Self, WriteError> {
        let is_short = vocab_size <= usize::from(u16::MAX) + 1;
        let id_type = if is_short {
            DataType::UInt16
        } else {
            DataType::UInt32
        };
        let item = Arc::new(Field::new("item", id_type, false));
        let schema = Arc::new(Schema::new(vec![
            Field::new(
                "tokens",
                DataType::FixedSizeList(item, context as i32),
                false,
            ),
            Field::new("bytes", DataType::UInt32, false),
        ]));
        let properties = writer_properties(TOKENS)
            .set_max_row_group_row_count(Some(GROUP_ROWS))
            .set_dictionary_enabled(false)
            .build();
        let writer = ArrowWriter::try_new(file, schema.clone(), Some(properties))?;
        let pending = Vec::new();
        Ok(Self {
            writer,
            schema,
            context,
            is_short,
            pending,
            num_rows: 0,
            bytes: 0,
        })
    }

    fn push(&mut self, documents: Vec<Vec<Token>>) -> Result<(), WriteError> {
        self.pending.extend(documents.into_iter().flatten());
        while self.pending.len() >= GROUP_ROWS * self.context {
            self.write(GROUP_ROWS)?;
        }
        Ok(())
    }

    /// Writes the first `rows` rows of what is pending.
    fn write(&mut self, rows: usize) -> Result<(), WriteError> {
        let tokens: Vec<Token> = self.pending.drain(..rows * self.context).collect();
        let ids = tokens.iter().map(|&(id, _)| id);
        let ids: ArrayRef = if self.is_short {
            Arc::new(UInt16Array::from_iter_values(ids.map(|id| id as u16)))
        } else {
            Arc::new(UInt32Array::from_iter_values(ids))
        };
        let bytes = tokens
            .chunks(self.context)
            .map(|row| row[1..].iter().map(|&(_, n)| n).sum());
        let bytes = UInt32Array::from_iter_values(bytes);
        self.bytes += bytes.values().iter().map(|&n| u64::from(n)).sum::<u64>();
        self.num_rows += rows;
        let DataType::FixedSizeList(item, _) = self.schema.field(0).data_type() else {
            unreachable!("the schema was made in `new`")
        };
        let lists = FixedSizeListArray::try_new(item.clone(), self.context as i32, ids, None)?;
        let columns: Vec<ArrayRef> = vec![Arc::new(lists), Arc::new(bytes)];
        self.writer
            .write(&RecordBatch::try_new(self.schema.clone(), columns)?)?;
        Ok(())
    }

    /// Writes the rows that are left; the tail that fills none is dropped and counted.
    fn finish(mut self) -> Result<(), WriteError> {
        let rows = self.pending.len() / self.context;
        if rows > 0 {
            self.write(rows)?;
        }
        let packed = [
            (BYTES_KEY, self.bytes),
            (DROPPED_KEY, self.pending.len() as u64),
        ];
        for (key, value) in packed {
            self.writer
                .append_key_value_metadata(KeyValue::new(key.to_owned(), value.to_string()));
        }
        self.writer.close()?;
        Ok(())
    }
}
