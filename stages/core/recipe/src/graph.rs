//! What a plan is asked: inputs, dependants, its text.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use runtime::manifest::content_id;
use runtime::{Manifest, ManifestError, RunFolder};
use serde_json::{Map, Value};

use crate::error::PlanError;
use crate::hub::HUB_PREFIX;
use crate::plan::{CONTENT_KEY, Objective, Plan, Source, StagePlan, Task, TrainPlan};

impl Plan {
    /// Version of the format that this program writes and reads.
    pub const FORMAT_VERSION: u32 = 2;

    /// The stage of a name.
    pub fn stage(&self, name: &str) -> Option<&StagePlan> {
        self.stages.iter().find(|stage| stage.name == name)
    }

    /// The stages that need `name`, directly or through others, in the plan's order.
    pub fn dependants(&self, name: &str) -> Vec<&StagePlan> {
        let mut reached = BTreeSet::from([name]);
        let mut found = Vec::new();
        for stage in &self.stages {
            if stage
                .parents()
                .any(|parent| reached.contains(parent.as_str()))
            {
                reached.insert(&stage.name);
                found.push(stage);
            }
        }
        found
    }

    /// The text of `plan.toml`.
    ///
    /// # Errors
    /// [`PlanError::Write`] if a number does not fit TOML.
    pub fn to_toml(&self) -> Result<String, PlanError> {
        toml::to_string(self).map_err(|source| PlanError::Write {
            source: Box::new(source),
        })
    }

    /// Reads the text of a `plan.toml`.
    ///
    /// # Errors
    /// [`PlanError::Version`] for another version's, [`PlanError::Read`] for what is no plan.
    pub fn from_toml(text: &str) -> Result<Self, PlanError> {
        let read = |source| PlanError::Read {
            source: Box::new(source),
        };
        let table: toml::Table = toml::from_str(text).map_err(read)?;
        let found = table
            .get("format_version")
            .and_then(toml::Value::as_integer);
        match found.and_then(|found| u32::try_from(found).ok()) {
            Some(found) if found != Self::FORMAT_VERSION => Err(PlanError::Version {
                found,
                expected: Self::FORMAT_VERSION,
            }),
            _ => toml::from_str(text).map_err(read),
        }
    }
}

impl StagePlan {
    /// What the stage reads, by the key that says so, in a fixed order.
    pub fn inputs(&self) -> Vec<(String, Source)> {
        let mut inputs: Vec<(String, &Source)> = Vec::new();
        let mut add = |key: &str, source| inputs.push((key.to_owned(), source));
        match &self.task {
            Task::Import(import) => {
                let path = import
                    .path
                    .iter()
                    .map(|path| Source::Path { path: path.clone() });
                return path.map(|source| ("path".to_owned(), source)).collect();
            }
            Task::Tokenizer(plan) => add("data", &plan.data),
            Task::Pretrain(plan) => {
                add("data", &plan.data);
                match &plan.start {
                    Some(start) => add("model", start),
                    None => add("tokenizer", &plan.tokenizer),
                }
            }
            Task::Sft(plan) => {
                add("model", &plan.model);
                add("data", &plan.data);
                if let Some(pretrain) = &plan.pretrain {
                    add("pretrain_data", &pretrain.data);
                }
            }
            Task::Label(plan) => {
                add("model", &plan.model);
                add("prompts", &plan.prompts);
            }
            Task::Reward(plan) => {
                add("model", &plan.model);
                add("data", &plan.data);
                if let Some(demonstrations) = &plan.demonstrations {
                    add("demonstrations", demonstrations);
                }
            }
            Task::Ppo(plan) => {
                add("model", &plan.model);
                for (index, reward) in plan.reward.iter().enumerate() {
                    add(&format!("reward[{index}].model"), &reward.model);
                }
                add("prompts", &plan.prompts);
                if let Some(ptx) = &plan.ptx {
                    add("pretrain_data", &ptx.data);
                }
            }
        }
        inputs
            .into_iter()
            .map(|(key, source)| (key, source.clone()))
            .collect()
    }

    /// The names of the stages that it reads; one that it reads twice is there twice.
    pub fn parents(&self) -> impl Iterator<Item = String> + use<> {
        self.inputs()
            .into_iter()
            .filter_map(|(_, source)| match source {
                Source::Stage { name } => Some(name),
                Source::Path { .. } | Source::Hub { .. } => None,
            })
    }

