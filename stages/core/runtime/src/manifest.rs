//! Manifests: what an artefact is, what it was made from, and the hash of every file in it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files::{FileError, read_json, write_json};
use crate::hash::{hash_file, hash_json};

/// Version of the artefacts' formats that this program reads and writes.
pub const FORMAT_VERSION: u32 = 1;

const FILE_NAME: &str = "manifest.json";

/// The `manifest.json` of an artefact's folder. It holds no times: equal runs give equal bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the artefact's format.
    pub format_version: u32,
    /// What it is: `checkpoint`, `dataset` or `tokenizer`.
    pub kind: String,
    /// The stage that made it.
    pub stage: String,
    /// Updates done when it was made.
    pub step: u64,
    /// SHA-256 of every other file of the folder, by path relative to it.
    pub files: BTreeMap<String, String>,
    /// What it was made from: reference -> manifest id.
    pub parents: BTreeMap<String, String>,
    /// The configuration that made it.
    pub config: serde_json::Value,
    /// Facts that belong to the artefact (chosen step, counts, ...).
    pub notes: BTreeMap<String, serde_json::Value>,
}

/// Why a manifest or the files that it vouches for are not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file's bytes are not those that were written.
    #[error(
        "{} is damaged: its sha256 is {found}, and the manifest beside it says {expected}\n  \
         hint: copy it again from where it came, or make it anew with --restart",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The hash in the manifest.
        expected: String,
        /// The hash of the bytes on disk.
        found: String,
    },
    /// A file that the manifest lists is not there.
    #[error(
        "{} is missing, though the manifest beside it lists it\n  \
         hint: copy the whole folder again, or make it anew with --restart",
        path.display()
    )]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The artefact comes from another version of the program.
    #[error(
        "{} has format version {found}, and this program knows versions up to {FORMAT_VERSION}\n  \
         hint: use the program that wrote it, or a newer one",
        path.display()
    )]
    Version {
        /// The manifest.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

impl Manifest {
    /// A manifest without files, to be filled and [sealed](Self::seal).
    pub fn new(kind: &str, stage: &str, step: u64) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            kind: kind.to_owned(),
            stage: stage.to_owned(),
            step,
            files: BTreeMap::new(),
            parents: BTreeMap::new(),
            config: serde_json::Value::Null,
            notes: BTreeMap::new(),
        }
    }

    /// Hashes every file below `dir` (but its own) and writes `dir/manifest.json`.
    ///
    /// # Errors
    /// A file cannot be read, or the manifest not written.
    pub fn seal(mut self, dir: &Path) -> Result<Self, ManifestError> {
        self.files = hashes_below(dir)?;
        self.files.remove(FILE_NAME);
        write_json(&dir.join(FILE_NAME), &self)?;
        Ok(self)
    }

    /// The manifest of a folder; `None` where there is none (a foreign Hugging Face folder).
    ///
    /// # Errors
    /// The manifest cannot be read, is malformed, or of a later version.
    pub fn read(dir: &Path) -> Result<Option<Self>, ManifestError> {
        let path = dir.join(FILE_NAME);
        if !path.exists() {
            return Ok(None);
        }
        let manifest: Self = read_json(&path)?;
        if manifest.format_version > FORMAT_VERSION {
            return Err(ManifestError::Version {
                path,
                found: manifest.format_version,
            });
        }
        Ok(Some(manifest))
    }

    /// [`Manifest::read`], and checks the hash of every file that it lists.
    ///
    /// # Errors
    /// The first file that is missing or damaged, with the expected and the found hash.
    pub fn verify(dir: &Path) -> Result<Option<Self>, ManifestError> {
        let Some(manifest) = Self::read(dir)? else {
            return Ok(None);
        };
        for (name, expected) in &manifest.files {
            let path = dir.join(name);
            if !path.exists() {
                return Err(ManifestError::Missing { path });
            }
            let found = hash_file(&path)?;
            if found != *expected {
                return Err(ManifestError::Damaged {
                    path,
                    expected: expected.clone(),
                    found,
                });
            }
        }
        Ok(Some(manifest))
    }

    /// The artefact's identity: the hash of the manifest's canonical JSON.
    pub fn id(&self) -> String {
        hash_json(self)
    }
}

