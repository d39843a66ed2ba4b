//! Adapters as folders of peft: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use recipe::lora::{LORA_A, LoraPlan, matrix_names};
use recipe::tensors::{Head, SCALAR_HEAD};
use runtime::files;
use runtime::manifest::Manifest;
use serde_json::{Map, Value, json};
use tch::Tensor;

use crate::ModelError;
use crate::adapter::Adapter;
use crate::transformer::Model;
use crate::weights::{self, Reader};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// What older versions of peft write.
const OLD_WEIGHTS: &str = "adapter_model.bin";
/// Begins every name: peft's model around transformers' model.
const PREFIX: &str = "base_model.model.";
/// Names that peft gives to scalar heads of all families; one is a model's own.
const HEADS: [&str; 2] = ["score", "classifier"];

/// Keys that are read here, or concern only how the adapters were trained. `fan_in_fan_out` is what peft
/// itself corrects; `target_modules` are those that have tensors.
const READ: [&str; 18] = [
    "peft_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "task_type",
    "inference_mode",
    "r",
    "target_modules",
    "exclude_modules",
    "lora_alpha",
    "lora_dropout",
    "fan_in_fan_out",
    "use_rslora",
    "modules_to_save",
    "megatron_core",
    "qalora_group_size",
    "reward_shift",
];
/// Keys that have one meaning here, with the values that say it.
const FIXED: [(&str, &[&str]); 2] = [
    ("bias", &["\"none\""]),
    // The other ways change the weights under the adapters, too.
    (
        "init_lora_weights",
        &["true", "false", "\"gaussian\"", "\"eva\"", "null"],
    ),
];

impl Model {
    /// This model's weights, shared, under the adapters of a peft folder instead of its own. Adapters of a
    /// sequence classifier bring their scalar head.
    ///
    /// # Errors
    /// Files that are missing or malformed; every setting that would change the computation and is not
    /// computed here, by name; tensors that do not fit this model.
    pub fn with_adapter(&self, dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join(CONFIG);
        if !path.exists() {
            return Err(ModelError::MissingAdapter { path });
        }
        Manifest::verify(dir)?;
        let config = PeftConfig {
            values: files::read_json(&path)?,
            path,
        };
        config.check()?;
        let file = AdapterFile::open(dir)?;
        let stored: Vec<String> = file.reader.tensors().into_keys().collect();
        let plan = config.plan(self, &stored)?;
        let specs = plan.tensors(&self.shape);
        let mut expected: BTreeMap<String, Vec<i64>> = specs
            .into_iter()
            .map(|spec| (spec.name, spec.dims))
            .collect();
        let head = config.head()?;
        let mut parameters = self.parameters.map(Tensor::shallow_clone);
        let dense = &mut parameters.dense;
        if head == Head::Scalar {
            dense.remove(&format!("{}.weight", self.shape.names().head));
            expected.insert(
                SCALAR_HEAD.to_owned(),
                vec![1, self.shape.embedding_width as i64],
            );
        } else if self.head == Head::Scalar {
            return Err(config.refuse(
                "task_type is CAUSAL_LM, the model under it has a scalar head".to_owned(),
                "name the language model that the adapter was trained on",
            ));
        }
        let mut tensors = file.read(expected, self)?;
        if let Some(score) = tensors.remove(SCALAR_HEAD) {
            dense.insert(SCALAR_HEAD.to_owned(), score);
        }
        parameters.adapter = Some(Adapter {
            plan,
            base: config.text("base_model_name_or_path").unwrap_or_default(),
            tensors,
        });
        let shift = config.get("reward_shift").as_f64().unwrap_or(0.0);
        let shape = self.shape.clone();
        Ok(Self::from_parameters(shape, head, shift, parameters))
    }

    /// Writes the adapters into an existing folder, in the parameters' type, with a scalar head as one of
    /// peft's `modules_to_save`. Equal adapters give equal bytes.
    ///
    /// # Errors
    /// When the disk is full or writing fails.
    ///
    /// # Panics
    /// When the model has no adapters.
    pub fn save_adapter(&self, dir: &Path) -> Result<(), ModelError> {
        let Some(Adapter { plan, base, .. }) = &self.parameters.adapter else {
            panic!("a model without adapters saves none");
        };
        let scalar = self.head == Head::Scalar;
        let mut config = json!({
            "peft_type": "LORA",
            "task_type": task_of(self.head),
            "base_model_name_or_path": base,
            "r": plan.r,
            "lora_alpha": whole(plan.alpha),
            "lora_dropout": plan.dropout,
            "use_rslora": plan.rslora,
            "target_modules": plan.target_modules,
            "fan_in_fan_out": self.shape.names().in_out,
            "bias": "none",
            "modules_to_save": scalar.then_some([HEADS[0]]),
            "inference_mode": true,
        });
        if scalar {
            // Ours: what normalises the reward, as in a reward model's config.json.
            config["reward_shift"] = json!(self.reward_shift);
        }
        files::write_json(&dir.join(CONFIG), &config)?;
        let trained = self.trainable().into_iter();
        let named = trained.map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor));
        weights::write(&dir.join(WEIGHTS), &named.collect())
    }
}

/// What peft calls the task of a model with this head.
fn task_of(head: Head) -> &'static str {
    match head {
        Head::Token => "CAUSAL_LM",
        Head::Scalar => "SEQ_CLS",
    }
}

/// A number as Python would write it.
fn whole(number: f64) -> Value {
    if number.fract() == 0.0 {
        json!(number as i64)
    } else {
        json!(number)
    }
}

