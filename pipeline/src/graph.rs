//! Which stages are to be run, and what state each is in.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use recipe::plan::{Plan, StagePlan};
use runtime::files::{FileError, read_json};
use runtime::{ManifestError, RunFolder, StageFolder};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::fingerprint::{Fingerprint, Fingerprints, KeyChange, diff};

/// What `stage.json` (at the start) and `done.json` (at the end) say a stage was made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The stage's hash.
    pub hash: String,
    /// Its settings, with the content of its inputs.
    pub config: Value,
    /// The stages that it read, with their manifests' ids.
    pub parents: BTreeMap<String, String>,
}

impl Record {
    /// The record of a stage that is run now.
    pub fn of(fingerprint: &Fingerprint) -> Self {
        let Fingerprint { config, parents } = fingerprint.clone();
        Self {
            hash: fingerprint.hash(),
            config,
            parents,
        }
    }
}

/// What the user wants to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// Every stage.
    All,
    /// One stage alone.
    Only(String),
    /// The stages of one kind and what they need.
    Kind(String),
    /// One stage and what it needs.
    Until(String),
}

/// A stage's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Nothing is there.
    ToDo,
    /// It was begun, and continues after this many updates.
    Continue(u64),
    /// It is done.
    Done,
    /// It was begun or done with other settings or inputs.
    Changed(Vec<KeyChange>),
}

/// Why what the user wants cannot be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// No stage has this name.
    #[error("there is no stage `{name}`\n  hint: the stages are: {}", known.join(", "))]
    NoStage {
        /// The name.
        name: String,
        /// Those that exist.
        known: Vec<String>,
    },
    /// No stage has this kind.
    #[error("there is no stage of kind `{kind}`\n  hint: the kinds here are: {}", known.join(", "))]
    NoKind {
        /// The kind.
        kind: String,
        /// Those that exist.
        known: Vec<String>,
    },
    /// `--only` and something that it needs is not there.
    #[error(
        "stage `{stage}` needs `{parent}`, which is not done\n  \
         hint: `--until {stage}` runs what it needs first"
    )]
    NotReady {
        /// The stage.
        stage: String,
        /// What it needs.
        parent: String,
    },
    /// Settings changed under what is there already.
    #[error("{}", changed_in_words(changed, restart))]
    Changed {
        /// The stages, with the keys that differ.
        changed: Vec<(String, Vec<KeyChange>)>,
        /// Those whose restart makes all of them anew.
        restart: Vec<String>,
    },
    /// A record cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// An input cannot be read, or is damaged.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

fn changed_in_words(changed: &[(String, Vec<KeyChange>)], restart: &[String]) -> String {
    let mut text = String::new();
    for (stage, keys) in changed {
        let _ = write!(
            text,
            "stage `{stage}` was begun with other settings or inputs:"
        );
        for key in keys {
            let _ = write!(text, "\n    {key}");
        }
        text.push('\n');
    }
    let flags: Vec<String> = restart
        .iter()
        .map(|stage| format!("--restart {stage}"))
        .collect();
    let flags = flags.join(" ");
    let _ = write!(
        text,
        "  hint: undo the change, or say `{flags}`: it moves the old folder to {}.old-N and runs \
         the stage and those that depend on it anew",
        restart.first().map_or("STAGE", String::as_str)
    );
    text
}

/// The stages that a selection means, in the plan's order.
///
/// # Errors
/// A name or kind that does not exist.
pub fn select<'a>(plan: &'a Plan, wanted: &Selection) -> Result<Vec<&'a StagePlan>, GraphError> {
    let mut names = BTreeSet::new();
    match wanted {
        Selection::All => return Ok(plan.stages.iter().collect()),
        Selection::Only(name) => {
            names.insert(existing(plan, name)?.name.as_str());
        }
        Selection::Until(name) => names = with_ancestors(plan, existing(plan, name)?),
        Selection::Kind(kind) => {
            for stage in plan.stages.iter().filter(|stage| stage.task.kind() == kind) {
                names.append(&mut with_ancestors(plan, stage));
            }
            if names.is_empty() {
                let known: BTreeSet<_> =
                    plan.stages.iter().map(|stage| stage.task.kind()).collect();
                let known = known.into_iter().map(str::to_owned).collect();
                return Err(GraphError::NoKind {
                    kind: kind.clone(),
                    known,
                });
            }
        }
    }
    Ok(plan
        .stages
        .iter()
        .filter(|stage| names.contains(stage.name.as_str()))
        .collect())
}

