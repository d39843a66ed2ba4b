//! The weights of a folder, checked against the shape that its `config.json` says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use recipe::families::Target;
use recipe::plan::Quantization;
use recipe::shape::{ModelShape, Positions};
use recipe::tensors::{Head, TensorSpec, WEIGHT_FILES, WEIGHTS, tensors};
use runtime::files;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::ModelError;
use crate::gguf;
use crate::parameters::{Parameters, Quantized};
use crate::positions::{divisors, sinusoidal};
use crate::quantized::QuantizedMatrix;
use crate::weights::Reader;

/// A file of weights.
pub(crate) struct WeightFile {
    pub(crate) path: PathBuf,
    /// The tensors that an index puts there.
    listed: Vec<String>,
}

/// The files that hold the weights: safetensors before pickles, one before several.
pub(crate) fn weight_files(dir: &Path) -> Result<Vec<WeightFile>, ModelError> {
    let name = WEIGHT_FILES.iter().find(|name| dir.join(name).exists());
    let name = *name.unwrap_or(&WEIGHTS);
    let path = dir.join(name);
    if path.extension().is_none_or(|end| end != "json") {
        let listed = Vec::new();
        return Ok(vec![WeightFile { path, listed }]);
    }
    let index: Value = files::read_json(&path)?;
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let map = index.get("weight_map").and_then(Value::as_object);
    for (tensor, file) in map.into_iter().flatten() {
        // A name alone: an index is no way out of its folder.
        let file = file.as_str().filter(|file| !file.contains(['/', '\\']));
        let file = file.unwrap_or_default().to_owned();
        shards.entry(file).or_default().push(tensor.clone());
    }
    if shards.is_empty() || shards.contains_key("") {
        return Err(ModelError::Config {
            path,
            reason: "`weight_map` is not an object of file names".to_owned(),
            hint: "copy or download the folder again",
        });
    }
    let files = shards.into_iter().map(|(file, listed)| WeightFile {
        path: dir.join(file),
        listed,
    });
    Ok(files.collect())
}

impl WeightFile {
    /// Opens it, and refuses an index that promises what is not there.
    pub(crate) fn open(&self) -> Result<Reader, ModelError> {
        let reader = Reader::open(&self.path)?;
        let found = reader.tensors();
        let missing = self.listed.iter().find(|name| !found.contains_key(*name));
        missing.map_or(Ok(reader), |name| {
            Err(ModelError::Config {
                path: self.path.clone(),
                reason: format!("the index puts `{name}` here, but it is not"),
                hint: "copy or download the folder again",
            })
        })
    }
}

/// How weights are kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Storage {
    pub(crate) kind: Kind,
    pub(crate) device: Device,
    /// How the blocks' matrices are; `None`: in `kind`.
    pub(crate) quantize: Option<Quantization>,
}

/// All parameters: none missing, none left over, each of its shape.
pub(crate) fn read_weights(
    path: &Path,
    source: Source<'_>,
    shape: &ModelShape,
    head: Head,
    storage: Storage,
) -> Result<Parameters, ModelError> {
    let expected = tensors(shape, head)
        .into_iter()
        .map(|spec| (spec.name.clone(), spec));
    let mut folder = Folder {
        source,
        shape,
        storage,
        expected: expected.collect(),
        params: BTreeMap::new(),
        matrices: BTreeMap::new(),
        repeats: repeats(source, shape, head),
        repeated: Vec::new(),
    };
    let files = match source {
        Source::Folder(_) => weight_files(path)?,
        Source::Gguf => vec![WeightFile {
            path: path.into(),
            listed: Vec::new(),
        }],
    };
    for file in files {
        let reader = file.open()?;
        for (stored, found) in reader.tensors() {
            folder.take(&reader, &file.path, &stored, &found)?;
        }
    }
    if let Some((name, spec)) = folder.expected.pop_first() {
        return Err(ModelError::MissingTensor {
            path: path.into(),
            name,
            expected: spec.dims,
        });
    }
    for repeated in &folder.repeated {
        repeated.check(shape, storage, &folder.params)?;
    }
    Ok(Parameters {
        quantized: storage.quantize.map(|_| Quantized {
            matrices: folder.matrices,
            origin: path.into(),
        }),
        ..folder.params.into()
    })
}

/// Whose names and layouts the weights have.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source<'a> {
    /// Hugging Face's, in a folder with this `config.json`.
    Folder(&'a Value),
    /// ggml's, in one file.
    Gguf,
}

