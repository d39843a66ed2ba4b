//! A submission to Kubernetes: which jobs are made, and in which order it is told.
//!
//! The machine that submits need not see the run folder: what was submitted is what the cluster says, and a stage that
//! turns out to be done ends at once. Where the folder is seen, stages that are done get no job.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::anyhow;
use recipe::plan::{KubernetesJob, KubernetesPlan, Plan, StagePlan};
use serde_json::{Value, json};

use super::decide::{Fate, fates};
use super::kubectl::{Job, Kubectl};
use super::manifests::{Frozen, Manifests, PLAN, RUN, RUN_DIR, StageJob};
use super::names::object_name;
use super::runs::Run;
use crate::checks::check_inputs;
use crate::commands::print;
use crate::failure::{Failure, Outcome};

/// What the plan says of Kubernetes.
///
/// # Errors
/// It says nothing.
pub fn table(plan: &Plan) -> Outcome<&KubernetesPlan> {
    let cluster = plan.cluster.as_ref();
    cluster
        .and_then(|cluster| cluster.kubernetes.as_ref())
        .ok_or_else(|| {
            Failure::usage(anyhow!(
                "{} has no table [cluster.kubernetes]: what do pods run?\n  hint: write [cluster.kubernetes] with image, volumes, \
                 nodes and gpus_per_node",
                plan.source.display()
            ))
        })
}

/// Checks that all that a stage reads and writes is on a volume of its pods; and what is seen from here, in itself.
///
/// # Errors
/// A path on no volume; an input that is here and wrong.
pub fn check_paths(stage: &StagePlan, job: &KubernetesJob, root: &Path) -> Outcome {
    let on_volume = |path: &Path| job.volumes.values().any(|mount| path.starts_with(mount));
    let refuse = |what: String, path: &Path| {
        Err(Failure::usage(anyhow!(
            "{what}: {} is on no volume of the pods of stage `{}`\n  hint: name it as pods see it, below one of \
             cluster.kubernetes.volumes = {{ CLAIM = \"/FOLDER\" }}",
            path.display(),
            stage.name
        )))
    };
    if !on_volume(root) {
        return refuse("--run-dir".to_owned(), root);
    }
    let mut is_here = true;
    for (key, source) in stage.inputs() {
        if let Some(path) = source.outside() {
            if !on_volume(path) {
                return refuse(format!("stages.{}.{key}", stage.name), path);
            }
            is_here &= path.exists();
        }
    }
    if is_here {
        check_inputs(stage).map_err(Failure::usage)?;
    }
    Ok(())
}

/// A run, and what becomes of its stages.
struct Planned<'a> {
    run: &'a Run,
    plan: Frozen,
    /// Words before a stage's in the name of its job.
    prefix: Vec<String>,
    fates: Vec<(String, Fate)>,
}

impl Planned<'_> {
    fn name(&self, stage: &str) -> String {
        let prefix = self.prefix.iter().map(String::as_str);
        object_name(&prefix.chain([stage]).collect::<Vec<_>>())
    }
}

/// All that is said before anything is asked for.
pub struct Submission<'a> {
    manifests: Manifests<'a>,
    runs: Vec<Planned<'a>>,
    there: &'a BTreeMap<String, Job>,
}

/// The name of a submission: that of its folder.
pub fn name(root: &Path) -> String {
    let name = root.file_name().unwrap_or_default().to_string_lossy();
    object_name(&[&name])
}

