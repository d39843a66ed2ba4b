//! Which snapshot a run continues from, and which are kept.

use std::fs;
use std::path::{Path, PathBuf};

use runtime::files::FileError;
use runtime::manifest::Manifest;
use runtime::run_folder::StageFolder;

use crate::error::TrainerError;

/// The newest snapshot, with the number of updates that it holds; `None` where the stage has none yet.
/// Every file of it is checked against its manifest. What a killed process left half written or half
/// removed is deleted.
///
/// # Errors
/// A damaged snapshot, naming the file: a run never starts over, or from an older state, in silence.
pub fn latest_valid_snapshot(stage: &StageFolder) -> Result<Option<(u64, PathBuf)>, TrainerError> {
    remove_leftovers(stage.root())?;
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
            remove(&path)?;
        }
    }
    Ok(())
}

fn list(stage: &StageFolder) -> Result<Vec<(u64, PathBuf)>, TrainerError> {
    Ok(stage
        .snapshots()
        .map_err(FileError::io("list", stage.root()))?)
}

/// Removes a snapshot in such an order that a kill in between leaves no half folder under its name.
fn remove(path: &Path) -> Result<(), TrainerError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let hidden = path.with_file_name(format!(".{name}.removed"));
    fs::rename(path, &hidden).map_err(FileError::io("remove", path))?;
    fs::remove_dir_all(&hidden).map_err(FileError::io("remove", &hidden))?;
    Ok(())
}

/// Snapshots under a hidden name are temporaries of [`runtime::files::WholeFolder`] or of [`remove`].
fn remove_leftovers(root: &Path) -> Result<(), TrainerError> {
    if !root.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(root).map_err(FileError::io("list", root))? {
        let entry = entry.map_err(FileError::io("list", root))?;
        if entry.file_name().to_string_lossy().starts_with(".step-") {
            let path = entry.path();
            tracing::info!(
                "removing {}, left by a process that was killed",
                path.display()
            );
            fs::remove_dir_all(&path).map_err(FileError::io("remove", &path))?;
        }
    }
    Ok(())
}