    /// The task as JSON, for hashing and for naming the keys that differ between two plans.
    ///
    /// Left out: [`Execution`](crate::plan::Execution); `max_logprob_gap`, a guard whose default
    /// follows the storage type and that changes no result; and the shapes of PPO's reward models, which
    /// follow from the models.
    pub fn config_json(&self) -> Value {
        let json = serde_json::to_value(&self.task);
        let mut json = json.unwrap_or_else(|error| unreachable!("a task is plain data: {error}"));
        if let Some(task) = json.as_object_mut() {
            task.remove("max_logprob_gap");
            let rewards = task.get_mut("reward").and_then(Value::as_array_mut);
            for reward in rewards
                .into_iter()
                .flatten()
                .filter_map(Value::as_object_mut)
            {
                reward.remove("shape");
            }
        }
        json
    }

    /// [`Self::config_json`] with every path replaced by what lies there, under [`CONTENT_KEY`]: where
    /// data stands differs between machines and changes no result. `null` while it is not known. A model
    /// on the hub is what its commit says, however that was asked for. The usual objective of pretraining is
    /// left out, so that stages that were done before there were others keep their hash.
    pub fn portable_config(&self, content: impl Fn(&Source) -> Option<String>) -> Value {
        let mut config = self.config_json();
        let usual = |config: &Map<String, Value>| {
            config.get("objective").and_then(Value::as_str) == Some(Objective::Causal.word())
        };
        if let Some(config) = config.as_object_mut().filter(|config| usual(config)) {
            config.remove("objective");
        }
        match &self.task {
            Task::Import(_) => {
                let source = self.inputs().into_iter().next();
                config["path"] = source.and_then(|(_, source)| content(&source)).into();
            }
            _ => replace_sources(&mut config, &content),
        }
        config
    }
}

fn replace_sources(tree: &mut Value, content: &impl Fn(&Source) -> Option<String>) {
    match tree {
        Value::Object(map) => {
            let whole = Value::Object(map.clone());
            if let Ok(source) = serde_json::from_value::<Source>(whole) {
                map.remove("path");
                if let Source::Hub { .. } = source {
                    map.remove("revision");
                } else {
                    map.insert(CONTENT_KEY.to_owned(), content(&source).into());
                }
            } else {
                map.values_mut().for_each(|v| replace_sources(v, content));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|v| replace_sources(v, content)),
        _ => {}
    }
}

impl Source {
    /// The file or folder: a stage's `final/` in the run folder, or the path itself.
    pub fn path(&self, run: &RunFolder) -> PathBuf {
        match self {
            Self::Stage { name } => run.stage(name).final_dir(),
            Self::Path { path } | Self::Hub { path, .. } => path.clone(),
        }
    }

    /// The file or folder of what no stage makes.
    pub fn outside(&self) -> Option<&Path> {
        match self {
            Self::Stage { .. } => None,
            Self::Path { path } | Self::Hub { path, .. } => Some(path),
        }
    }

    /// What it is, wherever it lies: [`content_id`], or the commit of a model on the hub.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub fn content_id(
        &self,
        run: &RunFolder,
        manifest_of: impl FnOnce(&Path) -> Result<Option<Manifest>, ManifestError>,
    ) -> Result<String, ManifestError> {
        match self {
            Self::Hub { commit, .. } => Ok(commit.clone()),
            Self::Stage { .. } | Self::Path { .. } => content_id(&self.path(run), manifest_of),
        }
    }

    /// How a manifest calls it as a parent; `key` names what lies at a path.
    pub fn as_parent(&self, key: &str) -> String {
        match self {
            Self::Stage { name } => format!("stage:{name}"),
            Self::Path { .. } => key.to_owned(),
            Self::Hub { repo, commit, .. } => format!("{HUB_PREFIX}{repo}@{commit}"),
        }
    }
}

impl Task {
    /// The loop of a stage that trains on fixed data.
    pub fn train(&self) -> Option<&TrainPlan> {
        match self {
            Self::Pretrain(plan) => Some(&plan.train),
            Self::Sft(plan) => Some(&plan.train),
            Self::Reward(plan) => Some(&plan.train),
            Self::Import(_) | Self::Tokenizer(_) | Self::Label(_) | Self::Ppo(_) => None,
        }
    }

    /// The kind's word, as in the configuration.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Import(_) => "import",
            Self::Tokenizer(_) => "tokenizer",
            Self::Pretrain(_) => "pretrain",
            Self::Sft(_) => "sft",
            Self::Label(_) => "label",
            Self::Reward(_) => "reward",
            Self::Ppo(_) => "ppo",
        }
    }
}
