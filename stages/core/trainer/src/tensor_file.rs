//! Named tensors in files, and back into those that are in use, to the bit: whole in one file, or cut into slices over
//! several, whatever the slices were that they are read into.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use model::weights::{self, Reader};
use runtime::files::{read_json, write_json};
use serde::{Deserialize, Serialize};
use tch::{Tensor, no_grad};

use crate::error::TrainerError;

/// A tensor, or a slice of one, that is written or overwritten.
#[derive(Debug)]
pub(crate) struct Piece {
    /// Of the whole shape, or flat where it is a slice.
    pub(crate) tensor: Tensor,
    /// The whole shape.
    pub(crate) shape: Vec<i64>,
    /// The number of the whole that a slice begins with; `None`: it is whole.
    pub(crate) start: Option<usize>,
}

/// Which files a set of tensors is cut over: `NAME.slices.json`. The slices of a tensor, in the files' order, are its numbers in
/// their order; what has no shape here is whole in the first file.
#[derive(Debug, Serialize, Deserialize)]
struct Slices {
    files: Vec<String>,
    shapes: BTreeMap<String, Vec<i64>>,
}

/// Bytes that `tensors` take in a file, without its header.
pub(crate) fn data_bytes<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> u64 {
    tensors
        .into_iter()
        .map(|t| (t.numel() * t.kind().elt_size_in_bytes()) as u64)
        .sum()
}

/// Writes the pieces of one of `ranks` ranks, each of which has one slice of every tensor; the first also writes what
/// belongs together.
pub(crate) fn write_slices(
    folder: &Path,
    name: &str,
    pieces: &BTreeMap<String, Piece>,
    (rank, ranks): (usize, usize),
) -> Result<(), TrainerError> {
    let file = |rank: usize| format!("{name}-{:05}-of-{ranks:05}.safetensors", rank + 1);
    if rank == 0 {
        let cut = pieces.iter().filter(|(_, piece)| piece.start.is_some());
        let slices = Slices {
            files: (0..ranks).map(file).collect(),
            shapes: cut
                .map(|(name, piece)| (name.clone(), piece.shape.clone()))
                .collect(),
        };
        write_json(&index_path(folder, name), &slices)?;
    }
    Ok(weights::write(&folder.join(file(rank)), &tensors(pieces))?)
}

/// Writes whole tensors.
pub(crate) fn write_whole(
    folder: &Path,
    name: &str,
    pieces: &BTreeMap<String, Piece>,
) -> Result<(), TrainerError> {
    Ok(weights::write(&whole_path(folder, name), &tensors(pieces))?)
}

fn tensors(pieces: &BTreeMap<String, Piece>) -> BTreeMap<String, Tensor> {
    let all = pieces.iter();
    all.map(|(name, piece)| (name.clone(), piece.tensor.shallow_clone()))
        .collect()
}

fn whole_path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.safetensors"))
}

fn index_path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.slices.json"))
}

/// Overwrites each of `pieces` with the numbers of that name in the files of `name`.
///
/// The files must have exactly the names of `pieces`, each with its shape (checked before the first is
/// touched) and number format. One tensor, or slice in a file, is in memory twice at a time.
pub(crate) fn read_into(
    folder: &Path,
    name: &str,
    pieces: &BTreeMap<String, Piece>,
) -> Result<(), TrainerError> {
    let stored = Stored::open(folder, name)?;
    stored.check(pieces)?;
    for (name, piece) in pieces {
        let (found, kind) = (stored.readers[0].kind(name)?, piece.tensor.kind());
        if found != kind {
            let (found, expected) = (format!("{found:?}"), format!("{kind:?}"));
            return Err(stored.shape_error(name, found, expected));
        }
        no_grad(|| stored.read(name, piece))?;
    }
    Ok(())
}

/// Files that together hold some tensors.
struct Stored {
    path: PathBuf,
    readers: Vec<Reader>,
    /// The shapes in each file.
    held: Vec<BTreeMap<String, Vec<i64>>>,
    shapes: BTreeMap<String, Vec<i64>>,
    /// Those that are cut.
    cut: BTreeMap<String, Vec<i64>>,
}

impl Stored {
    fn open(folder: &Path, name: &str) -> Result<Self, TrainerError> {
        let index = index_path(folder, name);
        let (path, files, cut) = if index.exists() {
            let Slices { files, shapes } = read_json(&index)?;
            let files = files.iter().map(|file| folder.join(file)).collect();
            (index, files, shapes)
        } else {
            let path = whole_path(folder, name);
            (path.clone(), vec![path], BTreeMap::new())
        };
        let readers = files
            .iter()
            .map(|path| Reader::open(path))
            .collect::<Result<Vec<_>, _>>()?;
        let held: Vec<_> = readers.iter().map(Reader::tensors).collect();
        let Some(mut shapes) = held.first().cloned() else {
            return Err(TrainerError::NoSlices { path });
        };
        shapes.extend(cut.clone());
        Ok(Self {
            path,
            readers,
            held,
            shapes,
            cut,
        })
    }

    fn check(&self, pieces: &BTreeMap<String, Piece>) -> Result<(), TrainerError> {
        let name_error = |name: &str, problem| TrainerError::TensorName {
            path: self.path.clone(),
            name: name.to_owned(),
            problem,
        };
        for (name, piece) in pieces {
            let found = self.shapes.get(name);
            let found = found.ok_or_else(|| name_error(name, "missing"))?;
            if *found != piece.shape {
                let (found, expected) = (format!("{found:?}"), format!("{:?}", piece.shape));
                return Err(self.shape_error(name, found, expected));
            }
        }
        let extra = self.shapes.keys().find(|name| !pieces.contains_key(*name));
        extra.map_or(Ok(()), |name| Err(name_error(name, "unexpected")))
    }

    /// Copies what a piece covers out of each file that has some of it; the others are not read.
    fn read(&self, name: &str, piece: &Piece) -> Result<(), TrainerError> {
        let (kind, device) = (piece.tensor.kind(), piece.tensor.device());
        let target = piece.tensor.view([-1]);
        let first = piece.start.unwrap_or(0) as i64;
        let wanted = first..first + target.size()[0];
        let files = if self.cut.contains_key(name) {
            self.readers.len()
        } else {
            1
        };
        let mut start = 0;
        for (reader, held) in self.readers.iter().zip(&self.held).take(files) {
            let shape = held.get(name);
            let end = start + shape.map_or(0, |shape| shape.iter().product());
            let (from, to) = (wanted.start.max(start), wanted.end.min(end));
            if from < to {
                let tensor = reader.read(name, kind, device)?.view([-1]);
                let numbers = tensor.narrow(0, from - start, to - from);
                target
                    .narrow(0, from - first, to - from)
                    .f_copy_(&numbers)?;
            }
            start = end;
        }
        let numel: i64 = piece.shape.iter().product();
        if start == numel {
            return Ok(());
        }
        let found = format!("{start} numbers in {files} files");
        Err(self.shape_error(name, found, format!("{numel}")))
    }

    fn shape_error(&self, name: &str, found: String, expected: String) -> TrainerError {
        TrainerError::TensorShape {
            path: self.path.clone(),
            name: name.to_owned(),
            found,
            expected,
        }
    }
}
