//! What killed processes leave behind, and who takes it away.
//!
//! Whatever is being written, replaced or removed lies for that moment beside its place under a hidden
//! name, `.NAME.WHAT-PID`. [`crate::RunFolder::lock`] removes all of them: nobody else writes there then.

use std::fs;
use std::path::{Path, PathBuf};

use crate::files::FileError;

/// Being written.
pub(crate) const PARTIAL: &str = "partial";
/// The predecessor of what is being put in its place, where the file system cannot exchange the two.
pub(crate) const REPLACED: &str = "replaced";
/// Being removed.
const REMOVED: &str = "removed";

/// The hidden file or folder beside `path` that this process needs for a moment.
pub(crate) fn hidden_sibling(path: &Path, what: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{what}-{}", std::process::id()))
}

/// Removes a folder in such an order that a kill in between leaves no half folder under its name.
///
/// # Errors
/// Whatever the system answers.
pub fn remove_folder(path: &Path) -> Result<(), FileError> {
    let hidden = hidden_sibling(path, REMOVED);
    fs::rename(path, &hidden).map_err(FileError::io("remove", path))?;
    fs::remove_dir_all(&hidden).map_err(FileError::io("remove", &hidden))
}

/// Removes the leftovers below `root`, at any depth; a predecessor whose successor never came is put
/// back.
///
/// # Errors
/// What cannot be listed, removed or put back.
pub(crate) fn sweep(root: &Path) -> Result<(), FileError> {
    for entry in fs::read_dir(root).map_err(FileError::io("list", root))? {
        let entry = entry.map_err(FileError::io("list", root))?;
        let path = entry.path();
        let is_folder = entry
            .file_type()
            .map_err(FileError::io("read", &path))?
            .is_dir();
        match original(&path) {
            Some((place, REPLACED)) if !place.exists() => {
                fs::rename(&path, &place).map_err(FileError::io("put back", &place))?;
            }
            Some(_) if is_folder => {
                fs::remove_dir_all(&path).map_err(FileError::io("remove", &path))?;
            }
            Some(_) => fs::remove_file(&path).map_err(FileError::io("remove", &path))?,
            None if is_folder => sweep(&path)?,
            None => {}
        }
    }
    Ok(())
}

/// The place that a leftover was for, and what it is; `None` for everything else.
fn original(path: &Path) -> Option<(PathBuf, &'static str)> {
    let (name, suffix) = path
        .file_name()?
        .to_str()?
        .strip_prefix('.')?
        .rsplit_once('.')?;
    let (what, pid) = suffix.split_once('-')?;
    let what = [PARTIAL, REPLACED, REMOVED]
        .into_iter()
        .find(|known| *known == what)?;
    let is_number = !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| (path.with_file_name(name), what))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::RunFolder;

    type Outcome = Result<(), Box<dyn std::error::Error>>;

    fn names(dir: &Path) -> io::Result<Vec<String>> {
        let mut names: Vec<_> = fs::read_dir(dir)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<_>>()?;
        names.sort();
        Ok(names)
    }

    #[test]
    fn taking_a_run_folder_removes_what_killed_processes_left() -> Outcome {
        let dir = tempfile::tempdir()?;
        let stage = dir.path().join("ppo");
        fs::create_dir_all(stage.join("rollouts"))?;
        for folder in [
            ".final.partial-1",
            ".step-000002.removed-77",
            ".final.replaced-1",
            "final",
            ".hidden",
            ".a.partial-x",
        ] {
            fs::create_dir(stage.join(folder))?;
        }
        fs::write(stage.join("rollouts/.a.parquet.partial-12"), "half")?;
        fs::write(stage.join("rollouts/a.parquet"), "whole")?;
        fs::write(dir.path().join(".plan.toml.partial-1"), "half")?;
        RunFolder::open_or_create(dir.path())?.lock()?;
        assert_eq!(names(dir.path())?, ["lock", "ppo"]);
        assert_eq!(
            names(&stage)?,
            [".a.partial-x", ".hidden", "final", "rollouts"]
        );
        assert_eq!(names(&stage.join("rollouts"))?, ["a.parquet"]);
        Ok(())
    }

    #[test]
    fn a_predecessor_whose_successor_never_came_is_put_back() -> Outcome {
        let dir = tempfile::tempdir()?;
        let aside = dir.path().join(".final.replaced-5");
        fs::create_dir(&aside)?;
        fs::write(aside.join("f"), "old")?;
        fs::create_dir(dir.path().join(".final.partial-5"))?;
        sweep(dir.path())?;
        assert_eq!(names(dir.path())?, ["final"]);
        assert_eq!(fs::read_to_string(dir.path().join("final/f"))?, "old");
        Ok(())
    }

    #[test]
    fn a_folder_that_is_removed_is_gone() -> Outcome {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("step-000001");
        fs::create_dir(&path)?;
        remove_folder(&path)?;
        assert!(names(dir.path())?.is_empty());
        assert!(remove_folder(&path).is_err());
        Ok(())
    }
}