impl Source<'_> {
    /// Where a stored tensor goes; `None` for a name that does not belong to such a model.
    fn targets(self, stored: &str, shape: &ModelShape) -> Option<Vec<Target>> {
        match self {
            Self::Folder(config) => shape.imported(config, stored),
            Self::Gguf => {
                let name = gguf::name_of(stored)?;
                Some(vec![Target { name, rows: None }])
            }
        }
    }

    /// Whether a stored tensor is no constant.
    pub(crate) fn is_weight(self, stored: &str, shape: &ModelShape) -> bool {
        let targets = self.targets(stored, shape);
        !targets.is_some_and(|targets| targets.is_empty()) && !is_buffer(stored, shape)
    }

    /// The tensor in Hugging Face's layout.
    fn restore(self, tensor: Tensor, name: &str, shape: &ModelShape) -> Tensor {
        match self {
            Self::Folder(_) => tensor,
            Self::Gguf => gguf::restore(tensor, name, shape.heads, shape.kv_heads),
        }
    }
}

/// A folder that is being read.
struct Folder<'a> {
    source: Source<'a>,
    shape: &'a ModelShape,
    storage: Storage,
    /// What has not been found yet.
    expected: BTreeMap<String, TensorSpec>,
    params: BTreeMap<String, Tensor>,
    /// What is quantised.
    matrices: BTreeMap<String, QuantizedMatrix>,
    repeats: BTreeMap<String, Repeat>,
    repeated: Vec<Repeated>,
}

impl Folder<'_> {
    /// Takes one stored tensor, of dimensions `found`.
    fn take(
        &mut self,
        reader: &Reader,
        path: &Path,
        stored: &str,
        found: &[i64],
    ) -> Result<(), ModelError> {
        let extra = || ModelError::ExtraTensor {
            path: path.into(),
            name: stored.to_owned(),
            found: found.to_vec(),
        };
        let all = found.first().copied().unwrap_or(1);
        let targets = self.source.targets(stored, self.shape);
        let targets = targets.ok_or_else(extra)?;
        let counts = targets.iter().map(|target| target.rows.map(|rows| rows.1));
        // What is taken apart must be used up.
        let of_targets: Option<usize> = counts.sum();
        let fits = targets.is_empty() || of_targets.is_none_or(|count| count as i64 == all);
        for Target { name, rows } in targets {
            let name = self.full_name(&name);
            if is_buffer(&name, self.shape) {
                continue;
            }
            let rows = rows.map_or((0, all), |(first, count)| (first as i64, count as i64));
            let read = |kind| {
                reader.float_kind(stored)?;
                reader.read_rows(stored, rows, kind, self.storage.device)
            };
            if let Some(repeat) = self.repeats.get(&name) {
                reader.float_kind(stored)?;
                self.repeated.push(Repeated {
                    path: path.into(),
                    stored: stored.to_owned(),
                    name,
                    dims: found.to_vec(),
                    repeat: *repeat,
                });
                continue;
            }
            let spec = self.expected.remove(&name).ok_or_else(extra)?;
            let mut dims = found.to_vec();
            if let Some(first) = dims.first_mut() {
                *first = rows.1;
            }
            if spec.dims != dims || !fits {
                let mut expected = spec.dims;
                if let (Some(all), Some(first)) = (of_targets, expected.first_mut()) {
                    *first = all as i64;
                }
                return Err(ModelError::TensorShape {
                    path: path.into(),
                    name: stored.to_owned(),
                    found: found.to_vec(),
                    expected,
                });
            }
            let is_matrix = spec.block_matrix(self.shape).is_some();
            let quantize = self.storage.quantize.filter(|_| is_matrix);
            let kind = quantize.map_or(self.storage.kind, |_| Kind::Float);
            let tensor = self.source.restore(read(kind)?, &name, self.shape);
            match quantize {
                Some(quantize) => {
                    let matrix = QuantizedMatrix::new(&self.out_in(tensor), quantize);
                    self.matrices.insert(name, matrix);
                }
                None => {
                    self.params.insert(name, tensor);
                }
            }
        }
        Ok(())
    }

    /// A matrix as `[out, in]`, from its family's layout.
    fn out_in(&self, weight: Tensor) -> Tensor {
        if self.shape.names().in_out {
            weight.tr()
        } else {
            weight
        }
    }

    /// The name within a whole model: the oldest folders name tensors from the trunk down.
    fn full_name(&self, stored: &str) -> String {
        let prefixed = format!("{}{stored}", self.shape.names().trunk);
        if self.expected.contains_key(&prefixed) || is_buffer(&prefixed, self.shape) {
            prefixed
        } else {
            stored.to_owned()
        }
    }
}

