//! What can be wrong with data, said with the file, the value and a remedy.

use std::io;
use std::path::PathBuf;

use arrow::error::ArrowError;
use parquet::errors::ParquetError;
use polars::prelude::PolarsError;
use runtime::FileError;

pub use crate::tokenizer_error::TokenizerError;

/// Everything that can be wrong with a dataset.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file or folder is not there.
    #[error("{}: no such file\n  hint: {hint}", path.display())]
    Missing {
        /// What was asked for.
        path: PathBuf,
        /// What to do.
        hint: String,
    },
    /// Neither Parquet nor JSON Lines.
    #[error(
        "{}: unknown extension `{extension}`\n  hint: datasets are `.parquet` or `.jsonl` files; \
         other formats go through a stage of kind \"import\"",
        path.display()
    )]
    Extension {
        /// The file.
        path: PathBuf,
        /// Its extension.
        extension: String,
    },
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be written or hashed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The bytes are no valid Parquet.
    #[error(
        "{}: not a readable Parquet file: {source}\n  hint: the file may be truncated or no \
         Parquet at all; make it again or copy it again",
        path.display()
    )]
    Parquet {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ParquetError,
    },
    /// A batch of the file could not be decoded.
    #[error(
        "{}: cannot decode: {source}\n  hint: the file may be damaged; make it again or copy it again",
        path.display()
    )]
    Arrow {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ArrowError,
    },
    /// A column that the schema needs is absent.
    #[error(
        "{}: column `{column}` is missing ({kind} need it)\n  hint: columns here: {found}",
        path.display()
    )]
    Column {
        /// The file.
        path: PathBuf,
        /// The missing column; nested ones as `messages.role`.
        column: String,
        /// What the rows were to be.
        kind: &'static str,
        /// The columns that are there.
        found: String,
    },
    /// A column has another type than the schema says.
    #[error(
        "{}: column `{column}` has type {found}, not {expected}\n  hint: convert the column",
        path.display()
    )]
    ColumnType {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// The type of the schema.
        expected: &'static str,
        /// The type in the file.
        found: String,
    },
    /// A value that must be there is null.
    #[error(
        "{}: value {index} of column `{column}` is null\n  hint: fill it or leave the row out",
        path.display()
    )]
    Null {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// Index of the value in the column's batch, counted from 0.
        index: usize,
    },
    /// The file says that it holds rows of another kind.
    #[error(
        "{}: holds {found}, not {expected}\n  hint: point `data` at a file of {expected}",
        path.display()
    )]
    Kind {
        /// The file.
        path: PathBuf,
        /// The kind that was asked for.
        expected: &'static str,
        /// The kind in the file's metadata.
        found: String,
    },
    /// The file was written by a later version of this program.
    #[error(
        "{}: schema version {found} is not supported (at most {supported})\n  hint: use the \
         program that wrote it, or import the data again",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Version in the file's metadata.
        found: String,
        /// Latest version that can be read.
        supported: u32,
    },
    /// There are no rows.
    #[error("{}: has no rows\n  hint: an empty dataset cannot be used; check how it was made", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A line of a JSON Lines file is malformed.
    #[error(
        "{}:{line}:{column}: {reason}\n  hint: each line is one JSON object with {fields}",
        path.display()
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// Column in bytes, counted from 1.
        column: usize,
        /// What is wrong.
        reason: String,
        /// The fields that the schema wants.
        fields: &'static str,
    },
    /// A row says something impossible.
    #[error("{}: row {row} (id `{id}`): {reason}\n  hint: correct the row or leave it out", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Row (of JSON Lines: line), counted from 1.
        row: usize,
        /// The row's id.
        id: String,
        /// What is wrong.
        reason: String,
    },
    /// An example does not fit.
    #[error(
        "example `{id}` has {tokens} tokens, the limit is {limit}\n  hint: raise {knob}, or set \
         overlong = \"drop\" or \"left\""
    )]
    Overlong {
        /// The example's id.
        id: String,
        /// Its length, tokens.
        tokens: usize,
        /// What fits, tokens.
        limit: usize,
        /// The configuration key behind the limit.
        knob: &'static str,
    },
    /// A prompt and its reply do not fit into a reward model of another tokenizer.
    #[error(
        "prompt `{id}` and its reply take {tokens} tokens of the reward model's own tokenizer, it reads \
         {context}\n  hint: set overlong = \"left\", lower max_prompt_tokens or max_new_tokens, or take a \
         reward model of longer context"
    )]
    LongReply {
        /// The prompt's id.
        id: String,
        /// Length of both, tokens.
        tokens: usize,
        /// What fits, tokens.
        context: usize,
    },
    /// Nothing in an example would be learned.
    #[error(
        "demonstration `{id}` has no assistant message, or none that the chat template marks\n  hint: leave \
         it out; the loss is on assistant messages only"
    )]
    NoLoss {
        /// The example's id.
        id: String,
    },
    /// All examples were left out.
    #[error(
        "none of {examples} {kind} fits into {limit} tokens\n  hint: raise {knob} or set overlong = \"left\""
    )]
    NothingLeft {
        /// How many there were.
        examples: usize,
        /// What they are.
        kind: &'static str,
        /// What fits, tokens.
        limit: usize,
        /// The configuration key behind the limit.
        knob: &'static str,
    },
    /// A split got no rows.
    #[error(
        "{}: the {part} split has no {kind} ({rows} rows in all)\n  hint: give more data, or change \
         the share that is held out",
        path.display()
    )]
    EmptySplit {
        /// Where the data comes from.
        path: PathBuf,
        /// `training` or `held-out`.
        part: &'static str,
        /// What the rows are.
        kind: &'static str,
        /// Rows before the split.
        rows: usize,
    },
    /// Something is in both splits.
    #[error(
        "{what} `{value}` is in both splits\n  hint: import the data again; held-out data must \
         share no conversation and no prompt with training data"
    )]
    NotDisjoint {
        /// `conversation` or `prompt`.
        what: &'static str,
        /// The first shared value.
        value: String,
    },
    /// No import format has this name.
    #[error("unknown import format `{name}`\n  hint: known formats: {known}")]
    Format {
        /// The name.
        name: String,
        /// The names that exist.
        known: &'static str,
    },
    /// An option of an import is impossible.
    #[error("{option} = {value}: {reason}\n  hint: {hint}")]
    Option {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
        /// What is wrong.
        reason: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// A foreign file is not what the import expects.
    #[error("{}: {reason}\n  hint: {hint}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// A tokenizer cannot encode or render.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// An example cannot be rendered or encoded.
    #[error("example `{id}`: {source}")]
    Example {
        /// The example's id.
        id: String,
        /// Why.
        source: TokenizerError,
    },
    /// A statistic or join failed.
    #[error("statistics: {0}")]
    Statistics(#[from] PolarsError),
}
