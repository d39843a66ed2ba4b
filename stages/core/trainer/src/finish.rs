//! The checkpoint that a stage hands on: `final/`.

use std::path::Path;

use datasets::Tokenizer;
use model::Model;
use runtime::files::{WholeFolder, ensure_space};
use runtime::manifest::Manifest;

use crate::error::TrainerError;
use crate::folder::{ADAPTER, model_bytes, write_model};

/// Writes a checkpoint to `dir` (a stage's `final/`), whole or not at all: `model` at the root, each of
/// `further` in a folder of its name below, all with the tokenizer. A model with adapters is written merged,
/// with the adapters in `adapter/`, which the manifest notes. `manifest` says which step was selected and by
/// which metrics; it is sealed and returned, so that its id can be recorded.
///
/// # Errors
/// A full disk or a failed write; what was at `dir` before stays.
pub fn finish(
    dir: &Path,
    model: &Model,
    further: &[(&str, &Model)],
    tokenizer: &Tokenizer,
    mut manifest: Manifest,
) -> Result<Manifest, TrainerError> {
    let further_bytes = further
        .iter()
        .map(|(_, model)| model_bytes(model, tokenizer));
    let needed = model_bytes(model, tokenizer) + further_bytes.sum::<u64>();
    let folder = WholeFolder::create(dir)?;
    ensure_space(folder.path(), needed)?;
    write_model(folder.path(), model, tokenizer)?;
    for (name, model) in further {
        write_model(&folder.path().join(name), model, tokenizer)?;
    }
    if model.has_adapter() {
        manifest.notes.insert(ADAPTER.to_owned(), ADAPTER.into());
    }
    let manifest = manifest.seal(folder.path())?;
    folder.commit()?;
    Ok(manifest)
}
