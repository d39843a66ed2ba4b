//! Tests of the whole way from text to plan, on one configuration that has every kind of stage.

mod bad_configs;
mod bad_places;
mod cluster;
mod configs;
mod hub;
mod jobs;
mod keys;
mod long_context;
mod lora;
mod memory;
mod objectives;
mod plans;
mod presets;
mod shapes;
mod sharded_memory;
mod value_model;

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::error::ConfigError;
use crate::hub::{HubFolder, HubQuery};
use crate::plan::Plan;

/// Every kind of stage; line numbers in the expected messages count from `name`.
pub(crate) const BASE: &str = r#"name = "base"
seed = 1

[tokenizer]
kind = "bpe"
vocab_size = 300
data = "stage:corpus"

[stages.ppo]
kind = "ppo"
model = "stage:sft"
reward = [{ model = "stage:reward" }]
prompts = "stage:corpus"
pretrain_data = "stage:corpus"
iterations = 4
batch = 32
minibatch = 8
max_prompt_tokens = 32
max_new_tokens = 16
optimizer = { lr = 1e-4 }

[stages.corpus]
kind = "import"
format = "synthetic"

[stages.pretrain]
kind = "pretrain"
data = "stage:corpus"
model = { family = "llama", layers = 2, width = 64, heads = 4 }
context = 64
batch = 16
steps = 100

[stages.sft]
kind = "sft"
model = "stage:pretrain"
data = "stage:corpus"
batch = 16
epochs = 2

[stages.comparisons]
kind = "label"
model = "stage:sft"
prompts = "stage:corpus"
max_prompt_tokens = 32
max_new_tokens = 16
labeler = { kind = "gold", rule = "vader" }

[stages.reward]
kind = "reward"
model = "stage:sft"
data = "stage:comparisons"
batch = 8
steps = 40
"#;

/// A commit of the tests' hub.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A folder with a `pipeline.toml`.
pub(crate) struct Project {
    pub dir: TempDir,
}

impl Project {
    pub fn new(text: &str) -> Self {
        let dir = TempDir::new().expect("a temporary folder");
        fs::write(dir.path().join("pipeline.toml"), text).expect("a file there");
        Self { dir }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("pipeline.toml")
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(&path, text).expect("a file");
        path
    }

    pub fn load(&self, overrides: &[(&str, &str)]) -> Result<Plan, ConfigError> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let overrides: Vec<_> = overrides.iter().map(owned).collect();
        let hub = hub_of(self.dir.path(), "hub-model");
        crate::load(&self.path(), &overrides, &hub)
    }

    /// The error's text, the temporary folder called `DIR`.
    pub fn refusal(&self, overrides: &[(&str, &str)]) -> String {
        let dir = self.dir.path().display().to_string();
        match self.load(overrides) {
            Ok(plan) => panic!("accepted: {plan:?}"),
            Err(error) => error
                .to_string()
                .replace(&dir, "DIR")
                .replace("DIR/pipeline.toml", "pipeline.toml"),
        }
    }
}

/// A hub that has one model, `org/tiny` (branch main, and its commit), in the folder `name` of the project.
pub(crate) fn hub_of(
    dir: &Path,
    name: &str,
) -> impl Fn(&HubQuery<'_>) -> Result<HubFolder, String> + use<> {
    let path = dir.join(name);
    move |query| {
        let reference = query.reference;
        if reference.repo() == "org/tiny" && ["main", COMMIT].contains(&reference.revision()) {
            let (commit, path) = (COMMIT.to_owned(), path.clone());
            return Ok(HubFolder { commit, path });
        }
        Err(format!("{reference} is not there\n  hint: check the name"))
    }
}

/// The plan of [`BASE`] with overrides.
pub(crate) fn base_with(overrides: &[(&str, &str)]) -> Plan {
    Project::new(BASE)
        .load(overrides)
        .unwrap_or_else(|error| panic!("{overrides:?}: {error}"))
}
