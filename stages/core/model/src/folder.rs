//! A model's `config.json` and weights as a Hugging Face folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use recipe::shape::{ModelShape, Positions};
use recipe::tensors::{Head, TensorSpec, tensors};
use runtime::files;
use runtime::manifest::Manifest;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::ModelError;
use crate::positions::sinusoidal;
use crate::transformer::Model;
use crate::weights::{self, Reader};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Ids that `config.json` repeats from the tokenizer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SpecialIds {
    pub(crate) bos: Option<u32>,
    pub(crate) eos: u32,
    pub(crate) pad: u32,
}

impl Model {
    /// Reads a model folder: ours or any of a known family, of one file or several. Weights of any
    /// float type become `kind`. A `manifest.json`, where there is one, is verified first.
    ///
    /// # Errors
    /// Names the file, and the tensor with both shapes, that does not fit.
    pub fn load(dir: &Path, device: Device, kind: Kind) -> Result<Self, ModelError> {
        let path = dir.join(CONFIG);
        if !path.exists() {
            return Err(ModelError::Missing { path });
        }
        Manifest::verify(dir)?;
        let config: Value = files::read_json(&path)?;
        let shape = ModelShape::from_hf(&config).map_err(|error| ModelError::Config {
            path: path.clone(),
            reason: error.to_string(),
            hint: "`rlhf model sizes` lists the families that can be read",
        })?;
        let head = head_of(&config, &path)?;
        let mut params = read_weights(dir, &shape, head)?;
        for tensor in params.values_mut() {
            *tensor = tensor.to_kind(kind).to_device(device);
        }
        let reward_shift = config
            .get("reward_shift")
            .and_then(Value::as_f64)
            .unwrap_or(0.0);
        Ok(Self::from_params(shape, head, reward_shift, params))
    }

    /// Writes `config.json`, `generation_config.json` and `model.safetensors` into an existing
    /// folder, in the parameters' type. Equal models give equal bytes. (With the tokenizer:
    /// [`crate::write_folder`].)
    ///
    /// # Errors
    /// When the disk is full or writing fails.
    pub fn save(&self, dir: &Path) -> Result<(), ModelError> {
        self.save_with(dir, None)
    }

    pub(crate) fn save_with(&self, dir: &Path, ids: Option<SpecialIds>) -> Result<(), ModelError> {
        let mut config = Value::Object(self.shape.to_hf());
        config["architectures"] =
            json!([self.shape.family.architecture(self.head == Head::Scalar)]);
        let mut generation = json!({ "do_sample": true });
        config["torch_dtype"] = json!(match self.kind() {
            Kind::Double => "float64",
            Kind::BFloat16 => "bfloat16",
            Kind::Half => "float16",
            _ => "float32",
        });
        if self.head == Head::Scalar {
            config["reward_shift"] = json!(self.reward_shift);
            config["num_labels"] = json!(1);
        }
        if let Some(SpecialIds { bos, eos, pad }) = ids {
            for target in [&mut config, &mut generation] {
                target["bos_token_id"] = json!(bos);
                target["eos_token_id"] = json!(eos);
                target["pad_token_id"] = json!(pad);
            }
        }
        files::write_json(&dir.join(CONFIG), &config)?;
        files::write_json(&dir.join("generation_config.json"), &generation)?;
        let mut tensors: BTreeMap<String, Tensor> = self
            .params()
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.shallow_clone()))
            .collect();
        tensors.extend(self.stored_positions());
        weights::write(&dir.join(WEIGHTS), &tensors)
    }
}

