//! The jobs of a submission: what each waits for, and its script.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use recipe::plan::{JobSize, SlurmJob};

use super::CHECK;
use super::decide::{Fate, Wave, fates, waves};
use super::record::Submission;
use super::runs::{self, Run};
use super::script::Script;
use super::slurm::JobState;
use crate::failure::{Failure, Outcome};

/// What the command line says of all jobs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Options of `rlhf run` for every stage.
    pub options: Vec<String>,
    /// Nothing is computed on GPUs.
    pub on_cpu: bool,
    /// There is a run for each of several seeds.
    pub seeds: bool,
}

/// All that can be said of jobs before any is submitted.
#[derive(Debug)]
pub struct Jobs<'a> {
    /// The folder of the submission.
    pub root: &'a Path,
    /// Its runs.
    pub runs: &'a [Run],
    /// Runs that fare alike.
    pub waves: Vec<Wave>,
    /// The word that the check of a node looks for.
    pub token: &'a str,
    /// There is a run for each of several seeds.
    pub seeds: bool,
    options: Vec<String>,
    on_cpu: bool,
    program: PathBuf,
    of_stages: &'a BTreeMap<String, SlurmJob>,
}

impl<'a> Jobs<'a> {
    /// The jobs of these runs, of which some were submitted before; `queue` is what Slurm knows of them.
    ///
    /// # Errors
    /// A plan that says nothing of a cluster.
    pub fn new(
        (root, token): (&'a Path, &'a str),
        runs: &'a [Run],
        settings: Settings,
        (before, queue): (&Submission, &BTreeMap<String, JobState>),
    ) -> Outcome<Self> {
        let fates = runs.iter().map(|run| {
            let stages = run.stages.iter();
            let stages: Vec<_> = stages
                .map(|(name, done)| (run.stage(name), *done))
                .collect();
            let live = |stage: &str| {
                let job = before.job(stage, run.seed)?;
                let known = queue.get(&job.id)?;
                known.may_run().then(|| job.array().to_owned())
            };
            fates(&stages, &live)
        });
        let Settings {
            options,
            on_cpu,
            seeds,
        } = settings;
        Ok(Self {
            waves: waves(fates.collect()),
            of_stages: runs::jobs(&runs[0].plan)?,
            program: std::env::current_exe().map_err(Failure::run)?,
            root,
            runs,
            token,
            seeds,
            options,
            on_cpu,
        })
    }

    /// Whether any stage gets a job.
    pub fn has_new(&self) -> bool {
        self.waves
            .iter()
            .any(|wave| wave.new_stages().next().is_some())
    }

    /// What the configuration says of the job of a stage, or of the check.
    fn job(&self, stage: &str) -> SlurmJob {
        let mut job = match self.of_stages.get(stage) {
            Some(job) => job.clone(),
            None => self.check_job(),
        };
        if self.runs[0].reads_the_hub() {
            let offline = ("HF_HUB_OFFLINE".to_owned(), "1".to_owned());
            job.environment.entry(offline.0).or_insert(offline.1);
        }
        job
    }

    /// The check looks at a node like those of the largest stage.
    fn check_job(&self) -> SlurmJob {
        let new: Vec<&str> = self.waves.iter().flat_map(Wave::new_stages).collect();
        let jobs = self
            .of_stages
            .iter()
            .filter(|(name, _)| new.contains(&name.as_str()));
        let largest = jobs.max_by_key(|(_, job)| (job.size.gpus_per_node, job.size.ranks()));
        let (_, largest) = largest.unwrap_or_else(|| unreachable!("something is submitted"));
        SlurmJob {
            size: JobSize {
                nodes: 1,
                ..largest.size
            },
            ..largest.clone()
        }
    }

    /// The script of a stage, or of the check.
    pub fn script(&self, stage: &str) -> String {
        let job = self.job(stage);
        let inside = job.container.is_some().then(|| PathBuf::from("rlhf"));
        let program = job.program.as_ref().map(PathBuf::from).or(inside);
        let on_cpu = self.on_cpu;
        let script = Script {
            pipeline: &self.runs[0].plan.name,
            stage,
            root: self.root,
            seeds: self.seeds && stage != CHECK,
            options: &self.options,
            program: program.as_deref().unwrap_or(&self.program),
            token: self.token,
            gpus: if on_cpu { 0 } else { job.size.gpus_per_node },
            job: &job,
        };
        script.text()
    }

    /// The places of a wave's arrays.
    pub fn places(&self, wave: &Wave) -> Option<String> {
        let seeds = wave.runs.iter().filter_map(|run| self.runs[*run].seed);
        let seeds: Vec<String> = seeds.map(|seed| seed.to_string()).collect();
        self.seeds.then(|| seeds.join(","))
    }

    /// What a stage waits for: stages, and the word for Slurm. `ids` are the new jobs of the wave.
    pub fn dependency(
        &self,
        (wave, stage): (&Wave, &str),
        ids: &BTreeMap<String, String>,
    ) -> (Vec<String>, Option<String>) {
        let mut after: Vec<String> = self.runs[wave.runs[0]].stage(stage).parents().collect();
        after.sort();
        after.dedup();
        let job_of = |parent: &String| {
            let (_, fate) = wave.fates.iter().find(|(name, _)| name == parent)?;
            match fate {
                Fate::Done => None,
                Fate::Live(id) => Some(id.clone()),
                Fate::New => ids.get(parent).cloned(),
            }
        };
        let waits: Vec<(String, String)> = after
            .into_iter()
            .filter_map(|parent| Some((parent.clone(), job_of(&parent)?)))
            .collect();
        if waits.is_empty() {
            let check = ids.get(CHECK).map(|id| format!("afterok:{id}"));
            return (vec![CHECK.to_owned()], check);
        }
        let kind = if self.seeds { "aftercorr" } else { "afterok" };
        let (after, jobs): (Vec<String>, Vec<String>) = waits.into_iter().unzip();
        (after, Some(format!("{kind}:{}", jobs.join(":"))))
    }

    /// Says which stages get no job, and why.
    pub fn say_what_stays(&self) {
        for wave in &self.waves {
            for (stage, fate) in &wave.fates {
                let seeds = self.places(wave).map(|seeds| format!(" of seeds {seeds}"));
                let seeds = seeds.unwrap_or_default();
                match fate {
                    Fate::Done => eprintln!("{stage:>12}{seeds}  is done"),
                    Fate::Live(id) => {
                        eprintln!("{stage:>12}{seeds}  stays in the queue as job {id}");
                    }
                    Fate::New => {}
                }
            }
        }
    }
}