impl<'a> Submission<'a> {
    /// What these runs need, where the jobs `there` are known to the cluster.
    ///
    /// # Errors
    /// A plan that says nothing of Kubernetes, or is too large.
    pub fn new(
        (name, options): (&'a str, &'a [String]),
        runs: &'a [Run],
        there: &'a BTreeMap<String, Job>,
    ) -> Outcome<Self> {
        let table = table(&runs[0].plan)?;
        let manifests = Manifests {
            run: name,
            table,
            options,
        };
        let planned = |run: &'a Run| -> Outcome<Planned<'a>> {
            let mut planned = Planned {
                run,
                plan: Frozen::new(&run.plan)?,
                prefix: vec![name.to_owned()],
                fates: Vec::new(),
            };
            planned
                .prefix
                .extend(run.seed.map(|seed| format!("seed-{seed}")));
            let job = |stage: &str| there.get(&planned.name(stage));
            let stages: Vec<(&StagePlan, bool)> = run
                .stages
                .iter()
                .map(|(stage, done)| {
                    let complete = job(stage).is_some_and(|job| {
                        job.is_complete() && job.annotation(PLAN) == planned.plan.hash
                    });
                    (
                        run.stage(stage),
                        *done || (complete && !run.moved.contains(stage)),
                    )
                })
                .collect();
            let live = |stage: &str| {
                let job = job(stage).filter(|job| job.is_live())?;
                Some(job.name().to_owned())
            };
            planned.fates = fates(&stages, &live);
            Ok(planned)
        };
        Ok(Self {
            runs: runs.iter().map(planned).collect::<Outcome<_>>()?,
            manifests,
            there,
        })
    }

    /// Refuses what another submission has the name of, or what would run beside jobs that do something else.
    ///
    /// # Errors
    /// The refusal.
    pub fn admit(&self) -> Outcome {
        let namespace = &self.manifests.table.namespace;
        for planned in &self.runs {
            let root = planned.run.folder.root();
            let moves = !planned.run.moved.is_empty();
            if moves && !root.is_dir() {
                return Err(Failure::usage(anyhow!(
                    "--restart: {} is not seen from here\n  hint: run this where the volume is mounted under that path",
                    root.display()
                )));
            }
            let jobs = planned.run.plan.stages.iter();
            let jobs = jobs.filter_map(|stage| self.there.get(&planned.name(&stage.name)));
            for job in jobs {
                let other = job.annotation(RUN_DIR);
                if Path::new(other) != root {
                    return Err(Failure::usage(anyhow!(
                        "job {} in namespace {namespace} is of another run folder, {other}\n  hint: give this one another name, or \
                         another namespace",
                        job.name()
                    )));
                }
                if job.is_live() && (moves || job.annotation(PLAN) != planned.plan.hash) {
                    return Err(Failure::usage(anyhow!(
                        "job {} in namespace {namespace} has not ended, and what it does was submitted with other settings, or \
                         would be moved\n  hint: `{}` first, or take another --run-dir",
                        job.name(),
                        self.end_it()
                    )));
                }
            }
        }
        Ok(())
    }

    fn end_it(&self) -> String {
        let Manifests { run, table, .. } = &self.manifests;
        let (label, namespace) = (RUN, &table.namespace);
        format!("kubectl --namespace {namespace} delete jobs --selector {label}={run}")
    }

    fn new_jobs<'b>(&'b self, planned: &'b Planned) -> impl Iterator<Item = StageJob<'b>> {
        let is_new = |(_, fate): &&(String, Fate)| *fate == Fate::New;
        planned.fates.iter().filter(is_new).map(|(stage, _)| {
            let mut after: Vec<String> = planned.run.stage(stage).parents().collect();
            after.sort();
            after.dedup();
            let comes = |parent: &String| {
                let fate = planned.fates.iter().find(|(name, _)| name == parent);
                fate.is_some_and(|(_, fate)| *fate != Fate::Done)
            };
            after.retain(comes);
            StageJob {
                stage,
                name: planned.name(stage),
                after: after.iter().map(|parent| planned.name(parent)).collect(),
                job: &self.manifests.table.jobs[stage],
            }
        })
    }

    fn fates(&self) -> impl Iterator<Item = &Fate> {
        let all = self.runs.iter().flat_map(|planned| &planned.fates);
        all.map(|(_, fate)| fate)
    }

