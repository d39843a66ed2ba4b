//! Token streams for pretraining: documents joined by EOS, cut into rows of one length, cached.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::AsArray;
use arrow::datatypes::{UInt16Type, UInt32Type};
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use runtime::hash::{hash_file, hash_json};

use crate::error::DataError;
use crate::files::{check_metadata, open};
use crate::pack_write::{Packed, TOKENS, write_rows};
use crate::rows::DatasetKind;
use crate::split::{Split, existing_file};
use crate::tokenizer::Tokenizer;

/// Row groups kept in memory.
const CACHED_GROUPS: usize = 8;

/// Rows of `context` tokens, read from a Parquet cache as they are needed.
///
/// Documents follow each other without gaps, each ended by EOS (a document that brings its own
/// gets no second one). The tail that fills no row is dropped.
#[derive(Debug)]
pub struct TokenRows {
    path: PathBuf,
    metadata: ArrowReaderMetadata,
    context: usize,
    /// First row of each row group, and the number of rows at the end.
    group_starts: Vec<usize>,
    num_bytes: u64,
    num_dropped: usize,
    cache: Mutex<VecDeque<(usize, Arc<Group>)>>,
}

/// The rows of one row group.
#[derive(Debug)]
struct Group {
    /// `[rows, context]` token ids.
    tokens: Vec<u32>,
    /// UTF-8 bytes behind all tokens of a row but the first.
    bytes: Vec<u32>,
}

impl TokenRows {
    /// Opens the rows of one part of a text dataset, tokenizing them first unless `cache_dir` has
    /// them already; the cache is keyed by the text file, the tokenizer, the part and `context`.
    ///
    /// # Errors
    /// As [`crate::read`], and texts too short for a single row.
    ///
    /// # Panics
    /// When `context` is below 2: such rows predict nothing.
    pub fn build(
        texts_path: &Path,
        split: Split,
        tokenizer: &Tokenizer,
        context: usize,
        cache_dir: &Path,
    ) -> Result<Self, DataError> {
        assert!(context >= 2, "a row of {context} tokens predicts nothing");
        let file = existing_file(texts_path, DatasetKind::Text, split)?;
        open(&file)?;
        let part = (!texts_path.is_dir()).then_some(split);
        let key = hash_json(&(hash_file(&file)?, tokenizer.hash(), part, context));
        let cached = cache_dir.join(format!("tokens-{}.parquet", &key[..16]));
        if !cached.exists() {
            write_rows(&cached, texts_path, split, tokenizer, context)?;
        }
        Self::open(cached, context)
    }

    fn open(path: PathBuf, context: usize) -> Result<Self, DataError> {
        let file = open(&path)?;
        let broken = |source| DataError::Parquet {
            path: path.clone(),
            source,
        };
        let metadata =
            ArrowReaderMetadata::load(&file, ArrowReaderOptions::new()).map_err(broken)?;
        let entries = metadata.metadata().file_metadata().key_value_metadata();
        check_metadata(&path, TOKENS, entries)?;
        let Some(packed) = Packed::from_metadata(entries) else {
            return Err(DataError::Foreign {
                path,
                reason: "the token cache has no counts in its metadata".to_owned(),
                hint: "delete the file; it is made again",
            });
        };
        let mut group_starts = vec![0];
        for group in metadata.metadata().row_groups() {
            group_starts.push(group_starts[group_starts.len() - 1] + group.num_rows() as usize);
        }
        let (num_bytes, num_dropped) = (packed.bytes, packed.dropped);
        let cache = Mutex::new(VecDeque::new());
        Ok(Self {
            path,
            metadata,
            context,
            group_starts,
            num_bytes,
            num_dropped,
            cache,
        })
    }

    /// Number of rows.
    pub fn num_rows(&self) -> usize {
        self.group_starts.last().copied().unwrap_or(0)
    }

