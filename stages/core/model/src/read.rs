//! The weights of a folder, checked against the shape that its `config.json` says.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use recipe::families::Part;
use recipe::shape::{ModelShape, Positions};
use recipe::tensors::{Head, TensorSpec, tensors};
use runtime::files;
use serde_json::Value;
use tch::{Kind, Tensor};

use crate::ModelError;
use crate::positions::sinusoidal;
use crate::weights::{self, INDEX, Reader, WEIGHTS};

/// The files that hold the weights.
pub(crate) fn weight_files(dir: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let index = dir.join(INDEX);
    if dir.join(WEIGHTS).exists() || !index.exists() {
        return Ok(vec![dir.join(WEIGHTS)]);
    }
    let value: Value = files::read_json(&index)?;
    let names: Option<BTreeSet<&str>> = value
        .get("weight_map")
        .and_then(Value::as_object)
        .and_then(|map| map.values().map(Value::as_str).collect());
    let names = names.filter(|names| names.iter().all(|name| !name.contains('/')));
    names
        .map(|names| names.iter().map(|name| dir.join(name)).collect())
        .ok_or_else(|| ModelError::Config {
            path: index,
            reason: "`weight_map` is not an object of file names".to_owned(),
            hint: "copy or download the folder again",
        })
}

/// All parameters: none missing, none left over, each of its shape.
pub(crate) fn read_weights(
    dir: &Path,
    config: &Value,
    shape: &ModelShape,
    head: Head,
) -> Result<BTreeMap<String, Tensor>, ModelError> {
    let expected = tensors(shape, head)
        .into_iter()
        .map(|spec| (spec.name.clone(), spec));
    let mut folder = Folder {
        config,
        shape,
        expected: expected.collect(),
        params: BTreeMap::new(),
        repeats: repeats(shape, head),
        repeated: Vec::new(),
    };
    for path in weight_files(dir)? {
        let mut reader = Reader::open(&path)?;
        for (stored, found) in reader.tensors() {
            folder.take(&mut reader, &path, &stored, &found)?;
        }
    }
    if let Some((name, spec)) = folder.expected.pop_first() {
        return Err(ModelError::MissingTensor {
            path: dir.into(),
            name,
            expected: spec.dims,
        });
    }
    for (path, name, repeat, tensor) in &folder.repeated {
        repeat.check(path, name, tensor, shape, &folder.params)?;
    }
    Ok(folder.params)
}

/// A folder that is being read.
struct Folder<'a> {
    config: &'a Value,
    shape: &'a ModelShape,
    /// What has not been found yet.
    expected: BTreeMap<String, TensorSpec>,
    params: BTreeMap<String, Tensor>,
    repeats: BTreeMap<String, Repeat>,
    repeated: Vec<(PathBuf, String, Repeat, Tensor)>,
}

impl Folder<'_> {
    /// Takes one stored tensor, of dimensions `found`.
    fn take(
        &mut self,
        reader: &mut Reader,
        path: &Path,
        stored: &str,
        found: &[i64],
    ) -> Result<(), ModelError> {
        let extra = || ModelError::ExtraTensor {
            path: path.into(),
            name: stored.to_owned(),
            found: found.to_vec(),
        };
        let parts = self.shape.imported(self.config, stored);
        for Part { name, rows } in parts.ok_or_else(extra)? {
            let name = self.full_name(&name);
            if self.is_buffer(&name) {
                continue;
            }
            if let Some(repeat) = self.repeats.get(&name) {
                let tensor = read_float(reader, path, stored)?;
                self.repeated.push((path.into(), name, *repeat, tensor));
                continue;
            }
            let spec = self.expected.remove(&name).ok_or_else(extra)?;
            let end = rows.map(|(start, len)| (start + len) as i64);
            let mut dims = found.to_vec();
            if let (Some((_, len)), Some(first)) = (rows, dims.first_mut()) {
                *first = len as i64;
            }
            if spec.dims != dims || end.is_some_and(|end| end > found[0]) {
                return Err(ModelError::TensorShape {
                    path: path.into(),
                    name: stored.to_owned(),
                    found: found.to_vec(),
                    expected: spec.dims,
                });
            }
            let tensor = read_float(reader, path, stored)?;
            let tensor = match rows {
                Some((start, len)) => tensor.narrow(0, start as i64, len as i64).copy(),
                None => tensor,
            };
            self.params.insert(name, tensor);
        }
        Ok(())
    }

    /// The name within a whole model: the oldest folders name tensors from the trunk down.
    fn full_name(&self, stored: &str) -> String {
        let prefixed = format!("{}{stored}", self.shape.names().trunk);
        if self.expected.contains_key(&prefixed) || self.is_buffer(&prefixed) {
            prefixed
        } else {
            stored.to_owned()
        }
    }

    /// Whether this is a constant that old folders store among the weights.
    fn is_buffer(&self, name: &str) -> bool {
        let buffers = self.shape.names().buffers;
        buffers.iter().any(|end| name.ends_with(end))
    }
}

/// What a stored tensor repeats.
#[derive(Debug, Clone, Copy)]
enum Repeat {
    /// A tied output projection: the embedding.
    Embedding,
    /// The table of sinusoidal positions: sines and cosines.
    Sinusoidal,
}

/// The tensors that folders may store though the model does not need them.
fn repeats(shape: &ModelShape, head: Head) -> BTreeMap<String, Repeat> {
    let names = shape.names();
    let mut repeats = BTreeMap::new();
    if head == Head::Token && shape.tie_embeddings {
        repeats.insert(format!("{}.weight", names.head), Repeat::Embedding);
    }
    if shape.positions == Positions::Sinusoidal {
        repeats.insert(format!("{}.weight", names.positions), Repeat::Sinusoidal);
    }
    repeats
}

impl Repeat {
    /// Refuses a tensor that is another than what it should repeat.
    fn check(
        self,
        path: &Path,
        name: &str,
        tensor: &Tensor,
        shape: &ModelShape,
        params: &BTreeMap<String, Tensor>,
    ) -> Result<(), ModelError> {
        let embedding = format!("{}.weight", shape.names().embedding);
        let (same, reason, hint) = match self {
            Self::Embedding => (
                tensor.size() == params[&embedding].size() && tensor.equal(&params[&embedding]),
                format!("`{name}` differs from `{embedding}`, though config.json ties them"),
                "set `tie_word_embeddings` to false in config.json if they are meant to differ",
            ),
            Self::Sinusoidal => {
                let table_td = sinusoidal(shape.max_positions, shape.width);
                // Half-precision files hold rounded numbers.
                let near = || (tensor.to_kind(Kind::Double) - &table_td).abs().max();
                (
                    tensor.size() == table_td.size() && near().double_value(&[]) < 5e-3,
                    format!(
                        "`{name}` holds other numbers than the sinusoidal positions that config.json names"
                    ),
                    "remove `position_embedding_type` from config.json if the positions are learned",
                )
            }
        };
        if same {
            return Ok(());
        }
        let path = path.into();
        Err(ModelError::Config { path, reason, hint })
    }
}

fn read_float(reader: &mut Reader, path: &Path, name: &str) -> Result<Tensor, ModelError> {
    let tensor = reader.read(name)?;
    match tensor.kind() {
        kind if weights::is_float(kind) => Ok(tensor),
        other => Err(ModelError::TensorType {
            path: path.into(),
            name: name.to_owned(),
            found: format!("{other:?}"),
        }),
    }
}
