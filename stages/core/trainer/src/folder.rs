//! What snapshots and final checkpoints have in common: Hugging Face models in a folder and below it.

use std::fs;
use std::path::Path;

use datasets::Tokenizer;
use model::weights::SHARD_BYTES;
use model::{Model, write_folder};
use runtime::files::FileError;

use crate::error::TrainerError;
use crate::tensor_file::data_bytes;

/// Writes `model` and `tokenizer` into `dir`, which is made where it is missing.
pub(crate) fn write_model(
    dir: &Path,
    model: &Model,
    tokenizer: &Tokenizer,
) -> Result<(), TrainerError> {
    fs::create_dir_all(dir).map_err(FileError::io("create", dir))?;
    Ok(write_folder(dir, model, tokenizer, SHARD_BYTES)?)
}

/// Upper estimate of what [`write_model`] writes, bytes: the weights, 256 bytes per tokenizer entry
/// (its text twice, a merge, punctuation), and a MiB for headers and configurations.
pub(crate) fn model_bytes(model: &Model, tokenizer: &Tokenizer) -> u64 {
    data_bytes(model.params().values()) + 256 * tokenizer.vocab_size() as u64 + (1 << 20)
}
