//! A model's `config.json` and weights as a Hugging Face folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use recipe::shape::ModelShape;
use runtime::files;
use runtime::manifest::Manifest;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::ModelError;
use crate::layout::{Head, TensorSpec, tensors};
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
            hint: "models of the GPT-2 and Llama families can be read",
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
        weights::write(&dir.join(WEIGHTS), self.params())
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
    let (mut params, mut tied) = (BTreeMap::new(), None);
    for path in weight_files(dir)? {
        let mut reader = Reader::open(&path)?;
        for (stored, found) in reader.tensors() {
            let name = full_name(&stored, shape, &expected);
            if is_buffer(&name) {
                continue;
            }
            if name == "lm_head.weight" && head == Head::Token && shape.tie_embeddings {
                tied = Some((path.clone(), read_float(&mut reader, &path, &stored)?));
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
    check_tied(tied, shape, &params)?;
    Ok(params)
}

/// A stored output projection of a tied model must be the embedding that it repeats.
fn check_tied(
    tied: Option<(PathBuf, Tensor)>,
    shape: &ModelShape,
    params: &BTreeMap<String, Tensor>,
) -> Result<(), ModelError> {
    let Some((path, output_vd)) = tied else {
        return Ok(());
    };
    let embedding = match shape.family {
        recipe::shape::Family::Gpt2 => "transformer.wte.weight",
        recipe::shape::Family::Llama => "model.embed_tokens.weight",
    };
    let embedding_vd = &params[embedding];
    if output_vd.size() == embedding_vd.size() && output_vd.equal(embedding_vd) {
        return Ok(());
    }
    Err(ModelError::Config {
        path,
        reason: format!(
            "`lm_head.weight` differs from `{embedding}`, though config.json ties them"
        ),
        hint: "set `tie_word_embeddings` to false in config.json if they are meant to differ",
    })
}

/// The name within a whole model: the oldest GPT-2 folders name tensors from the trunk down.
fn full_name(stored: &str, shape: &ModelShape, expected: &BTreeMap<String, TensorSpec>) -> String {
    let prefix = match shape.family {
        recipe::shape::Family::Gpt2 => "transformer.",
        recipe::shape::Family::Llama => "model.",
    };
    let prefixed = format!("{prefix}{stored}");
    if expected.contains_key(&prefixed) || is_buffer(&prefixed) {
        prefixed
    } else {
        stored.to_owned()
    }
}

/// Constants that old folders store among the weights.
fn is_buffer(name: &str) -> bool {
    [".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"]
        .iter()
        .any(|end| name.ends_with(end))
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
