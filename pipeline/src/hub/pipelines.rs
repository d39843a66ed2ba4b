//! `hub:` references: those of a pipeline's configuration, and those of a command line.

use std::cell::{Cell, OnceCell};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use recipe::hub::{HUB_PREFIX, HubFolder, HubQuery, HubReference};
use recipe::plan::{Plan, Source, StagePlan};

use super::{Hub, HubError, Part, Pulled};
use crate::cli::ConfigArgs;
use crate::failure::{Failure, Outcome};
use crate::inspect::read_plan;

/// Models by name. The environment is read when the first of them is on the hub.
#[derive(Default)]
pub struct Models {
    hub: OnceCell<Hub>,
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        if error.is_usage() {
            Self::usage(error)
        } else {
            Self::run(error)
        }
    }
}

impl Models {
    /// The plan of a configuration, or one that was saved (a run folder's `plan.toml`). A model on the hub is resolved once: to the commit that the run in
    /// `run_dir` (or the usual folder of its name) recorded, else to the one that its revision is now.
    /// Fetched is what describes it, and no weights.
    ///
    /// # Errors
    /// A configuration that is wrong, or a model that the hub does not give.
    pub fn plan(&self, source: &ConfigArgs, run_dir: Option<&Path>) -> Outcome<Plan> {
        if let Some(plan) = saved(&source.config) {
            return match source.overrides.first() {
                None => plan.map_err(Failure::usage),
                Some((key, _)) => Err(Failure::usage(anyhow!(
                    "--set {key}: {} is a plan, in which every number is resolved\n  hint: set keys of the configuration that \
                     it was made from",
                    source.config.display()
                ))),
            };
        }
        let outside = Cell::new(false);
        let find = |query: &HubQuery<'_>| {
            self.describe(query, run_dir).map_err(|error| {
                outside.set(outside.get() || !error.is_usage());
                error.to_string()
            })
        };
        recipe::load(&source.config, &source.overrides, &find).map_err(|error| {
            if outside.get() {
                Failure::run(error)
            } else {
                Failure::usage(error)
            }
        })
    }

    fn describe(
        &self,
        query: &HubQuery<'_>,
        run_dir: Option<&Path>,
    ) -> Result<HubFolder, HubError> {
        let part = if query.tokenizer_alone {
            Part::Tokenizer
        } else {
            Part::Description
        };
        let recorded = recorded(query, &run_folder(run_dir, query.pipeline));
        let reference = recorded.as_ref().unwrap_or(query.reference);
        let Pulled { commit, path, .. } = self.hub()?.pull(reference, part)?;
        Ok(HubFolder { commit, path })
    }

    /// Brings the weights of every model on the hub that a stage reads.
    ///
    /// # Errors
    /// What the hub does not give.
    pub fn fetch(&self, stage: &StagePlan) -> Outcome {
        for (key, source) in stage.inputs() {
            if key != "tokenizer" {
                self.fetch_source(&source)?;
            }
        }
        Ok(())
    }

    /// Brings a model's weights, if it is one on the hub.
    ///
    /// # Errors
    /// What the hub does not give.
    pub fn fetch_source(&self, source: &Source) -> Outcome {
        if let Source::Hub { repo, commit, .. } = source {
            let reference = HubReference::new(repo, commit).map_err(Failure::usage)?;
            self.pull(&reference)?;
        }
        Ok(())
    }

    /// The whole model that a reference means.
    ///
    /// # Errors
    /// What the hub does not give.
    pub fn pull(&self, reference: &HubReference) -> Outcome<Pulled> {
        Ok(self.hub()?.pull(reference, Part::Whole)?)
    }

    /// The path that the words of a command line mean: a model on the hub is fetched first.
    ///
    /// # Errors
    /// What the hub does not give.
    pub fn path(&self, words: &Path) -> Outcome<PathBuf> {
        match words.to_str() {
            Some(text) if text.starts_with(HUB_PREFIX) => {
                let reference = HubReference::parse(text).map_err(Failure::usage)?;
                Ok(self.pull(&reference)?.path)
            }
            _ => Ok(words.to_owned()),
        }
    }

    fn hub(&self) -> Result<&Hub, HubError> {
        if let Some(hub) = self.hub.get() {
            return Ok(hub);
        }
        let hub = Hub::from_env()?;
        Ok(self.hub.get_or_init(|| hub))
    }
}

/// The plan in a file that is none of a pipeline but a plan that was saved.
fn saved(path: &Path) -> Option<anyhow::Result<Plan>> {
    let text = fs::read_to_string(path).ok()?;
    let table: toml::Table = text.parse().ok()?;
    table.contains_key("format_version").then(|| {
        let plan = Plan::from_toml(&text);
        plan.with_context(|| path.display().to_string())
    })
}

/// The run folder: the one that is said, else `runs/NAME`.
pub fn run_folder(said: Option<&Path>, name: &str) -> PathBuf {
    said.map_or_else(|| Path::new("runs").join(name), Path::to_owned)
}

/// The commit at which a run began with a reference.
fn recorded(query: &HubQuery<'_>, run: &Path) -> Option<HubReference> {
    let HubQuery { reference, .. } = query;
    // A plan that cannot be read records nothing; `rlhf run` writes it anew.
    let plan = read_plan(run).ok().flatten()?;
    let inputs = plan.stages.iter().flat_map(StagePlan::inputs);
    let commit = inputs.into_iter().find_map(|(_, source)| match source {
        Source::Hub {
            repo,
            revision,
            commit,
            ..
        } if repo == reference.repo() && revision == reference.revision() => Some(commit),
        _ => None,
    });
    HubReference::new(reference.repo(), &commit?).ok()
}
