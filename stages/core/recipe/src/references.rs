//! What a key may refer to: another stage's result, or a path that must exist already.

use std::path::{Path, PathBuf};

use datasets::DatasetKind;

use crate::artefacts;
use crate::hub::{FindHub, HUB_PREFIX, HubQuery, HubReference};
use crate::plan::{Plan, Source, StagePlan, Task};
use crate::presets::Constant;
use crate::reader::{Outcome, Reader};
use crate::shape::ModelShape;

/// What a reference must lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// A dataset of a kind.
    Data(DatasetKind),
    /// A language model with its tokenizer.
    Policy,
    /// A reward model with its tokenizer.
    Reward,
}

impl Wanted {
    fn accepts(self, task: &Task) -> bool {
        match (self, task) {
            (Self::Data(kind), Task::Import(import)) => artefacts::import_format(&import.format)
                .is_ok_and(|format| format.kinds().contains(&kind)),
            (Self::Data(DatasetKind::Comparisons), Task::Label(_))
            | (Self::Policy, Task::Pretrain(_) | Task::Sft(_) | Task::Ppo(_))
            | (Self::Reward, Task::Reward(_)) => true,
            _ => false,
        }
    }

    /// Where it may come from beside a stage, as a hint says it.
    fn places(self) -> &'static str {
        match self {
            Self::Data(_) => " or \"path:FOLDER\"",
            Self::Policy | Self::Reward => ", \"path:FOLDER\" or \"hub:ORG/NAME\"",
        }
    }

    /// The thing, and the kinds of stages that make it.
    fn words(self) -> (String, &'static [&'static str]) {
        match self {
            Self::Data(kind) => (
                format!("a dataset of {}", kind.file_stem()),
                match kind {
                    DatasetKind::Comparisons => &["label", "import"],
                    _ => &["import"],
                },
            ),
            Self::Policy => ("a language model".to_owned(), &["pretrain", "sft", "ppo"]),
            Self::Reward => ("a reward model".to_owned(), &["reward"]),
        }
    }
}

/// The stages resolved so far and what they share.
pub(crate) struct Resolver<'a> {
    /// The pipeline's name.
    pub pipeline: String,
    /// What finds models on the hub.
    pub hub: &'a FindHub<'a>,
    /// The folder that relative paths start from, absolute.
    pub dir: PathBuf,
    /// The preset's constants; empty without a preset.
    pub preset: &'static [Constant],
    /// Name and kind of every stage that is written, in the order of the file.
    pub names: Vec<(String, &'static str)>,
    /// Special tokens that the objectives of pretraining stages need.
    pub special_tokens: Vec<String>,
    /// What pretraining stages get for a tokenizer.
    pub tokenizer: Option<ChosenTokenizer>,
    /// The stages resolved so far.
    pub done: Vec<StagePlan>,
}

/// The `[tokenizer]` table, resolved.
#[derive(Debug, Clone)]
pub(crate) struct ChosenTokenizer {
    pub source: Source,
    pub vocab_size: usize,
}

