//! Files and folders that are whole or absent.
//!
//! Everything is written beside its final place under a hidden temporary name, synced, and renamed.
//! A process that is killed leaves the old file or the new one, never a part of either; what lies
//! about then is removed when the run folder is next used (see [`crate::leftovers`]).

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::leftovers::{PARTIAL, REPLACED, hidden_sibling};

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}{}", path.display(), io_hint(source))]
    Io {
        /// What was tried: a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The disk has too little room.
    #[error(
        "not enough disk space at {}: {needed} bytes needed, {free} free\n  \
         hint: free some space, or choose another disk with --run-dir",
        path.display()
    )]
    NoSpace {
        /// The folder that was to be written to.
        path: PathBuf,
        /// Bytes that will be written.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The content is no JSON, or JSON of another shape.
    #[error(
        "{} is not what it should be: {source}\n  \
         hint: it is damaged, or of another version of this program; copy or make it anew",
        path.display()
    )]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's answer, with line and column.
        source: serde_json::Error,
    },
}

impl FileError {
    /// Wraps a system error, for use with `map_err`.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

fn io_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "\n  hint: free some space, or choose another disk with --run-dir"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "\n  hint: check who owns it, or choose another place with --run-dir"
        }
        _ => "",
    }
}

/// Writes a file whole: temporary file in the same folder, fsync, rename, fsync of the folder.
/// Missing parent folders are made.
///
/// # Errors
/// Whatever the system or `write` answers. The old file, if any, is then still there.
pub fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), FileError> {
    let parent = parent_of(path);
    fs::create_dir_all(&parent).map_err(FileError::io("create", &parent))?;
    let temporary = hidden_sibling(path, PARTIAL);
    let written = write_synced(&temporary, write)
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| sync_folder(&parent));
    if written.is_err() {
        // Best effort: the error that matters is the one already in hand.
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(FileError::io("write", path))
}

fn write_synced(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    write(&mut out)?;
    out.flush()?;
    out.get_ref().sync_all()
}

/// [`write_whole`] of bytes at hand.
///
/// # Errors
/// As [`write_whole`].
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_whole(path, |out| out.write_all(bytes))
}

/// [`write_whole`] of a value as indented JSON with a final newline.
///
/// # Errors
/// As [`write_whole`]; a value that JSON cannot hold is [`FileError::Json`].
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), FileError> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|source| FileError::Json {
        path: path.to_path_buf(),
        source,
    })?;
    bytes.push(b'\n');
    write_bytes(path, &bytes)
}

/// Reads a JSON file.
///
/// # Errors
/// The file cannot be read, or is not JSON of this type (path, line and column are named).
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, FileError> {
    let bytes = fs::read(path).map_err(FileError::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|source| FileError::Json {
        path: path.to_path_buf(),
        source,
    })
}

