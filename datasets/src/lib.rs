//! Data: from foreign files to rows with a schema, to token ids, to batches.
//!
//! **In:** files of others ([`import()`]), Parquet or JSON Lines with our schemas ([`read`]), a
//! tokenizer's folder. **Out:** rows ([`rows`]), examples as token ids ([`examples`], [`pack`]),
//! the order in which they are used ([`loader`]), rectangles of ids ([`collate`]).
//!
//! **Architecture invariant:** this crate knows no tensor, no model, no stage and no
//! configuration file. What it makes are vectors of numbers, the same for the same input, seed and
//! position, whatever ran before.
//!
//! **Reading order:** [`rows`] (what a dataset is), [`files`] (how it lies on disk), [`mod@import`]
//! and [`split`] (where it comes from), [`tokenizer`], [`template`] and [`dialogue`] (how it
//! becomes ids), [`examples`], [`pack`] and [`objective`] (what stages get), [`loader`] and [`collate`] (when and
//! in which shape).

pub mod collate;
mod columnar;
mod comparison;
mod conversation;
pub mod dialogue;
pub mod error;
pub mod examples;
pub mod files;
mod fit;
mod foreign;
pub mod import;
mod infill;
mod lm_row;
pub mod loader;
mod masked;
pub mod objective;
pub mod pack;
mod pack_write;
mod parallel;
pub mod passkey;
pub mod reply;
pub mod rows;
mod schemas;
mod sentencepiece;
mod sorted;
mod specials;
pub mod split;
pub mod stats;
mod synthetic;
pub mod table;
pub mod template;
mod template_functions;
pub mod tokenizer;
mod tokenizer_error;
mod tokenizer_files;
mod tokenizer_train;
pub mod vocabulary;

pub use collate::{Padded, Side, pad};
pub use dialogue::Dialogue;
pub use error::{DataError, TokenizerError};
pub use examples::{
    ComparisonExample, Overlong, OverlongCount, PromptExample, SftExample, comparison_examples,
    prompt_examples, sft_examples,
};
pub use files::{batches, read, write};
pub use import::{ImportFormat, ImportOptions, ImportReport, import};
pub use infill::{Blanks, SPAN_PLACES};
pub use lm_row::LmRow;
pub use loader::{Order, Prefetch};
pub use objective::{Objective, Tasks};
pub use pack::TokenRows;
pub use reply::{Reply, reply_rows};
pub use rows::{
    Comparison, DatasetKind, Demonstration, Message, Pair, Prompt, Response, Row, Text,
};
pub use split::{Split, assert_disjoint, dataset_file, load_split, normalized_prompt};
pub use stats::Lengths;
pub use table::json_rows;
pub use tokenizer::Tokenizer;
pub use tokenizer_train::SPECIAL_TOKENS;
