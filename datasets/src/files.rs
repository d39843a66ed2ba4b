//! Reading and writing datasets: Parquet (versioned, validated) and JSON Lines with the same fields.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter};
use std::path::{Path, PathBuf};

use arrow::error::ArrowError;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{WriterProperties, WriterPropertiesBuilder};
use runtime::files::write_whole;

use crate::columnar::Columns;
use crate::error::DataError;
use crate::rows::Row;

/// Version of the schemas, in each file's metadata.
pub const SCHEMA_VERSION: u32 = 1;
const VERSION_KEY: &str = "rlhf.schema_version";
const KIND_KEY: &str = "rlhf.kind";
/// Rows decoded or encoded at once.
const BATCH_ROWS: usize = 1024;

/// Rows of a file, some at a time, each checked.
pub type Batches<R> = Box<dyn Iterator<Item = Result<Vec<R>, DataError>> + Send>;

/// All rows of a `.parquet` or `.jsonl` file.
///
/// # Errors
/// A missing or truncated file, a missing column or field, no rows at all, or a row that
/// [`Row::check`] refuses; each names the file and the place.
pub fn read<R: Row>(path: &Path) -> Result<Vec<R>, DataError> {
    let mut rows = Vec::new();
    for batch in batches(path)? {
        rows.append(&mut batch?);
    }
    Ok(rows)
}

/// The rows of a file in batches, so that it need not fit into memory.
///
/// # Errors
/// As [`read`]; what lies deeper in the file comes as an item.
pub fn batches<R: Row>(path: &Path) -> Result<Batches<R>, DataError> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("parquet") => parquet_batches(path),
        Some("jsonl") => line_batches(path),
        other => Err(DataError::Extension {
            path: path.to_owned(),
            extension: other.unwrap_or_default().to_owned(),
        }),
    }
}

/// Writes rows as Parquet: whole or not at all, the same bytes for the same rows.
///
/// # Errors
/// No rows, a row that [`Row::check`] refuses, or a disk that is full.
pub fn write<R: Row>(path: &Path, rows: &[R]) -> Result<(), DataError> {
    if rows.is_empty() {
        return Err(DataError::Empty {
            path: path.to_owned(),
        });
    }
    let mut rows = rows.chunks(BATCH_ROWS).map(|rows| Ok(rows.to_vec()));
    write_batches(path, &mut rows)
}

/// The same of rows that come some at a time; how many at a time changes no byte.
///
/// # Errors
/// As [`write`], and what `batches` says.
pub(crate) fn write_batches<R: Row>(
    path: &Path,
    batches: impl Iterator<Item = Result<Vec<R>, DataError>>,
) -> Result<(), DataError> {
    write_data(path, |file| {
        let mut pending: Vec<R> = Vec::new();
        let mut writer = RowsWriter::<R>::new(path, file)?;
        for batch in batches {
            pending.append(&mut batch?);
            while pending.len() >= BATCH_ROWS {
                let rest = pending.split_off(BATCH_ROWS);
                writer.push(&std::mem::replace(&mut pending, rest))?;
            }
        }
        writer.push(&pending)?;
        writer.writer.close()?;
        Ok(())
    })
}

/// What can go wrong while a file of data is being written.
pub(crate) enum WriteError {
    /// With the file: `write_whole` reports it.
    Io(io::Error),
    /// With the data.
    Data(Box<DataError>),
}

impl From<DataError> for WriteError {
    fn from(error: DataError) -> Self {
        Self::Data(Box::new(error))
    }
}

impl From<ParquetError> for WriteError {
    fn from(error: ParquetError) -> Self {
        Self::Io(io::Error::other(error))
    }
}

impl From<ArrowError> for WriteError {
    fn from(error: ArrowError) -> Self {
        Self::Io(io::Error::other(error))
    }
}

