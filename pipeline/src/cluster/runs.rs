//! What is submitted: the run of a pipeline, or one for each seed, each checked as `rlhf plan` and `rlhf run` would.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::anyhow;
use clap::ValueEnum;
use recipe::plan::{JobSize, Plan, SlurmJob, Source, StagePlan};
use runtime::RunFolder;

use super::kubernetes;
use super::record::seed_folder;
use crate::checks::check_inputs;
use crate::cli::ConfigArgs;
use crate::failure::{Failure, Outcome};
use crate::graph::{self, Selection, State};
use crate::hub::{Models, run_folder};
use crate::team::Team;

/// A pipeline with one seed, and its folder.
#[derive(Debug)]
pub struct Run {
    /// Its seed, where there are several.
    pub seed: Option<u64>,
    /// What is run.
    pub plan: Plan,
    /// Where.
    pub folder: RunFolder,
    /// Selected stages in order, and whether each is done.
    pub stages: Vec<(String, bool)>,
    /// Stages whose folders are moved aside first.
    pub moved: BTreeSet<String>,
}

/// Clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Cluster {
    /// Slurm: jobs that wait for each other by --dependency.
    Slurm,
    /// Kubernetes: Indexed Jobs, and a small one that releases each after those it needs.
    Kubernetes,
}

/// What the command line says of all runs.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// Where stages are jobs.
    pub cluster: Cluster,
    /// The pipeline's file and what is said over it.
    pub source: &'a ConfigArgs,
    /// The folder of the submission, if it is said.
    pub run_dir: Option<&'a Path>,
    /// Up to which stage.
    pub until: Option<&'a str>,
    /// Stages that are run anew.
    pub restart: &'a [String],
    /// One run for each; none: one run.
    pub seeds: &'a [u64],
}

/// The folder of a submission, an absolute path.
///
/// # Errors
/// A configuration that is wrong.
pub fn root(models: &Models, wanted: &Wanted) -> Outcome<PathBuf> {
    let plan = models.plan(wanted.source, wanted.run_dir)?;
    let root = run_folder(wanted.run_dir, &plan.name);
    Ok(std::path::absolute(&root).unwrap_or(root))
}

/// The runs, with every check of what they will do.
///
/// # Errors
/// Whatever `rlhf run` would refuse: a configuration or an input that is wrong, something that has changed under what is
/// done, a batch that cannot be shared out.
pub fn runs(models: &Models, wanted: &Wanted, root: &Path) -> Outcome<Vec<Run>> {
    let seeds: Vec<Option<u64>> = match wanted.seeds {
        [] => vec![None],
        seeds => seeds.iter().copied().map(Some).collect(),
    };
    seeds
        .into_iter()
        .map(|seed| run(models, wanted, &seed_folder(root, seed), seed))
        .collect()
}

fn run(models: &Models, wanted: &Wanted, root: &Path, seed: Option<u64>) -> Outcome<Run> {
    let mut source = wanted.source.clone();
    source
        .overrides
        .extend(seed.map(|seed| ("seed".to_owned(), seed.to_string())));
    let plan = models.plan(&source, Some(root))?;
    let folder = RunFolder::at(root);
    let selection = match wanted.until {
        Some(stage) => Selection::Until(stage.to_owned()),
        None => Selection::All,
    };
    let selected = graph::select(&plan, &selection).map_err(Failure::usage)?;
    let moved = graph::restarted(&plan, wanted.restart).map_err(Failure::usage)?;
    let states = graph::survey(&plan, &folder, &moved).map_err(Failure::usage)?;
    graph::admit(&plan, &selection, &states).map_err(Failure::usage)?;
    let selected: Vec<(&StagePlan, bool)> = states
        .into_iter()
        .filter(|(stage, _)| selected.contains(stage))
        .map(|(stage, state)| (stage, state == State::Done))
        .collect();
    for (stage, _) in selected.iter().filter(|(_, done)| !done) {
        let size = match wanted.cluster {
            Cluster::Slurm => {
                check_inputs(stage).map_err(Failure::usage)?;
                &jobs(&plan)?[&stage.name].size
            }
            Cluster::Kubernetes => {
                let job = &kubernetes::table(&plan)?.jobs[&stage.name];
                kubernetes::check_paths(stage, job, root)?;
                &job.size
            }
        };
        let team = team(size);
        team.admit(&plan, &[stage]).map_err(Failure::usage)?;
    }
    let stages = selected
        .iter()
        .map(|(stage, done)| (stage.name.clone(), *done))
        .collect();
    Ok(Run {
        seed,
        plan,
        folder,
        stages,
        moved,
    })
}

fn team(size: &JobSize) -> Team {
    Team {
        here: size.ranks_per_node,
        first: 0,
        size: size.ranks(),
        master: None,
        join: Duration::ZERO,
        timeout: Duration::ZERO,
    }
}

/// What the plan says of jobs on Slurm, by stage.
///
/// # Errors
/// It says nothing.
pub fn jobs(plan: &Plan) -> Outcome<&BTreeMap<String, SlurmJob>> {
    let cluster = plan.cluster.as_ref();
    cluster
        .and_then(|cluster| cluster.slurm.as_ref())
        .ok_or_else(|| {
            Failure::usage(anyhow!(
                "{} has no table [cluster.slurm]: how large is a job?\n  hint: write [cluster.slurm] with partition, nodes, \
                 gpus_per_node and time, as they are on your cluster",
                plan.source.display()
            ))
        })
}

impl Run {
    /// A stage of it.
    ///
    /// # Panics
    /// A name that is none.
    pub fn stage(&self, name: &str) -> &StagePlan {
        let stage = self.plan.stage(name);
        stage.unwrap_or_else(|| unreachable!("`{name}` is one of the plan's stages"))
    }

    /// Whether another plan does the same: what clusters are told may differ.
    pub fn does_the_same(&self, other: &Plan) -> bool {
        (&self.plan.name, self.plan.seed, &self.plan.stages)
            == (&other.name, other.seed, &other.stages)
    }

    /// Whether it reads models of the hub: nodes of a cluster rarely reach it.
    pub fn reads_the_hub(&self) -> bool {
        let sources = self.plan.stages.iter().flat_map(StagePlan::inputs);
        sources
            .into_iter()
            .any(|(_, source)| matches!(source, Source::Hub { .. }))
    }
}