/// What a file or folder is, whatever it is called: a file's hash; a folder's manifest id, or, where it
/// has no manifest, the hash of its files' hashes. `manifest_of` is [`Manifest::read`], or
/// [`Manifest::verify`] for what came from elsewhere.
///
/// # Errors
/// It cannot be read, or is damaged.
pub fn content_id(
    path: &Path,
    manifest_of: impl FnOnce(&Path) -> Result<Option<Manifest>, ManifestError>,
) -> Result<String, ManifestError> {
    if !path.is_dir() {
        return Ok(hash_file(path)?);
    }
    match manifest_of(path)? {
        Some(manifest) => Ok(manifest.id()),
        None => Ok(hash_json(&hashes_below(path)?)),
    }
}

/// The hash of every file below a folder, by its path relative to it.
fn hashes_below(dir: &Path) -> Result<BTreeMap<String, String>, FileError> {
    let mut hashes = BTreeMap::new();
    for path in files_below(dir)? {
        let relative = path.strip_prefix(dir).unwrap_or(&path);
        hashes.insert(relative.to_string_lossy().into_owned(), hash_file(&path)?);
    }
    Ok(hashes)
}

/// Every file below a folder, sorted by path; temporary ones (their names begin with a dot) excepted.
///
/// # Errors
/// A folder cannot be listed.
pub fn files_below(dir: &Path) -> Result<Vec<PathBuf>, FileError> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_path_buf()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder).map_err(FileError::io("list", &folder))? {
            let entry = entry.map_err(FileError::io("list", &folder))?;
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            let path = entry.path();
            if path.is_dir() {
                pending.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Outcome = Result<(), Box<dyn std::error::Error>>;

    fn sealed() -> Result<(tempfile::TempDir, Manifest), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        fs::create_dir(dir.path().join("value"))?;
        fs::write(dir.path().join("model.safetensors"), [1, 2, 3])?;
        fs::write(dir.path().join("value/config.json"), "{}")?;
        let manifest = Manifest::new("checkpoint", "sft", 7).seal(dir.path())?;
        Ok((dir, manifest))
    }

    #[test]
    fn a_sealed_folder_verifies_and_keeps_its_identity() -> Outcome {
        let (dir, manifest) = sealed()?;
        let again = Manifest::verify(dir.path())?.ok_or("no manifest")?;
        assert_eq!(again, manifest);
        assert_eq!(again.id(), sealed()?.1.id());
        assert_ne!(again.id(), Manifest::new("checkpoint", "sft", 8).id());
        let names: Vec<_> = manifest.files.keys().collect();
        assert_eq!(names, ["model.safetensors", "value/config.json"]);
        Ok(())
    }

    #[test]
    fn a_flipped_byte_a_missing_file_and_a_later_version_are_refused() -> Outcome {
        let (dir, manifest) = sealed()?;
        fs::write(dir.path().join("model.safetensors"), [1, 2, 2])?;
        let error = Manifest::verify(dir.path()).err().ok_or("must fail")?;
        let message = error.to_string();
        assert!(matches!(error, ManifestError::Damaged { .. }));
        assert!(
            message.contains(&manifest.files["model.safetensors"]),
            "{message}"
        );
        fs::remove_file(dir.path().join("model.safetensors"))?;
        let error = Manifest::verify(dir.path()).err().ok_or("must fail")?;
        assert!(matches!(error, ManifestError::Missing { .. }), "{error}");
        let later = Manifest {
            format_version: FORMAT_VERSION + 1,
            ..manifest
        };
        write_json(&dir.path().join(FILE_NAME), &later)?;
        let error = Manifest::read(dir.path()).err().ok_or("must fail")?;
        assert!(matches!(error, ManifestError::Version { .. }), "{error}");
        Ok(())
    }

    #[test]
    fn a_folder_without_a_manifest_is_foreign() -> Outcome {
        let dir = tempfile::tempdir()?;
        assert_eq!(Manifest::verify(dir.path())?, None);
        Ok(())
    }
}
