//! A checkpoint: weights that can be used, with their tokenizer, as a sealed folder.

use std::path::Path;

use datasets::tokenizer::Tokenizer;
use recipe::plan::Quantization;
use recipe::tensors::Head;
use runtime::manifest::Manifest;
use tch::{Device, Kind};

use crate::ModelError;
use crate::folder::SpecialIds;
use crate::transformer::Model;

/// A model with the tokenizer that it was trained with.
pub struct Checkpoint {
    /// The model.
    pub model: Model,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// What the folder says of itself; `None` for a folder from elsewhere.
    pub manifest: Option<Manifest>,
}

impl Checkpoint {
    /// Reads a folder of ours or any Hugging Face folder of a known family.
    ///
    /// # Errors
    /// As [`Model::load`]; when the tokenizer cannot be read, or has more tokens than the model.
    pub fn load(dir: &Path, device: Device, kind: Kind) -> Result<Self, ModelError> {
        Self::load_frozen(dir, device, kind, None)
    }

    /// The same for a model whose weights will not be trained; `quantize` as in [`Model::load_frozen`].
    ///
    /// # Errors
    /// As [`Checkpoint::load`].
    pub fn load_frozen(
        dir: &Path,
        device: Device,
        kind: Kind,
        quantize: Option<Quantization>,
    ) -> Result<Self, ModelError> {
        let model = Model::load_frozen(dir, device, kind, quantize)?;
        let tokenizer = Tokenizer::load(dir).map_err(|error| ModelError::Tokenizer {
            path: dir.into(),
            source: error.into(),
        })?;
        check_vocabulary(dir, &model, &tokenizer)?;
        Ok(Self {
            model,
            tokenizer,
            manifest: Manifest::read(dir)?,
        })
    }
}

/// Writes model and tokenizer into an existing folder, unsealed: what a snapshot adds its training
/// state to. Weights of more than `shard_bytes` go into several files.
///
/// # Errors
/// When the tokenizer does not fit the model, the disk is full, or writing fails.
pub fn write_folder(
    dir: &Path,
    model: &Model,
    tokenizer: &Tokenizer,
    shard_bytes: u64,
) -> Result<(), ModelError> {
    check_vocabulary(dir, model, tokenizer)?;
    let pad = tokenizer.stated_pad_id();
    if model.head == Head::Scalar && pad.is_none() {
        tracing::warn!(
            "{}: no pad_token_id is written, since every token of the tokenizer may be in a text; \
             transformers then scores one row at a time",
            dir.display()
        );
    }
    let ids = SpecialIds {
        bos: tokenizer.bos_id(),
        stop: tokenizer.stop_ids().to_vec(),
        pad,
    };
    model.save_with(dir, Some(ids), shard_bytes)?;
    tokenizer.save(dir).map_err(|error| ModelError::Tokenizer {
        path: dir.into(),
        source: error.into(),
    })
}

pub(crate) fn check_vocabulary(
    dir: &Path,
    model: &Model,
    tokenizer: &Tokenizer,
) -> Result<(), ModelError> {
    let (tokens, rows) = (tokenizer.vocab_size(), model.shape.vocab_size);
    if tokens > rows {
        return Err(ModelError::Vocabulary {
            path: dir.into(),
            tokens,
            rows,
        });
    }
    Ok(())
}
