//! What snapshots and final checkpoints have in common: Hugging Face models in a folder and below it.

use std::fs;
use std::path::Path;

use datasets::Tokenizer;
use model::weights::SHARD_BYTES;
use model::{Model, write_folder};
use runtime::files::FileError;

use crate::error::TrainerError;
use crate::tensor_file::data_bytes;

/// The folder of adapters, in that of the model that they were merged into.
pub const ADAPTER: &str = "adapter";

/// Writes `model` and `tokenizer` into `dir`, which is made where it is missing: a Hugging Face folder. A
/// model with adapters is written merged, and its adapters in `adapter/`, in the format of peft.
pub(crate) fn write_model(
    dir: &Path,
    model: &Model,
    tokenizer: &Tokenizer,
) -> Result<(), TrainerError> {
    create(dir)?;
    if !model.has_adapter() {
        return Ok(write_folder(dir, model, tokenizer, SHARD_BYTES)?);
    }
    write_folder(dir, &model.merged()?, tokenizer, SHARD_BYTES)?;
    let adapter = dir.join(ADAPTER);
    create(&adapter)?;
    Ok(model.save_adapter(&adapter)?)
}

/// Writes what is trained of `model`, and `tokenizer`, into `dir`: as [`write_model`] without adapters, and
/// with them the adapters alone.
pub(crate) fn write_trained(
    dir: &Path,
    model: &Model,
    tokenizer: &Tokenizer,
) -> Result<(), TrainerError> {
    if !model.has_adapter() {
        return write_model(dir, model, tokenizer);
    }
    create(dir)?;
    model.save_adapter(dir)?;
    Ok(tokenizer.save(dir)?)
}

fn create(dir: &Path) -> Result<(), TrainerError> {
    Ok(fs::create_dir_all(dir).map_err(FileError::io("create", dir))?)
}

/// Upper estimate of what [`write_model`] writes, bytes: what [`write_trained`] does, and merged weights.
pub(crate) fn model_bytes(model: &Model, tokenizer: &Tokenizer) -> u64 {
    let merged = if model.has_adapter() {
        (model.num_params() * model.kind().elt_size_in_bytes()) as u64
    } else {
        0
    };
    merged + trained_bytes(model, tokenizer)
}

/// Upper estimate of what [`write_trained`] writes, bytes: what is trained, 256 bytes per tokenizer entry
/// (its text twice, a merge, punctuation), and a MiB for headers and configurations.
pub(crate) fn trained_bytes(model: &Model, tokenizer: &Tokenizer) -> u64 {
    data_bytes(model.trainable().values()) + 256 * tokenizer.vocab_size() as u64 + (1 << 20)
}
