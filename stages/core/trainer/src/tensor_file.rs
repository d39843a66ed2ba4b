//! Named tensors back from one file into those that are in use, to the bit.

use std::collections::BTreeMap;
use std::path::Path;

use model::weights::Reader;
use tch::{Tensor, no_grad};

use crate::error::TrainerError;

/// Bytes that `tensors` take in a file, without its header.
pub(crate) fn data_bytes<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> u64 {
    tensors
        .into_iter()
        .map(|t| (t.numel() * t.kind().elt_size_in_bytes()) as u64)
        .sum()
}

/// Overwrites each of `targets` with the tensor of that name in the file.
///
/// The file must have exactly the names of `targets`, each with its shape (checked before the first is
/// touched) and number format. One tensor is in memory twice at a time.
pub(crate) fn read_tensors_into(
    path: &Path,
    targets: &BTreeMap<String, Tensor>,
) -> Result<(), TrainerError> {
    let reader = Reader::open(path)?;
    check(path, &reader.tensors(), targets)?;
    for (name, target) in targets {
        let (found, kind) = (reader.kind(name)?, target.kind());
        if found != kind {
            let (found, expected) = (format!("{found:?}"), format!("{kind:?}"));
            return Err(shape_error(path, name, found, expected));
        }
        let tensor = reader.read(name, kind, target.device())?;
        no_grad(|| target.shallow_clone().f_copy_(&tensor))?;
    }
    Ok(())
}

fn check(
    path: &Path,
    stored: &BTreeMap<String, Vec<i64>>,
    targets: &BTreeMap<String, Tensor>,
) -> Result<(), TrainerError> {
    let name_error = |name: &str, problem| TrainerError::TensorName {
        path: path.to_owned(),
        name: name.to_owned(),
        problem,
    };
    for (name, target) in targets {
        let found = stored
            .get(name)
            .ok_or_else(|| name_error(name, "missing"))?;
        if *found != target.size() {
            let expected = format!("{:?}", target.size());
            return Err(shape_error(path, name, format!("{found:?}"), expected));
        }
    }
    let extra = stored.keys().find(|name| !targets.contains_key(*name));
    extra.map_or(Ok(()), |name| Err(name_error(name, "unexpected")))
}

fn shape_error(path: &Path, name: &str, found: String, expected: String) -> TrainerError {
    let (path, name) = (path.to_owned(), name.to_owned());
    TrainerError::TensorShape {
        path,
        name,
        found,
        expected,
    }
}