    /// Tokens per row.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Rows of a row group: the window in which an [`crate::Order`] should shuffle.
    pub fn window(&self) -> usize {
        self.group_starts.get(1).copied().unwrap_or(1)
    }

    /// UTF-8 bytes of the text behind all predicted tokens (all of a row but its first), for bits
    /// per byte. Special tokens have no text.
    pub fn num_bytes(&self) -> u64 {
        self.num_bytes
    }

    /// Tokens at the end that filled no row.
    pub fn num_dropped(&self) -> usize {
        self.num_dropped
    }

    /// UTF-8 bytes of the text behind the predicted tokens of these rows.
    ///
    /// # Errors
    /// A cache file that is damaged.
    ///
    /// # Panics
    /// When an index is out of bounds.
    pub fn bytes_of(&self, indices: &[usize]) -> Result<u64, DataError> {
        let of = |&index| {
            let (group, row) = self.locate(index)?;
            Ok(u64::from(group.bytes[row]))
        };
        indices.iter().map(of).sum()
    }

    /// One row of token ids.
    ///
    /// # Errors
    /// A cache file that is damaged.
    ///
    /// # Panics
    /// When the index is out of bounds.
    pub fn row(&self, index: usize) -> Result<Vec<u32>, DataError> {
        let (group, row) = self.locate(index)?;
        Ok(group.tokens[row * self.context..(row + 1) * self.context].to_vec())
    }

    /// Rows of token ids, in the order of the indices.
    ///
    /// # Errors
    /// A cache file that is damaged.
    ///
    /// # Panics
    /// When an index is out of bounds.
    pub fn rows(&self, indices: &[usize]) -> Result<Vec<Vec<u32>>, DataError> {
        indices.iter().map(|&index| self.row(index)).collect()
    }

    /// The row group of a row, and its place there.
    fn locate(&self, index: usize) -> Result<(Arc<Group>, usize), DataError> {
        assert!(
            index < self.num_rows(),
            "row {index} of {}",
            self.num_rows()
        );
        let number = self.group_starts.partition_point(|&start| start <= index) - 1;
        Ok((self.group(number)?, index - self.group_starts[number]))
    }

    /// A row group, from memory if it was used lately.
    fn group(&self, number: usize) -> Result<Arc<Group>, DataError> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = cache.iter().position(|(known, _)| *known == number)
            && let Some(entry) = cache.remove(place)
        {
            let group = entry.1.clone();
            cache.push_front(entry);
            return Ok(group);
        }
        let group = Arc::new(self.read_group(number)?);
        cache.push_front((number, group.clone()));
        cache.truncate(CACHED_GROUPS);
        Ok(group)
    }

    fn read_group(&self, number: usize) -> Result<Group, DataError> {
        let file: File = open(&self.path)?;
        let broken = |source| DataError::Parquet {
            path: self.path.clone(),
            source,
        };
        let rows = self.group_starts[number + 1] - self.group_starts[number];
        let reader =
            ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.metadata.clone())
                .with_row_groups(vec![number])
                .with_batch_size(rows)
                .build()
                .map_err(broken)?;
        let mut group = Group {
            tokens: Vec::new(),
            bytes: Vec::new(),
        };
        for batch in reader {
            let batch = batch.map_err(|source| DataError::Arrow {
                path: self.path.clone(),
                source,
            })?;
            let values = batch.column(0).as_fixed_size_list().values();
            match values.as_primitive_opt::<UInt16Type>() {
                Some(short) => group
                    .tokens
                    .extend(short.values().iter().map(|&id| u32::from(id))),
                None => group
                    .tokens
                    .extend_from_slice(values.as_primitive::<UInt32Type>().values()),
            }
            group
                .bytes
                .extend_from_slice(batch.column(1).as_primitive::<UInt32Type>().values());
        }
        assert_eq!(
            group.tokens.len(),
            rows * self.context,
            "a row group of another shape"
        );
        Ok(group)
    }
}

#[cfg(test)]
#[path = "pack_tests.rs"]
mod tests;