/// An `adapter_config.json`.
struct PeftConfig {
    path: PathBuf,
    values: Map<String, Value>,
}

impl PeftConfig {
    fn get(&self, key: &str) -> &Value {
        self.values.get(key).unwrap_or(&Value::Null)
    }

    fn text(&self, key: &str) -> Option<String> {
        self.get(key).as_str().map(str::to_owned)
    }

    fn refuse(&self, reason: String, hint: &'static str) -> ModelError {
        ModelError::Config {
            path: self.path.clone(),
            reason,
            hint,
        }
    }

    /// Refuses what would change the computation and is not computed here.
    fn check(&self) -> Result<(), ModelError> {
        let hint = "merge the adapter with peft (`merge_and_unload`), and use the merged model";
        if self.get("peft_type") != "LORA" {
            let reason = format!("peft_type is {}, LORA can be read", self.get("peft_type"));
            return Err(self.refuse(reason, hint));
        }
        for (key, value) in &self.values {
            let is_empty = match value {
                Value::Null | Value::Bool(false) => true,
                Value::Array(items) => items.is_empty(),
                Value::Object(map) => map.is_empty(),
                _ => false,
            };
            let fixed = FIXED.iter().find(|(name, _)| name == key);
            let fits = match fixed {
                Some((_, values)) => values.contains(&value.to_string().as_str()),
                None => is_empty || READ.contains(&key.as_str()),
            };
            if !fits {
                return Err(self.refuse(format!("{key} is {value}: not computed here"), hint));
            }
        }
        Ok(())
    }

    fn head(&self) -> Result<Head, ModelError> {
        let saved = self.get("modules_to_save").as_array();
        let mut saved = saved.into_iter().flatten().peekable();
        let head = match saved.peek() {
            Some(_) => Head::Scalar,
            None => Head::Token,
        };
        let task = self.get("task_type");
        let only_head = saved.all(|module| HEADS.iter().any(|name| module == name));
        if only_head && (task.is_null() || task == task_of(head)) {
            return Ok(head);
        }
        let modules = self.get("modules_to_save");
        Err(self.refuse(
            format!("task_type is {task} with modules_to_save {modules}"),
            "CAUSAL_LM without such modules, and SEQ_CLS with `score`, can be read",
        ))
    }

    /// What the file says, and which matrices have tensors among those that are `stored`.
    fn plan(&self, model: &Model, stored: &[String]) -> Result<LoraPlan, ModelError> {
        let rank = self
            .get("r")
            .as_u64()
            .filter(|rank| (1..1 << 32).contains(rank));
        let alpha = self.get("lora_alpha").as_f64().filter(|alpha| *alpha > 0.0);
        let (Some(r), Some(alpha)) = (rank, alpha) else {
            let (r, alpha) = (self.get("r"), self.get("lora_alpha"));
            return Err(self.refuse(
                format!("r is {r} and lora_alpha {alpha}: r must lie between 1 and 2^32, lora_alpha above 0"),
                "copy or download the folder again",
            ));
        };
        let has = |matrix: &&str| {
            let end = format!(".{matrix}.{LORA_A}");
            stored.iter().any(|name| name.ends_with(&end))
        };
        let mut found: Vec<&str> = matrix_names(&model.shape).into_iter().filter(has).collect();
        found.sort_unstable();
        Ok(LoraPlan {
            r: r as usize,
            alpha,
            // What is read is used as it is; dropout concerned its training.
            dropout: 0.0,
            rslora: self.get("use_rslora").as_bool().unwrap_or(false),
            target_modules: found.into_iter().map(str::to_owned).collect(),
        })
    }
}

/// The tensors of an adapter.
struct AdapterFile {
    path: PathBuf,
    reader: Reader,
}

impl AdapterFile {
    fn open(dir: &Path) -> Result<Self, ModelError> {
        let [path, old] = [WEIGHTS, OLD_WEIGHTS].map(|name| dir.join(name));
        let path = if !path.exists() && old.exists() {
            old
        } else {
            path
        };
        if !path.exists() {
            return Err(ModelError::MissingAdapter { path });
        }
        let reader = Reader::open(&path)?;
        Ok(Self { path, reader })
    }

    /// All tensors that are `expected`, in the type and on the device of the model: none missing, none left
    /// over, each of its shape.
    fn read(
        &self,
        mut expected: BTreeMap<String, Vec<i64>>,
        model: &Model,
    ) -> Result<BTreeMap<String, Tensor>, ModelError> {
        let refuse = |reason: String| ModelError::Config {
            path: self.path.clone(),
            reason,
            hint: "an adapter fits the model that it was trained on, on matrices of all its blocks",
        };
        let mut tensors = BTreeMap::new();
        for (stored, found) in self.reader.tensors() {
            let name = stored.strip_prefix(PREFIX).unwrap_or(&stored);
            let Some(dims) = expected.remove(name) else {
                return Err(refuse(format!(
                    "tensor `{stored}` {found:?} belongs to no adapter of this model"
                )));
            };
            if dims != found {
                return Err(refuse(format!(
                    "tensor `{stored}` is {found:?}, expected {dims:?}"
                )));
            }
            self.reader.float_kind(&stored)?;
            let tensor = self.reader.read(&stored, model.kind(), model.device())?;
            tensors.insert(name.to_owned(), tensor);
        }
        match expected.pop_first() {
            None if tensors.is_empty() => Err(refuse("it holds no tensors".to_owned())),
            None => Ok(tensors),
            Some((name, dims)) => Err(refuse(format!(
                "tensor `{PREFIX}{name}` {dims:?} is missing"
            ))),
        }
    }
}
