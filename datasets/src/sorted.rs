//! Texts that need not fit into memory, split and in the order of their hashes: a bucket at a time.
//!
//! Rows are first spread over files by the beginnings of their hashes, then each file is sorted in memory and
//! written behind the one before. So neighbours in the input are no neighbours in the dataset, as training
//! wants it, and the same input gives the same bytes.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::DataError;
use crate::files::{Batches, read, write_batches};
use crate::rows::{DatasetKind, Row, Text};
use crate::split::{Split, conversation_key, dataset_file, part_of};

/// Bytes of a bucket, about: what is sorted in memory.
const BUCKET_BYTES: u64 = 128 << 20;
/// Buckets of a part at most: each is an open file.
const MAX_BUCKETS: u64 = 256;
const FOLDER: &str = "sorting";

/// A part's file, and the bytes of each of its texts.
pub(crate) type Part = (PathBuf, Vec<usize>);

/// Splits texts by a share that is held out, and writes both parts into `out_dir`. `num_bytes` is about the size
/// of all. Returns how many rows were read, and of each part its file and the bytes of each text.
///
/// # Errors
/// What reading the texts says, a part that would be empty, or a disk that is full.
pub(crate) fn write_sorted(
    texts: Batches<Text>,
    num_bytes: u64,
    (seed, heldout): (u64, f64),
    out_dir: &Path,
) -> Result<(u64, [Part; 2]), DataError> {
    let buckets = (num_bytes / BUCKET_BYTES + 1).min(MAX_BUCKETS);
    let scratch = out_dir.join(FOLDER);
    let at = |source| DataError::Io {
        path: scratch.clone(),
        source,
    };
    // What an interrupted import left behind.
    if scratch.exists() {
        fs::remove_dir_all(&scratch).map_err(at)?;
    }
    let mut parts = [Split::Train, Split::Heldout].map(|_| Buckets::new(&scratch, buckets));
    fs::create_dir_all(&scratch).map_err(at)?;
    let mut num_rows = 0;
    for batch in texts {
        for row in batch? {
            let part = part_of(&row, seed, heldout);
            parts[part as usize].push(part, &row).map_err(at)?;
            num_rows += 1;
        }
    }
    let [train, held] = parts;
    let write = |split, part: Buckets| -> Result<Part, DataError> {
        let path = dataset_file(out_dir, DatasetKind::Text, split);
        if part.is_empty() {
            return Err(DataError::EmptySplit {
                path,
                part: split.in_words(),
                kind: DatasetKind::Text.file_stem(),
                rows: num_rows as usize,
            });
        }
        let mut lengths = Vec::new();
        let sorted = part.finish().map_err(at)?.into_iter().map(|file| {
            let mut rows: Vec<Text> = read(&file)?;
            rows.sort_by_cached_key(|row| conversation_key(row.conversation()));
            lengths.extend(rows.iter().map(Row::num_bytes));
            Ok(rows)
        });
        write_batches(&path, sorted)?;
        Ok((path, lengths))
    };
    let written = [write(Split::Train, train)?, write(Split::Heldout, held)?];
    fs::remove_dir_all(&scratch).map_err(at)?;
    Ok((num_rows, written))
}

/// The rows of one part, spread over files.
struct Buckets {
    folder: PathBuf,
    files: Vec<Option<(PathBuf, BufWriter<File>)>>,
}

impl Buckets {
    fn new(folder: &Path, count: u64) -> Self {
        Self {
            folder: folder.to_owned(),
            files: (0..count).map(|_| None).collect(),
        }
    }

    fn push(&mut self, part: Split, row: &Text) -> io::Result<()> {
        let key = u128::from(conversation_key(row.conversation()));
        let bucket = ((key * self.files.len() as u128) >> 64) as usize;
        if self.files[bucket].is_none() {
            let name = format!("{}-{bucket:04}.jsonl", part as usize);
            let path = self.folder.join(name);
            let file = BufWriter::new(File::create(&path)?);
            self.files[bucket] = Some((path, file));
        }
        if let Some((_, file)) = &mut self.files[bucket] {
            serde_json::to_writer(&mut *file, row)?;
            file.write_all(b"\n")?;
        }
        Ok(())
    }

    fn is_empty(&self) -> bool {
        self.files.iter().all(Option::is_none)
    }

    /// The files, by the beginnings of their hashes.
    fn finish(self) -> io::Result<Vec<PathBuf>> {
        let files = self.files.into_iter().flatten();
        files
            .map(|(path, mut file)| file.flush().map(|()| path))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::split::split_rows;

    /// Many buckets and one give what sorting everything in memory gives.
    #[test]
    fn the_number_of_buckets_changes_nothing() {
        let text = |i: usize| Text {
            id: format!("d{i}"),
            text: format!("text {}", i * 7919 % 1000),
            source: "test".to_owned(),
        };
        let mut rows: Vec<Text> = (0..3000).map(text).collect();
        let batches = |rows: &[Text]| -> Batches<Text> {
            let parts: Vec<_> = rows.chunks(100).map(|part| Ok(part.to_vec())).collect();
            Box::new(parts.into_iter())
        };
        let given = rows.clone();
        rows.sort_by_cached_key(|row| conversation_key(row.conversation()));
        let expected = split_rows(rows, 5, 0.1).expect("two parts");
        let dir = tempfile::tempdir().expect("a folder");
        let mut files = Vec::new();
        for (name, bytes) in [("one", 1), ("many", 40 * BUCKET_BYTES)] {
            let out = dir.path().join(name);
            fs::create_dir_all(out.join(FOLDER)).expect("a folder");
            fs::write(out.join(FOLDER).join("left behind"), "").expect("a file");
            let (read_rows, parts) =
                write_sorted(batches(&given), bytes, (5, 0.1), &out).expect("a dataset");
            assert_eq!(read_rows, 3000);
            for ((path, lengths), expected) in parts.iter().zip(&expected) {
                assert!(&read::<Text>(path).expect("rows") == expected);
                let bytes: Vec<usize> = expected.iter().map(Row::num_bytes).collect();
                assert_eq!(*lengths, bytes);
                files.push(fs::read(path).expect("bytes"));
            }
            assert!(!out.join(FOLDER).exists());
        }
        assert!(files[0] == files[2] && files[1] == files[3], "other bytes");
    }
}