fn head_of(config: &Value, path: &Path) -> Result<Head, ModelError> {
    let names = config.get("architectures").and_then(Value::as_array);
    let name = names
        .and_then(|names| names.first())
        .and_then(Value::as_str)
        .unwrap_or("");
    let refuse = |reason: String, hint| ModelError::Config {
        path: path.into(),
        reason,
        hint,
    };
    if name.ends_with("ForCausalLM") || name.ends_with("LMHeadModel") {
        return Ok(Head::Token);
    }
    if !name.ends_with("ForSequenceClassification") {
        let reason = format!("architectures names `{name}`");
        let hint = "…ForCausalLM, GPT2LMHeadModel and …ForSequenceClassification can be read";
        return Err(refuse(reason, hint));
    }
    let labels = config
        .get("id2label")
        .and_then(Value::as_object)
        .map(serde_json::Map::len);
    let num_labels = config
        .get("num_labels")
        .and_then(Value::as_u64)
        .map(|n| n as usize);
    match num_labels.or(labels) {
        Some(1) => Ok(Head::Scalar),
        // transformers' default is two labels.
        other => {
            let reason = format!("a classifier of {} labels", other.unwrap_or(2));
            Err(refuse(
                reason,
                "a reward model has one label (`num_labels`: 1)",
            ))
        }
    }
}

/// The files that hold the weights.
fn weight_files(dir: &Path) -> Result<Vec<PathBuf>, ModelError> {
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

/// All parameters, checked against the shape: none missing, none left over.
fn read_weights(
    dir: &Path,
    shape: &ModelShape,
    head: Head,
) -> Result<BTreeMap<String, Tensor>, ModelError> {
    let mut expected: BTreeMap<String, TensorSpec> = tensors(shape, head)
        .into_iter()
        .map(|spec| (spec.name.clone(), spec))
        .collect();
    let repeats = repeats(shape, head);
    let (mut params, mut repeated) = (BTreeMap::new(), Vec::new());
    for path in weight_files(dir)? {
        let mut reader = Reader::open(&path)?;
        for (stored, found) in reader.tensors() {
            let name = full_name(&stored, shape, &expected);
            if is_buffer(&name, shape) {
                continue;
            }
            if let Some(repeat) = repeats.get(&name) {
                let tensor = read_float(&mut reader, &path, &stored)?;
                repeated.push((path.clone(), name, *repeat, tensor));
                continue;
            }
            let Some(spec) = expected.remove(&name) else {
                return Err(ModelError::ExtraTensor {
                    path,
                    name: stored,
                    found,
                });
            };
            if spec.dims != found {
                let expected = spec.dims;
                return Err(ModelError::TensorShape {
                    path,
                    name: stored,
                    found,
                    expected,
                });
            }
            params.insert(name, read_float(&mut reader, &path, &stored)?);
        }
    }
    if let Some((name, spec)) = expected.pop_first() {
        return Err(ModelError::MissingTensor {
            path: dir.into(),
            name,
            expected: spec.dims,
        });
    }
    for (path, name, repeat, tensor) in &repeated {
        repeat.check(path, name, tensor, shape, &params)?;
    }
    Ok(params)
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

/// The name within a whole model: the oldest folders name tensors from the trunk down.
fn full_name(stored: &str, shape: &ModelShape, expected: &BTreeMap<String, TensorSpec>) -> String {
    let prefixed = format!("{}{stored}", shape.names().trunk);
    if expected.contains_key(&prefixed) || is_buffer(&prefixed, shape) {
        prefixed
    } else {
        stored.to_owned()
    }
}

/// Constants that old folders store among the weights.
fn is_buffer(name: &str, shape: &ModelShape) -> bool {
    let buffers = shape.names().buffers;
    buffers.iter().any(|end| name.ends_with(end))
}

fn read_float(reader: &mut Reader, path: &Path, name: &str) -> Result<Tensor, ModelError> {
    let tensor = reader.read(name)?;
    match tensor.kind() {
        Kind::Double | Kind::Float | Kind::Half | Kind::BFloat16 => Ok(tensor),
        other => Err(ModelError::TensorType {
            path: path.into(),
            name: name.to_owned(),
            found: format!("{other:?}"),
        }),
    }
}