/// Whether this is a constant that old folders store among the weights.
fn is_buffer(name: &str, shape: &ModelShape) -> bool {
    let buffers = shape.names().buffers;
    buffers.iter().any(|end| name.ends_with(end))
}

/// Rows of a stored tensor that are compared at once.
const COMPARED_ROWS: i64 = 4096;

/// What a stored tensor repeats.
#[derive(Debug, Clone, Copy)]
enum Repeat {
    /// A tied output projection: the embedding.
    Embedding,
    /// The table of sinusoidal positions: sines and cosines.
    Sinusoidal,
    /// What scaled rotary positions divide their frequencies by.
    Divisors,
}

/// The tensors that folders may store though the model does not need them.
fn repeats(source: Source<'_>, shape: &ModelShape, head: Head) -> BTreeMap<String, Repeat> {
    let names = shape.names();
    let mut repeats = BTreeMap::new();
    if head == Head::Token && shape.tie_embeddings {
        repeats.insert(format!("{}.weight", names.head), Repeat::Embedding);
    }
    if shape.positions == Positions::Sinusoidal {
        repeats.insert(format!("{}.weight", names.positions), Repeat::Sinusoidal);
    }
    if matches!(source, Source::Gguf) {
        repeats.insert(gguf::FREQUENCIES.to_owned(), Repeat::Divisors);
    }
    repeats
}

/// A stored tensor that repeats something. It is compared once all else is read, and is never kept.
#[derive(Debug)]
struct Repeated {
    path: PathBuf,
    stored: String,
    name: String,
    dims: Vec<i64>,
    repeat: Repeat,
}

impl Repeated {
    /// Whether it is `tensor`, number for number, a block of rows at a time.
    fn equals(&self, reader: &Reader, tensor: &Tensor) -> Result<bool, ModelError> {
        if self.dims != tensor.size() {
            return Ok(false);
        }
        let all = self.dims.first().copied().unwrap_or(0);
        let (kind, device) = (tensor.kind(), tensor.device());
        for first in (0..all).step_by(COMPARED_ROWS as usize) {
            let rows = COMPARED_ROWS.min(all - first);
            let block = reader.read_rows(&self.stored, (first, rows), kind, device)?;
            if !block.equal(&tensor.narrow(0, first, rows)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Refuses one that is another than what it should repeat.
    fn check(
        &self,
        shape: &ModelShape,
        storage: Storage,
        params: &BTreeMap<String, Tensor>,
    ) -> Result<(), ModelError> {
        let (path, name) = (&self.path, &self.name);
        let reader = Reader::open(path)?;
        let whole = || reader.read(&self.stored, storage.kind, storage.device);
        let embedding = format!("{}.weight", shape.names().embedding);
        let (same, reason, hint) = match self.repeat {
            Repeat::Embedding => (
                self.equals(&reader, &params[&embedding])?,
                format!("`{name}` differs from `{embedding}`, though config.json ties them"),
                "set `tie_word_embeddings` to false in config.json if they are meant to differ",
            ),
            Repeat::Sinusoidal => {
                let tensor = whole()?;
                let table_td = sinusoidal(shape.max_positions, shape.width);
                // Half-precision files hold rounded numbers.
                let stored_td = || tensor.to_device(Device::Cpu).to_kind(Kind::Double);
                let near = || (stored_td() - &table_td).abs().max();
                (
                    tensor.size() == table_td.size() && near().double_value(&[]) < 5e-3,
                    format!(
                        "`{name}` holds other numbers than the sinusoidal positions that config.json names"
                    ),
                    "remove `position_embedding_type` from config.json if the positions are learned",
                )
            }
            Repeat::Divisors => {
                let tensor = whole()?;
                let divisors_f = shape.rotary().map(divisors);
                let stored_f = tensor.to_device(Device::Cpu).to_kind(Kind::Double);
                let near = |of: &Tensor| {
                    let apart = (&stored_f / of - 1.0).abs().max();
                    stored_f.size() == of.size() && apart.double_value(&[]) < 1e-3
                };
                (
                    divisors_f.as_ref().is_some_and(near),
                    format!("`{name}` are not the divisors of Llama 3's positions"),
                    "use the model's Hugging Face folder",
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
