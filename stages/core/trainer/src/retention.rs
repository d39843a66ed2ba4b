//! Which snapshot a run continues from, and which are kept.

use std::path::PathBuf;

use runtime::files::FileError;
use runtime::leftovers::remove_folder;
use runtime::manifest::Manifest;
use runtime::run_folder::StageFolder;

use crate::error::TrainerError;

/// The newest snapshot, with the number of updates that it holds; `None` where the stage has none yet.
/// Every file of it is checked against its manifest.
///
/// # Errors
/// A damaged snapshot, naming the file: a run never starts over, or from an older state, in silence.
pub fn latest_valid_snapshot(stage: &StageFolder) -> Result<Option<(u64, PathBuf)>, TrainerError> {
    let Some((step, path)) = list(stage)?.pop() else {
        return Ok(None);
    };
    match Manifest::verify(&path) {
        Ok(Some(_)) => Ok(Some((step, path))),
        Ok(None) => Err(TrainerError::NoManifest { path }),
        Err(source) => Err(TrainerError::DamagedSnapshot { path, source }),
    }
}

/// Removes all snapshots but the newest `keep` (at least one) and that of step `best`.
///
/// # Errors
/// A folder that cannot be listed or removed.
pub fn retain(stage: &StageFolder, keep: usize, best: Option<u64>) -> Result<(), TrainerError> {
    let mut snapshots = list(stage)?;
    snapshots.truncate(snapshots.len().saturating_sub(keep.max(1)));
    for (step, path) in snapshots {
        if Some(step) != best {
            remove_folder(&path)?;
        }
    }
    Ok(())
}

fn list(stage: &StageFolder) -> Result<Vec<(u64, PathBuf)>, TrainerError> {
    Ok(stage
        .snapshots()
        .map_err(FileError::io("list", stage.root()))?)
}