/// Checks that `bytes` more bytes fit on the disk that holds `dir` (or its nearest existing parent).
///
/// # Errors
/// [`FileError::NoSpace`] names what is needed and what is free.
pub fn ensure_space(dir: &Path, bytes: u64) -> Result<(), FileError> {
    let mut existing = dir;
    while !existing.exists() {
        match existing.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => existing = parent,
            _ => existing = Path::new("."),
        }
    }
    let stat = rustix::fs::statvfs(existing)
        .map_err(|errno| FileError::io("measure the free space of", existing)(errno.into()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < bytes {
        return Err(FileError::NoSpace {
            path: dir.to_path_buf(),
            needed: bytes,
            free,
        });
    }
    Ok(())
}

/// A folder that appears at its final path complete or not at all.
///
/// Write into [`WholeFolder::path`], then [`WholeFolder::commit`]. Dropped without a commit, the
/// temporary folder goes away. One writer per final path at a time.
#[derive(Debug)]
pub struct WholeFolder {
    temporary: PathBuf,
    final_path: PathBuf,
    committed: bool,
}

impl WholeFolder {
    /// Makes the temporary folder beside `final_path`.
    ///
    /// # Errors
    /// Whatever the system answers.
    pub fn create(final_path: &Path) -> Result<Self, FileError> {
        let parent = parent_of(final_path);
        fs::create_dir_all(&parent).map_err(FileError::io("create", &parent))?;
        let temporary = hidden_sibling(final_path, PARTIAL);
        fs::create_dir(&temporary).map_err(FileError::io("create", &temporary))?;
        Ok(Self {
            temporary,
            final_path: final_path.to_path_buf(),
            committed: false,
        })
    }

    /// Where to write now.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Syncs every file and puts the folder in its final place; a folder that is there already is
    /// exchanged for the new one in one step (where the file system can) and then removed.
    ///
    /// # Errors
    /// Whatever the system answers; the old folder is then still there.
    pub fn commit(mut self) -> Result<(), FileError> {
        sync_tree(&self.temporary).map_err(FileError::io("sync", &self.temporary))?;
        if self.final_path.exists() {
            self.replace()
                .map_err(FileError::io("replace", &self.final_path))?;
        } else {
            fs::rename(&self.temporary, &self.final_path)
                .map_err(FileError::io("write", &self.final_path))?;
        }
        self.committed = true;
        let parent = parent_of(&self.final_path);
        sync_folder(&parent).map_err(FileError::io("sync", &parent))
    }

    fn replace(&self) -> io::Result<()> {
        let (new, old) = (&self.temporary, &self.final_path);
        if rustix::fs::renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE).is_ok() {
            return fs::remove_dir_all(new);
        }
        let aside = hidden_sibling(old, REPLACED);
        fs::rename(old, &aside)?;
        if let Err(error) = fs::rename(new, old) {
            fs::rename(&aside, old)?;
            return Err(error);
        }
        fs::remove_dir_all(aside)
    }
}

impl Drop for WholeFolder {
    fn drop(&mut self) {
        if !self.committed {
            // Best effort: what stays is removed when the run folder is next locked.
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
}

fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn sync_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_folder(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Outcome = Result<(), Box<dyn std::error::Error>>;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_other() -> Outcome {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("a.txt");
        write_bytes(&path, b"old")?;
        let failed = write_whole(&path, |out| {
            out.write_all(b"half")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        });
        let message = failed.err().ok_or("must fail")?.to_string();
        assert!(
            message.contains("a.txt") && message.contains("hint:"),
            "{message}"
        );
        assert_eq!(fs::read(&path)?, b"old");
        assert_eq!(fs::read_dir(dir.path())?.count(), 1);
        Ok(())
    }

    #[test]
    fn a_folder_is_absent_until_committed_and_replaces_its_predecessor() -> Outcome {
        let dir = tempfile::tempdir()?;
        let target = dir.path().join("final");
        for content in ["one", "two"] {
            let folder = WholeFolder::create(&target)?;
            fs::write(folder.path().join("f"), content)?;
            assert_ne!(
                fs::read_to_string(target.join("f")).unwrap_or_default(),
                content
            );
            folder.commit()?;
            assert_eq!(fs::read_to_string(target.join("f"))?, content);
        }
        drop(WholeFolder::create(&target)?);
        assert_eq!(fs::read_dir(dir.path())?.count(), 1);
        Ok(())
    }

    #[test]
    fn too_little_space_is_an_error_with_numbers() -> Outcome {
        let dir = tempfile::tempdir()?;
        ensure_space(&dir.path().join("not/yet/there"), 1)?;
        let error = ensure_space(dir.path(), u64::MAX)
            .err()
            .ok_or("must fail")?;
        assert!(matches!(
            error,
            FileError::NoSpace {
                needed: u64::MAX,
                ..
            }
        ));
        Ok(())
    }

    #[test]
    fn json_errors_name_the_file() -> Outcome {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("x.json");
        write_json(&path, &vec![1, 2])?;
        assert_eq!(read_json::<Vec<i32>>(&path)?, [1, 2]);
        let error = read_json::<String>(&path).err().ok_or("must fail")?;
        assert!(error.to_string().contains("x.json"), "{error}");
        Ok(())
    }
}