/// [`write_whole`] of data that may itself be wrong.
pub(crate) fn write_data(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<(), WriteError>,
) -> Result<(), DataError> {
    // `write_whole` knows only I/O errors; an error in the data waits here.
    let mut failure = None;
    let written = write_whole(path, |file| {
        write(file).map_err(|error| match error {
            WriteError::Io(error) => error,
            WriteError::Data(error) => {
                failure = Some(*error);
                io::Error::other("the data cannot be written")
            }
        })
    });
    match failure {
        Some(error) => Err(error),
        None => Ok(written?),
    }
}

/// Rows of a row group at most: a reader holds no more of a text dataset than this.
const GROUP_ROWS: usize = 1 << 16;

struct RowsWriter<'a, R> {
    path: &'a Path,
    writer: ArrowWriter<&'a mut BufWriter<File>>,
    num_rows: usize,
    rows: std::marker::PhantomData<fn() -> R>,
}

impl<'a, R: Row> RowsWriter<'a, R> {
    fn new(path: &'a Path, file: &'a mut BufWriter<File>) -> Result<Self, WriteError> {
        let properties = writer_properties(R::KIND.file_stem())
            .set_max_row_group_row_count(Some(GROUP_ROWS))
            .build();
        let schema = R::encode(&[])?.schema();
        Ok(Self {
            path,
            writer: ArrowWriter::try_new(file, schema, Some(properties))?,
            num_rows: 0,
            rows: std::marker::PhantomData,
        })
    }

    fn push(&mut self, rows: &[R]) -> Result<(), DataError> {
        check(self.path, self.num_rows + 1, rows)?;
        self.num_rows += rows.len();
        let arrow = |source| DataError::Arrow {
            path: self.path.to_owned(),
            source,
        };
        let batch = R::encode(rows).map_err(arrow)?;
        self.writer.write(&batch).map_err(|source| DataError::Io {
            path: self.path.to_owned(),
            source: io::Error::other(source),
        })
    }
}

/// What every Parquet file of ours has: zstd, and kind and version in the metadata.
pub(crate) fn writer_properties(kind: &str) -> WriterPropertiesBuilder {
    let metadata = vec![
        KeyValue::new(KIND_KEY.to_owned(), kind.to_owned()),
        KeyValue::new(VERSION_KEY.to_owned(), SCHEMA_VERSION.to_string()),
    ];
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_key_value_metadata(Some(metadata))
}

/// Opens a file for reading.
pub(crate) fn open(path: &Path) -> Result<File, DataError> {
    File::open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => DataError::Missing {
            path: path.to_owned(),
            hint: "check the path; relative paths in pipeline.toml are relative to that file"
                .to_owned(),
        },
        _ => DataError::Io {
            path: path.to_owned(),
            source,
        },
    })
}

fn check<R: Row>(path: &Path, first_row: usize, rows: &[R]) -> Result<(), DataError> {
    for (i, row) in rows.iter().enumerate() {
        row.check().map_err(|reason| DataError::Row {
            path: path.to_owned(),
            row: first_row + i,
            id: row.id().to_owned(),
            reason,
        })?;
    }
    Ok(())
}

fn parquet_batches<R: Row>(path: &Path) -> Result<Batches<R>, DataError> {
    let file = open(path)?;
    let broken = {
        let path = path.to_owned();
        move |source| DataError::Parquet {
            path: path.clone(),
            source,
        }
    };
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(&broken)?;
    let metadata = builder.metadata().file_metadata();
    check_metadata(path, R::KIND.file_stem(), metadata.key_value_metadata())?;
    if metadata.num_rows() == 0 {
        return Err(DataError::Empty {
            path: path.to_owned(),
        });
    }
    let wanted = builder.schema().fields().iter().enumerate();
    let wanted = wanted.filter(|(_, field)| R::COLUMNS.contains(&field.name().as_str()));
    let mask = ProjectionMask::roots(builder.parquet_schema(), wanted.map(|(i, _)| i));
    let columns_here = field_names(&builder);
    let reader = builder
        .with_projection(mask)
        .with_batch_size(BATCH_ROWS)
        .build()
        .map_err(broken)?;
    let path = path.to_owned();
    let mut first_row = 1;
    Ok(Box::new(reader.map(move |batch| {
        let batch = batch.map_err(|source| DataError::Arrow {
            path: path.clone(),
            source,
        })?;
        let columns = Columns::of(&path, R::KIND.file_stem(), &batch);
        let rows = R::decode(&columns).map_err(|e| with_all_columns(e, &columns_here))?;
        check(&path, first_row, &rows)?;
        first_row += rows.len();
        Ok(rows)
    })))
}

