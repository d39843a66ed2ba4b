//! A submission: what is written, and what is asked of Slurm, in which order.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use recipe::plan::Plan;
use runtime::files::write_bytes;
use runtime::run_lock::seconds_since_epoch;
use runtime::{RunFolder, RunFolderError, RunLock};

use super::CHECK;
use super::jobs::Jobs;
use super::record::{Job, Submission};
use super::runs::Run;
use super::script::{log_path, script_path};
use super::slurm::{self, JobState};
use crate::commands::print;
use crate::commands::run::record;
use crate::failure::{Failure, Outcome};
use crate::hub::Models;

/// A submission that is being made by the only process that makes one here.
#[derive(Debug)]
pub struct Submitting<'a> {
    /// What is submitted.
    pub jobs: Jobs<'a>,
    /// The pipeline's file.
    pub config: &'a Path,
    /// The jobs of this folder until now.
    pub record: Submission,
    /// What Slurm knows of them.
    pub queue: BTreeMap<String, JobState>,
}

impl Submitting<'_> {
    /// Refuses what would run beside jobs that are still in the queue and do something else.
    pub fn admit(&self) -> Outcome {
        let seeds: Vec<u64> = self.jobs.runs.iter().filter_map(|run| run.seed).collect();
        let others: Vec<String> =
            self.in_queue(|job| job.seed.is_some() == seeds.is_empty() && job.stage != CHECK);
        for run in self.jobs.runs {
            let jobs = self.in_queue(|job| job.seed == run.seed && job.stage != CHECK);
            let path = run.folder.cluster_dir().join("plan.toml");
            let submitted = fs::read_to_string(path).ok();
            let submitted = submitted.and_then(|text| Plan::from_toml(&text).ok());
            let same =
                submitted.is_none_or(|plan| run.does_the_same(&plan)) && run.moved.is_empty();
            if !jobs.is_empty() && !same {
                return Err(self.busy(
                    "was submitted with other settings, or would be moved",
                    &jobs,
                ));
            }
        }
        if others.is_empty() {
            return Ok(());
        }
        Err(self.busy("was submitted with seeds, or without", &others))
    }

    fn busy(&self, what: &str, jobs: &[String]) -> Failure {
        let root = self.jobs.root.display();
        Failure::usage(anyhow!(
            "{root} has jobs in the queue, and what they do {what}: {}\n  hint: `rlhf cancel {root}` first, or take another \
             --run-dir",
            jobs.join(", ")
        ))
    }

    /// Jobs in the queue, in words.
    fn in_queue(&self, which: impl Fn(&Job) -> bool) -> Vec<String> {
        let jobs = self.record.jobs.iter().filter(|job| which(job));
        let is_in_queue = |job: &&Job| {
            let known = self.queue.get(&job.id);
            known.is_some_and(JobState::may_run)
        };
        jobs.filter(is_in_queue)
            .map(|job| format!("{} (job {})", job.stage, job.id))
            .collect()
    }

    /// Brings models of the hub here: nodes rarely reach it.
    pub fn fetch(&self, models: &Models) -> Outcome {
        for wave in &self.jobs.waves {
            let run = &self.jobs.runs[wave.runs[0]];
            for stage in wave.new_stages() {
                models.fetch(run.stage(stage))?;
            }
        }
        Ok(())
    }

    /// Writes all that jobs will read.
    pub fn prepare(&self) -> Outcome {
        self.move_aside()?;
        for run in self.jobs.runs {
            let cluster = run.folder.cluster_dir();
            let plan = run.plan.to_toml().map_err(Failure::run)?;
            write_bytes(&cluster.join("plan.toml"), plan.as_bytes()).map_err(Failure::run)?;
            record(&run.plan, &run.folder, None)?;
            let logs = run.folder.root().join("logs");
            fs::create_dir_all(&logs).map_err(|error| {
                Failure::Run(anyhow!("cannot create {}: {error}", logs.display()))
            })?;
        }
        let cluster = RunFolder::at(self.jobs.root).cluster_dir();
        let config = fs::read(self.config).map_err(Failure::run)?;
        write_bytes(&cluster.join("pipeline.toml"), &config).map_err(Failure::run)?;
        write_bytes(&cluster.join("token"), self.jobs.token.as_bytes()).map_err(Failure::run)?;
        let logs = self.jobs.root.join("logs");
        fs::create_dir_all(&logs)
            .map_err(|error| Failure::Run(anyhow!("cannot create {}: {error}", logs.display())))
    }

    /// Moves the folders of stages that are run anew, once nobody works in any of them.
    fn move_aside(&self) -> Outcome {
        let runs = self.jobs.runs.iter();
        let moved: Vec<(&Run, &String)> = runs
            .flat_map(|run| run.moved.iter().map(move |stage| (run, stage)))
            .filter(|(run, stage)| run.folder.stage(stage).root().exists())
            .collect();
        let locks: Result<Vec<RunLock>, RunFolderError> = moved
            .iter()
            .map(|(run, stage)| run.folder.lock_part(stage))
            .collect();
        let _locks = locks.map_err(Failure::run)?;
        for (run, stage) in moved {
            if let Some(aside) = run.folder.stage(stage).move_aside().map_err(Failure::run)? {
                eprintln!("{stage:>12}  its old folder is now {}", aside.display());
            }
        }
        Ok(())
    }

    fn write_script(&self, stage: &str) -> Outcome<PathBuf> {
        let path = script_path(self.jobs.root, stage);
        write_bytes(&path, self.jobs.script(stage).as_bytes()).map_err(Failure::run)?;
        Ok(path)
    }

    /// Submits the new jobs; after a refusal none of them is left.
    pub fn submit(&mut self) -> Outcome {
        self.jobs.say_what_stays();
        if !self.jobs.has_new() {
            eprintln!(
                "nothing to submit; see `rlhf status {}`",
                self.jobs.root.display()
            );
            return Ok(());
        }
        let before = self.record.clone();
        let mut ids = Vec::new();
        if let Err(failure) = self.submit_all(&mut ids) {
            let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
            if let Err(error) = slurm::cancel(&ids) {
                eprintln!(
                    "jobs {} were submitted and are still in the queue: {error}",
                    ids.join(", ")
                );
            } else if !ids.is_empty() {
                eprintln!("cancelled what was submitted before: {}", ids.join(", "));
            }
            before.write(self.jobs.root).map_err(Failure::run)?;
            return Err(failure);
        }
        eprintln!("follow it with: rlhf status {}", self.jobs.root.display());
        Ok(())
    }

    fn submit_all(&mut self, made: &mut Vec<String>) -> Outcome {
        self.cancel_what_is_replaced()?;
        self.record
            .seeds
            .extend(self.jobs.runs.iter().filter_map(|run| run.seed));
        self.record.seeds.sort_unstable();
        self.record.seeds.dedup();
        let mut check = BTreeMap::new();
        self.submit_one(
            CHECK,
            &[None],
            (&[], &slurm::options(None, None)),
            (made, &mut check),
        )?;
        for wave in self.jobs.waves.clone() {
            let mut ids = check.clone();
            let seeds: Vec<Option<u64>> = wave
                .runs
                .iter()
                .map(|run| self.jobs.runs[*run].seed)
                .collect();
            let places = self.jobs.places(&wave);
            for stage in wave.new_stages() {
                let (after, dependency) = self.jobs.dependency((&wave, stage), &ids);
                let options = slurm::options(dependency.as_deref(), places.as_deref());
                self.submit_one(stage, &seeds, (&after, &options), (made, &mut ids))?;
            }
        }
        Ok(())
    }

    /// Jobs that wait for what failed, or for what now gets another job, would wait for ever.
    fn cancel_what_is_replaced(&self) -> Outcome {
        let mut ids = Vec::new();
        for wave in &self.jobs.waves {
            for stage in wave.new_stages() {
                let jobs = wave
                    .runs
                    .iter()
                    .filter_map(|run| self.record.job(stage, self.jobs.runs[*run].seed));
                let waits = |job: &&Job| self.queue.get(&job.id).is_some_and(JobState::is_in_queue);
                ids.extend(jobs.filter(waits).map(|job| job.id.as_str()));
            }
        }
        Ok(slurm::cancel(&ids)?)
    }

    fn submit_one(
        &mut self,
        stage: &str,
        seeds: &[Option<u64>],
        (after, options): (&[String], &[String]),
        (made, ids): (&mut Vec<String>, &mut BTreeMap<String, String>),
    ) -> Outcome {
        let script = self.write_script(stage)?;
        let (id, cluster) =
            slurm::submit(&script, options).map_err(|error| match error.into() {
                Failure::Usage(error) => Failure::Usage(error.context(format!("stage `{stage}`"))),
                other => other,
            })?;
        made.push(id.clone());
        self.record.cluster = cluster.or_else(|| self.record.cluster.take());
        for seed in seeds {
            let seed_word = seed.map(|seed| seed.to_string());
            self.record.put(Job {
                stage: stage.to_owned(),
                seed: *seed,
                id: seed.map_or_else(|| id.clone(), |seed| format!("{id}_{seed}")),
                after: after.to_vec(),
                script: script.clone(),
                log: log_path(self.jobs.root, stage, seed_word.as_deref(), &id),
                submitted: seconds_since_epoch(),
            });
        }
        // At once: a job that nobody knows of could be submitted twice.
        self.record.write(self.jobs.root).map_err(Failure::run)?;
        let waits = if after.is_empty() {
            String::new()
        } else {
            format!("  after {}", after.join(", "))
        };
        print(&format!("{stage:>12}  job {id}{waits}")).map_err(Failure::run)?;
        ids.insert(stage.to_owned(), id);
        Ok(())
    }
}