impl Resolver<'_> {
    /// The stage of a name, among those resolved.
    pub fn stage(&self, name: &str) -> Option<&StagePlan> {
        self.done.iter().find(|stage| stage.name == name)
    }

    /// The source named by `key`, checked to be what is wanted.
    pub fn source(&self, reader: &Reader<'_>, key: &str, wanted: Wanted) -> Outcome<Source> {
        let (thing, kinds) = wanted.words();
        let kinds = kinds.join(", ");
        let hint = format!(
            "name {thing}: {key} = \"stage:NAME\" (kind {kinds}){}",
            wanted.places()
        );
        let source = self.source_opt(reader, key, wanted)?;
        source.ok_or_else(|| reader.missing(key, hint))
    }

    /// The source named by `key`, if it is written.
    pub fn source_opt(
        &self,
        reader: &Reader<'_>,
        key: &str,
        wanted: Wanted,
    ) -> Outcome<Option<Source>> {
        let Some(text) = reader.text_opt(key)? else {
            return Ok(None);
        };
        if let Some(name) = text.strip_prefix("stage:") {
            return self.stage_source(reader, key, name, wanted).map(Some);
        }
        let scalar = wanted == Wanted::Reward;
        let (source, checked) = match wanted {
            Wanted::Policy | Wanted::Reward if text.starts_with(HUB_PREFIX) => {
                let (source, dir) = self.hub_source(reader, key, &text, false)?;
                (source, artefacts::check_head(&dir, scalar))
            }
            Wanted::Policy | Wanted::Reward => {
                let path = self.path(reader, key, &text)?;
                let checked = artefacts::check_model(&path, scalar);
                (Source::Path { path }, checked)
            }
            Wanted::Data(kind) => {
                let path = self.path(reader, key, &text)?;
                let checked = artefacts::check_dataset(&path, kind);
                (Source::Path { path }, checked)
            }
        };
        checked.map_err(|(message, hint)| reader.problem(key, message, hint))?;
        Ok(Some(source))
    }

    /// The model, or the tokenizer alone, that `text` means on the hub, and its folder.
    pub fn hub_source(
        &self,
        reader: &Reader<'_>,
        key: &str,
        text: &str,
        tokenizer_alone: bool,
    ) -> Outcome<(Source, PathBuf)> {
        let problem = |error: String| {
            let (message, hint) = artefacts::split_hint(&error);
            reader.problem(key, message, hint)
        };
        let reference = HubReference::parse(text).map_err(|error| problem(error.to_string()))?;
        let query = HubQuery {
            pipeline: &self.pipeline,
            reference: &reference,
            tokenizer_alone,
        };
        let found = (self.hub)(&query).map_err(problem)?;
        let source = Source::Hub {
            repo: reference.repo().to_owned(),
            revision: reference.revision().to_owned(),
            commit: found.commit,
            path: found.path.clone(),
        };
        Ok((source, found.path))
    }

    fn stage_source(
        &self,
        reader: &Reader<'_>,
        key: &str,
        name: &str,
        wanted: Wanted,
    ) -> Outcome<Source> {
        let (thing, kinds) = wanted.words();
        let Some(stage) = self.stage(name) else {
            // Other names were checked before; [tokenizer] of kind "path" is no stage.
            let message = format!("must be {thing}, is \"stage:{name}\", which makes nothing");
            return Err(reader.problem(key, message, self.fitting(name, kinds)));
        };
        if wanted.accepts(&stage.task) {
            return Ok(Source::Stage {
                name: name.to_owned(),
            });
        }
        let made = match &stage.task {
            Task::Import(import) => format!("an import stage of format {:?}", import.format),
            task => format!("a stage of kind {:?}", task.kind()),
        };
        let message = format!("must be {thing}, is \"stage:{name}\", {made}");
        Err(reader.problem(key, message, self.fitting(name, kinds)))
    }

    /// Stages of the right kinds, other than the one refused.
    fn fitting(&self, refused: &str, kinds: &[&str]) -> String {
        let fits = |(name, kind): &&(String, &'static str)| kinds.contains(kind) && name != refused;
        let fitting: Vec<String> = self
            .names
            .iter()
            .filter(fits)
            .map(|(name, _)| format!("\"stage:{name}\""))
            .collect();
        let kinds = kinds.join(", ");
        if fitting.is_empty() {
            format!("add a stage of kind {kinds} and refer to it")
        } else {
            format!("stages of kind {kinds}: {}", fitting.join(", "))
        }
    }

    /// The absolute path that `text` means; it must exist.
    pub fn path(&self, reader: &Reader<'_>, key: &str, text: &str) -> Outcome<PathBuf> {
        if text.starts_with(HUB_PREFIX) {
            let message = format!("must be \"stage:NAME\" or a path, is {text:?}");
            let hint =
                "models come from the hub, data does not: download it and write \"path:FILE\"";
            return Err(reader.problem(key, message, hint));
        }
        let relative = Path::new(text.strip_prefix("path:").unwrap_or(text));
        let path = normal(&self.dir.join(relative));
        if path.exists() {
            return Ok(path);
        }
        let hint = if self.names.iter().any(|(name, _)| name == text) {
            format!("did you mean \"stage:{text}\"?")
        } else {
            format!("relative paths start from {}", self.dir.display())
        };
        Err(reader.problem(
            key,
            format!("no such file or folder: {}", path.display()),
            hint,
        ))
    }

    /// The shape of the model that `key` names, as a later stage takes it over.
    pub fn shape(&self, reader: &Reader<'_>, key: &str, source: &Source) -> Outcome<ModelShape> {
        let shape = match source {
            Source::Stage { name } => match self.stage(name).and_then(StagePlan::model_shape) {
                Some(shape) => shape.clone(),
                None => unreachable!("{name} was checked to make a model"),
            },
            Source::Path { path } | Source::Hub { path, .. } => artefacts::model_shape(path)
                .map_err(|(message, hint)| reader.problem(key, message, hint))?,
        };
        Ok(shape.without_places())
    }

    /// The tokenizer that a model descends from: the stage that trains it, or a folder.
    pub fn tokenizer_of(&self, model: &Source) -> Source {
        let Source::Stage { name } = model else {
            return model.clone();
        };
        match self.stage(name).map(|stage| &stage.task) {
            Some(Task::Pretrain(plan)) => match &plan.start {
                Some(start) => self.tokenizer_of(start),
                None => plan.tokenizer.clone(),
            },
            Some(Task::Sft(plan)) => self.tokenizer_of(&plan.model),
            Some(Task::Reward(plan)) => self.tokenizer_of(&plan.model),
            Some(Task::Ppo(plan)) => self.tokenizer_of(&plan.model),
            _ => unreachable!("{name} was checked to make a model"),
        }
    }
}

impl StagePlan {
    /// Shape of the model that the stage makes; `None` if it makes none.
    pub fn model_shape(&self) -> Option<&ModelShape> {
        match &self.task {
            Task::Pretrain(plan) => Some(&plan.model),
            Task::Sft(plan) => Some(&plan.shape),
            Task::Reward(plan) => Some(&plan.shape),
            Task::Ppo(plan) => Some(&plan.shape),
            Task::Import(_) | Task::Tokenizer(_) | Task::Label(_) => None,
        }
    }
}

impl Plan {
    /// Name of the stage that trains the tokenizer, where `[tokenizer]` has kind `bpe`.
    pub const TOKENIZER: &str = "tokenizer";
}

/// The path without `.` and with `..` taken back, as far as that needs no look at the disk.
fn normal(path: &Path) -> PathBuf {
    use std::path::Component;
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir
                if matches!(normal.components().next_back(), Some(Component::Normal(_))) =>
            {
                normal.pop();
            }
            other => normal.push(other),
        }
    }
    normal
}