fn field_names(builder: &ParquetRecordBatchReaderBuilder<File>) -> String {
    let names: Vec<_> = builder
        .schema()
        .fields()
        .iter()
        .map(|f| f.name().as_str())
        .collect();
    names.join(", ")
}

/// Only the schema's columns are decoded, but a report of a missing one lists all that exist.
fn with_all_columns(error: DataError, all: &str) -> DataError {
    match error {
        DataError::Column {
            path, column, kind, ..
        } if !column.contains('.') => DataError::Column {
            path,
            column,
            kind,
            found: all.to_owned(),
        },
        other => other,
    }
}

/// Refuses files of another kind or of a later version; files without our metadata pass.
pub(crate) fn check_metadata(
    path: &Path,
    kind: &'static str,
    metadata: Option<&Vec<KeyValue>>,
) -> Result<(), DataError> {
    let value = |key: &str| {
        let entry = metadata.and_then(|list| list.iter().find(|entry| entry.key == key));
        entry.and_then(|entry| entry.value.clone())
    };
    if let Some(version) = value(VERSION_KEY)
        && !version
            .parse()
            .is_ok_and(|version: u32| (1..=SCHEMA_VERSION).contains(&version))
    {
        return Err(DataError::Version {
            path: path.to_owned(),
            found: version,
            supported: SCHEMA_VERSION,
        });
    }
    match value(KIND_KEY) {
        Some(found) if found != kind => Err(DataError::Kind {
            path: path.to_owned(),
            expected: kind,
            found,
        }),
        _ => Ok(()),
    }
}

/// Reads a JSON Lines file line by line.
struct Lines<R> {
    path: PathBuf,
    reader: BufReader<File>,
    line: usize,
    rows: std::marker::PhantomData<fn() -> R>,
}

impl<R: Row> Lines<R> {
    /// The next row; blank lines are passed over.
    fn next_row(&mut self) -> Result<Option<R>, DataError> {
        let mut text = String::new();
        loop {
            text.clear();
            self.line += 1;
            let bytes = self.reader.read_line(&mut text);
            if bytes.map_err(|source| DataError::Io {
                path: self.path.clone(),
                source,
            })? == 0
            {
                return Ok(None);
            }
            if !text.trim().is_empty() {
                break;
            }
        }
        let row: R =
            serde_json::from_str(text.trim_end()).map_err(|error| self.malformed(&error))?;
        check(&self.path, self.line, std::slice::from_ref(&row))?;
        Ok(Some(row))
    }

    fn malformed(&self, error: &serde_json::Error) -> DataError {
        let (text, column) = (error.to_string(), error.column());
        let place = format!(" at line {} column {column}", error.line());
        DataError::Line {
            path: self.path.clone(),
            line: self.line,
            column,
            reason: text.strip_suffix(&place).unwrap_or(&text).to_owned(),
            fields: R::KIND.fields(),
        }
    }
}

impl<R: Row> Iterator for Lines<R> {
    type Item = Result<Vec<R>, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut rows = Vec::new();
        while rows.len() < BATCH_ROWS {
            match self.next_row() {
                Ok(Some(row)) => rows.push(row),
                Ok(None) => break,
                Err(error) => return Some(Err(error)),
            }
        }
        (!rows.is_empty()).then_some(Ok(rows))
    }
}

fn line_batches<R: Row>(path: &Path) -> Result<Batches<R>, DataError> {
    let reader = BufReader::new(open(path)?);
    let rows = std::marker::PhantomData;
    let mut lines = Lines {
        path: path.to_owned(),
        reader,
        line: 0,
        rows,
    };
    match lines.next() {
        None => Err(DataError::Empty {
            path: path.to_owned(),
        }),
        Some(first) => Ok(Box::new(std::iter::once(first).chain(lines))),
    }
}
