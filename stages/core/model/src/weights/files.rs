//! All files of a model's weights, looked at as one.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::Reader;
use crate::ModelError;
use crate::read::weight_files;

/// The stored tensors of a folder, or of one file, under the names that they are stored under. Nothing
/// is asked of a `config.json`.
pub struct StoredWeights {
    readers: Vec<Reader>,
}

/// A tensor as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// Its size along each dimension.
    pub dims: Vec<i64>,
    /// Its type, as the format names it.
    pub dtype: String,
    /// The name of its file.
    pub file: String,
}

impl StoredWeights {
    /// Opens the files of weights of a folder, or the file itself.
    ///
    /// # Errors
    /// As [`Reader::open`]; an index that promises what is not there.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let readers = if path.is_file() {
            vec![Reader::open(path)?]
        } else {
            let files = weight_files(path)?;
            let open = files.iter().map(crate::read::WeightFile::open);
            open.collect::<Result<_, _>>()?
        };
        Ok(Self { readers })
    }

    /// All tensors, sorted by name.
    pub fn tensors(&self) -> BTreeMap<String, StoredTensor> {
        let all = self.readers.iter().flat_map(|reader| {
            let file = reader.path.file_name().unwrap_or_default();
            let file = file.to_string_lossy().into_owned();
            reader.entries.iter().map(move |(name, entry)| {
                let stored = StoredTensor {
                    dims: entry.dims.clone(),
                    dtype: entry.element.name(),
                    file: file.clone(),
                };
                (name.clone(), stored)
            })
        });
        all.collect()
    }

    /// One tensor as `kind`, on the CPU.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub fn read(&self, name: &str, kind: Kind) -> Result<Tensor, ModelError> {
        let holds = |reader: &&Reader| reader.entries.contains_key(name);
        let reader = self.readers.iter().find(holds).or(self.readers.first());
        let reader = reader.ok_or_else(|| ModelError::MissingTensor {
            path: name.into(),
            name: name.to_owned(),
            expected: Vec::new(),
        })?;
        reader.kind(name)?;
        reader.read(name, kind, Device::Cpu)
    }
}