    /// Whether jobs that are there wait to be released, and nobody is there to do it.
    fn lacks_conductor(&self) -> bool {
        let conductor = self.there.get(&self.manifests.conductor_name());
        self.holds() && !conductor.is_some_and(Job::is_live)
    }

    /// Whether jobs that are there wait to be released.
    fn holds(&self) -> bool {
        self.fates().any(|fate| match fate {
            Fate::Live(name) => self.there.get(name).is_some_and(Job::is_held),
            Fate::Done | Fate::New => false,
        })
    }

    /// The objects that are made, in order.
    pub fn objects(&self) -> Vec<Value> {
        let mut objects = Vec::new();
        let mut held = self.holds();
        for planned in &self.runs {
            let jobs: Vec<StageJob> = self.new_jobs(planned).collect();
            if !jobs.is_empty() {
                objects.push(self.manifests.plan(&planned.plan));
            }
            for job in &jobs {
                held |= !job.after.is_empty();
                objects.extend(self.manifests.service(job));
                let root = planned.run.folder.root();
                objects.push(self.manifests.job(job, &planned.plan, root));
            }
        }
        if held {
            objects.extend(self.manifests.account());
            objects.push(self.manifests.conductor());
        }
        objects
    }

    /// Says which stages get no job, and why.
    pub fn say_what_stays(&self) {
        for planned in &self.runs {
            for (stage, fate) in &planned.fates {
                match fate {
                    Fate::Done => eprintln!("{stage:>12}  is done"),
                    Fate::Live(job) => eprintln!("{stage:>12}  stays, as job {job}"),
                    Fate::New => {}
                }
            }
        }
    }

    /// Makes the objects; after a refusal no job of this submission is left.
    ///
    /// # Errors
    /// The refusal.
    pub fn submit(&self, kubectl: &Kubectl) -> Outcome {
        self.say_what_stays();
        let Manifests { run, table, .. } = &self.manifests;
        let (label, namespace) = (RUN, &table.namespace);
        let has_new = self.fates().any(|fate| *fate == Fate::New);
        if !has_new && !self.lacks_conductor() {
            eprintln!("nothing to submit");
            return Ok(());
        }
        self.move_aside()?;
        let conductor = self.manifests.conductor_name();
        let jobs: Vec<StageJob> = self
            .runs
            .iter()
            .flat_map(|planned| self.new_jobs(planned))
            .collect();
        let mut names: Vec<&str> = jobs.iter().map(|job| job.name.as_str()).collect();
        names.push(&conductor);
        // What ended badly, or waits for that, stands in the way of what takes its place.
        let old: Vec<&str> = names
            .iter()
            .copied()
            .filter(|name| self.there.contains_key(*name))
            .collect();
        kubectl.delete(&old)?;
        if let Err(error) = kubectl.apply(&text(&self.objects())) {
            if let Err(error) = kubectl.delete(&names) {
                eprintln!("jobs of this submission may be left: {error}");
            }
            return Err(error.into());
        }
        for StageJob {
            stage, name, after, ..
        } in &jobs
        {
            let after = after.join(", ");
            let after = if after.is_empty() {
                after
            } else {
                format!("  after {after}")
            };
            print(&format!("{stage:>12}  job {name}{after}")).map_err(Failure::run)?;
        }
        eprintln!(
            "follow it with: kubectl --namespace {namespace} get jobs,pods --selector {label}={run}"
        );
        eprintln!("end it with:    {}", self.end_it());
        Ok(())
    }

    fn move_aside(&self) -> Outcome {
        for planned in &self.runs {
            for stage in &planned.run.moved {
                let folder = planned.run.folder.stage(stage);
                if let Some(aside) = folder.move_aside().map_err(Failure::run)? {
                    eprintln!("{stage:>12}  its old folder is now {}", aside.display());
                }
            }
        }
        Ok(())
    }
}

/// Objects as one list, in JSON: what `kubectl` reads, and YAML as well.
pub fn text(objects: &[Value]) -> String {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    format!("{list:#}\n")
}
