//! The checkpoint that a stage hands on: `final/`.

use std::path::Path;

use datasets::Tokenizer;
use model::Model;
use runtime::files::{WholeFolder, ensure_space};
use runtime::manifest::Manifest;

use crate::error::TrainerError;
use crate::folder::{ADAPTER, model_bytes, write_model};
use crate::ranks::Ranks;

/// Writes a checkpoint to `dir` (a stage's `final/`), whole or not at all: each of `models` in a folder of its name below,
/// the one without a name at the root, all with the tokenizer. A model with adapters is written merged,
/// with the adapters in `adapter/`, which the manifest notes. `manifest` says which step was selected and by
/// which metrics; it is sealed.
///
/// All ranks call this and wait for the first, which writes.
///
/// # Errors
/// A full disk or a failed write; what was at `dir` before stays. Another rank that fails.
pub fn finish(
    ranks: &Ranks,
    dir: &Path,
    models: &[(&str, &Model)],
    tokenizer: &Tokenizer,
    mut manifest: Manifest,
) -> Result<(), TrainerError> {
    let folder = if ranks.is_first() {
        let needed = models
            .iter()
            .map(|(_, model)| model_bytes(model, tokenizer));
        let folder = WholeFolder::create(dir)?;
        ensure_space(folder.path(), needed.sum())?;
        Some(folder)
    } else {
        None
    };
    for (name, model) in models {
        let _whole = model.whole()?;
        if let Some(folder) = &folder {
            write_model(&folder.path().join(name), model, tokenizer)?;
        }
    }
    if let Some(folder) = folder {
        if models
            .iter()
            .any(|(name, model)| name.is_empty() && model.has_adapter())
        {
            manifest.notes.insert(ADAPTER.to_owned(), ADAPTER.into());
        }
        manifest.seal(folder.path())?;
        folder.commit()?;
    }
    ranks.barrier()
}