fn existing<'a>(plan: &'a Plan, name: &str) -> Result<&'a StagePlan, GraphError> {
    plan.stage(name).ok_or_else(|| GraphError::NoStage {
        name: name.to_owned(),
        known: plan.stages.iter().map(|stage| stage.name.clone()).collect(),
    })
}

fn with_ancestors<'a>(plan: &'a Plan, stage: &'a StagePlan) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::from([stage.name.as_str()]);
    // Parents come before their children, so that one pass backwards finds them all.
    for candidate in plan
        .stages
        .iter()
        .rev()
        .filter(|candidate| candidate.name != stage.name)
    {
        let needed = plan
            .stages
            .iter()
            .filter(|user| names.contains(user.name.as_str()))
            .any(|user| user.parents().any(|parent| parent == candidate.name));
        if needed {
            names.insert(&candidate.name);
        }
    }
    names
}

/// The stages to be moved aside: those named, and all that depend on them.
///
/// # Errors
/// A name that does not exist.
pub fn restarted(plan: &Plan, names: &[String]) -> Result<BTreeSet<String>, GraphError> {
    let mut moved = BTreeSet::new();
    for name in names {
        moved.insert(existing(plan, name)?.name.clone());
        moved.extend(
            plan.dependants(name)
                .into_iter()
                .map(|stage| stage.name.clone()),
        );
    }
    Ok(moved)
}

/// A stage's state, by what its folder says and what it would be made from now.
///
/// # Errors
/// The folder cannot be read.
pub fn state(folder: &StageFolder, fingerprint: &Fingerprint) -> Result<State, FileError> {
    let done = folder.done_path().exists() && folder.final_dir().exists();
    let record_path = if done {
        folder.done_path()
    } else {
        folder.state_path()
    };
    if !record_path.exists() {
        return Ok(State::ToDo);
    }
    let record: Record = read_json(&record_path)?;
    let changes = diff(&record.config, &fingerprint.config);
    if !changes.is_empty() {
        return Ok(State::Changed(changes));
    }
    if done {
        return Ok(State::Done);
    }
    let snapshots = folder
        .snapshots()
        .map_err(FileError::io("list", folder.root()))?;
    Ok(snapshots
        .last()
        .map_or(State::ToDo, |(step, _)| State::Continue(*step)))
}

/// The states of all stages in the plan's order, as they will be once those in `moved` are gone.
///
/// # Errors
/// A folder or an input cannot be read.
pub fn survey<'a>(
    plan: &'a Plan,
    run: &RunFolder,
    moved: &BTreeSet<String>,
) -> Result<Vec<(&'a StagePlan, State)>, GraphError> {
    let mut fingerprints = Fingerprints::new(plan, run);
    let mut pending = moved.clone();
    let mut states = Vec::new();
    for stage in &plan.stages {
        let now = if moved.contains(&stage.name) {
            State::ToDo
        } else {
            let fingerprint = fingerprints.of(stage, &pending)?;
            state(&run.stage(&stage.name), &fingerprint)?
        };
        if now != State::Done {
            pending.insert(stage.name.clone());
        }
        states.push((stage, now));
    }
    Ok(states)
}

/// Checks that the selected stages can be run: nothing that counts has changed under what is there,
/// and what a stage alone needs is done.
///
/// # Errors
/// [`GraphError::Changed`] or [`GraphError::NotReady`].
pub fn admit(
    plan: &Plan,
    wanted: &Selection,
    states: &[(&StagePlan, State)],
) -> Result<(), GraphError> {
    let mut relevant = BTreeSet::new();
    for stage in select(plan, wanted)? {
        relevant.append(&mut with_ancestors(plan, stage));
    }
    let mut changed = Vec::new();
    let mut restart: Vec<String> = Vec::new();
    for (stage, state) in states
        .iter()
        .filter(|(s, _)| relevant.contains(s.name.as_str()))
    {
        let State::Changed(keys) = state else {
            continue;
        };
        changed.push((stage.name.clone(), keys.clone()));
        let covered = restart
            .iter()
            .any(|root| plan.dependants(root).iter().any(|s| s == stage));
        if !covered {
            restart.push(stage.name.clone());
        }
    }
    if !changed.is_empty() {
        return Err(GraphError::Changed { changed, restart });
    }
    if let Selection::Only(name) = wanted {
        let needed: BTreeSet<String> = plan
            .stage(name)
            .into_iter()
            .flat_map(StagePlan::parents)
            .collect();
        let missing = states
            .iter()
            .find(|(stage, state)| needed.contains(&stage.name) && *state != State::Done);
        if let Some((parent, _)) = missing {
            return Err(GraphError::NotReady {
                stage: name.clone(),
                parent: parent.name.clone(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "graph_tests.rs"]
mod tests;
