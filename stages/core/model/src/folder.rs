//! A model's `config.json` and weights as a Hugging Face folder.

use std::collections::BTreeMap;
use std::path::Path;

use recipe::plan::Quantization;
use recipe::shape::ModelShape;
use recipe::tensors::Head;
use runtime::files;
use runtime::manifest::Manifest;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::ModelError;
use crate::read::{Source, Storage, read_weights, weight_files};
use crate::transformer::Model;
use crate::weights::{self, Reader, SHARD_BYTES};

const CONFIG: &str = "config.json";

/// Ids that `config.json` repeats from the tokenizer.
#[derive(Debug, Clone)]
pub(crate) struct SpecialIds {
    pub(crate) bos: Option<u32>,
    /// The tokens that end a reply, EOS first.
    pub(crate) stop: Vec<u32>,
    /// A token that no text holds; `None` where the tokenizer has none.
    pub(crate) pad: Option<u32>,
}

impl Model {
    /// Reads a model folder: ours or any of a known family, of one file or several. Weights of any
    /// float type become `kind`. A `manifest.json`, where there is one, is verified first.
    ///
    /// # Errors
    /// Names the file, and the tensor with both shapes, that does not fit.
    pub fn load(dir: &Path, device: Device, kind: Kind) -> Result<Self, ModelError> {
        Self::load_frozen(dir, device, kind, None)
    }

    /// The same for a model whose weights will not be trained: where `quantize` says so, the blocks' matrices
    /// are rounded to few bits, one by one as they are read, and all else becomes `kind`.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_frozen(
        dir: &Path,
        device: Device,
        kind: Kind,
        quantize: Option<Quantization>,
    ) -> Result<Self, ModelError> {
        let path = dir.join(CONFIG);
        if !path.exists() {
            return Err(ModelError::Missing { path });
        }
        Manifest::verify(dir)?;
        let config: Value = files::read_json(&path)?;
        let shape = shape_of(&config, &path)?;
        let head = head_of(&config, &path)?;
        let source = Source::Folder(&config);
        let storage = Storage {
            kind,
            device,
            quantize,
        };
        let parameters = read_weights(dir, source, &shape, head, storage)?;
        let reward_shift = config
            .get("reward_shift")
            .and_then(Value::as_f64)
            .unwrap_or(0.0);
        Ok(Self::from_parameters(shape, head, reward_shift, parameters))
    }

    /// The narrowest type that holds the weights of a folder, or of a GGUF file, without rounding any.
    ///
    /// # Errors
    /// When there are no weights of floats, or `config.json` cannot be read.
    pub fn stored_kind(path: &Path) -> Result<Kind, ModelError> {
        let mut kinds = Vec::new();
        if path.is_file() {
            kinds.extend(Reader::open(path)?.float_kinds().into_values());
        } else {
            let config_path = path.join(CONFIG);
            let config: Value = files::read_json(&config_path)?;
            let shape = shape_of(&config, &config_path)?;
            let source = Source::Folder(&config);
            for file in weight_files(path)? {
                let reader = file.open()?;
                let stored = reader.float_kinds().into_iter();
                let weights = stored.filter(|(name, _)| source.is_weight(name, &shape));
                kinds.extend(weights.map(|(_, kind)| kind));
            }
        }
        let widest = kinds.into_iter().reduce(weights::wider);
        widest.ok_or_else(|| ModelError::Malformed {
            path: path.into(),
            reason: "it holds no weights of floats".to_owned(),
        })
    }

    /// Writes `config.json`, `generation_config.json` and `model.safetensors` into an existing
    /// folder, in the parameters' type. Equal models give equal bytes. (With the tokenizer:
    /// [`crate::write_folder`].)
    ///
    /// # Errors
    /// When the model is quantised, the disk is full or writing fails.
    ///
    /// # Panics
    /// When the model has adapters: they are [saved apart](Self::save_adapter), or [merged](Self::merged).
    pub fn save(&self, dir: &Path) -> Result<(), ModelError> {
        self.save_with(dir, None, SHARD_BYTES)
    }

    pub(crate) fn save_with(
        &self,
        dir: &Path,
        ids: Option<SpecialIds>,
        shard_bytes: u64,
    ) -> Result<(), ModelError> {
        assert!(!self.has_adapter(), "adapters are saved apart or merged");
        self.assert_whole();
        if self.is_quantized() {
            return Err(ModelError::Quantized { path: dir.into() });
        }
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
        if let Some(SpecialIds { bos, stop, pad }) = ids {
            // A list only where there are several, as transformers writes it.
            let eos = match &stop[..] {
                [] => Value::Null,
                [single] => json!(single),
                several => json!(several),
            };
            for target in [&mut config, &mut generation] {
                target["bos_token_id"] = json!(bos);
                target["eos_token_id"] = eos.clone();
                if let Some(pad) = pad {
                    target["pad_token_id"] = json!(pad);
                }
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
        weights::write_shards(dir, &tensors, shard_bytes)
    }
}

/// The shape that a `config.json` says.
pub(crate) fn shape_of(config: &Value, path: &Path) -> Result<ModelShape, ModelError> {
    ModelShape::from_hf(config).map_err(|shape| ModelError::Shape {
        path: path.into(),
        shape,
    })
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
    let chat_glm = ["ChatGLMModel", "ChatGLMForConditionalGeneration"].contains(&name);
    if name.ends_with("ForCausalLM") || name.ends_with("LMHeadModel") || chat_glm {
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
