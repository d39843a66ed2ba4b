//! How far the jobs of a run folder are: from Slurm's queue, and from what the stages themselves write.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::UNIX_EPOCH;

use anyhow::Result;
use runtime::RunFolder;
use serde::Serialize;

use super::CHECK;
use super::record::{Job, Submission, seed_folder};
use super::slurm::JobState;
use crate::failed::Failed;
use crate::inspect::{self, Stage, StageState};

/// One job, as it is now.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Its stage; `cluster` is the check of a node.
    pub stage: String,
    /// The seed of its run, where there are several.
    pub seed: Option<u64>,
    /// Its number.
    pub job: String,
    /// `pending`, `running`, `done`, `failed` and so on.
    pub state: String,
    /// Why it waits, or did not end well.
    pub reason: Option<String>,
    /// Its machines.
    pub nodes: Option<String>,
    /// Updates done.
    pub step: Option<u64>,
    /// Updates in all, where the plan says.
    pub steps: Option<u64>,
    /// The number that says most, by its name.
    pub metric: Option<(String, f64)>,
    /// How long the job runs, in Slurm's words.
    pub elapsed: Option<String>,
    /// How long it may still run, in Slurm's words.
    pub limit_left: Option<String>,
    /// Seconds that the stage still needs, as fast as it was lately.
    pub seconds_left: Option<u64>,
    /// What it says.
    pub log: String,
}

/// Metrics that say how a stage is doing, the first that it writes.
const TELLING: [&str; 3] = ["objective/score", "loss/train", "loss/heldout"];

/// Slurm's word for a job that was taken out of the queue, or ended by `scancel`.
const CANCELLED: &str = "CANCELLED";

/// Steps over which speed is measured.
const LATELY: usize = 20;

/// The rows of a submission; `queue` is what Slurm knows.
///
/// # Errors
/// A run folder that cannot be read.
pub fn rows(
    root: &Path,
    submission: &Submission,
    queue: &BTreeMap<String, JobState>,
) -> Result<Vec<Row>> {
    let mut stages = BTreeMap::new();
    for seed in submission.jobs.iter().map(|job| job.seed) {
        let folder = seed_folder(root, seed);
        if stages.contains_key(&seed) || (seed.is_none() && !submission.seeds.is_empty()) {
            continue;
        }
        stages.insert(seed, inspect::read_run(&folder)?.stages);
    }
    let view = View {
        root,
        submission,
        queue,
        stages,
    };
    Ok(submission.jobs.iter().map(|job| view.row(job)).collect())
}

struct View<'a> {
    root: &'a Path,
    submission: &'a Submission,
    queue: &'a BTreeMap<String, JobState>,
    stages: BTreeMap<Option<u64>, Vec<Stage>>,
}

/// How a job is, from all that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Waits,
    Runs,
    Done,
    Failed,
    Unknown,
}

impl View<'_> {
    fn row(&self, job: &Job) -> Row {
        let known = self.queue.get(&job.id);
        let stage = self.stage(job);
        let condition = self.condition(job);
        let state = match (condition, known) {
            (Condition::Done, _) => "done".to_owned(),
            (Condition::Unknown, None) => "unknown".to_owned(),
            (_, Some(known)) => known.state.to_lowercase(),
            (Condition::Failed, None) => "failed".to_owned(),
            (Condition::Runs, None) => "running".to_owned(),
            (Condition::Waits, None) => "pending".to_owned(),
        };
        let step = stage.and_then(Stage::last_step);
        let said = |text: fn(&JobState) -> &String| {
            let text = known.map(text).filter(|text| !text.is_empty());
            text.cloned()
        };
        Row {
            stage: job.stage.clone(),
            seed: job.seed,
            job: job.id.clone(),
            state,
            reason: self.reason(job, condition),
            nodes: said(|known| &known.nodes),
            step,
            steps: stage.and_then(|stage| stage.planned),
            metric: stage.and_then(metric),
            elapsed: said(|known| &known.elapsed).filter(|_| condition != Condition::Waits),
            limit_left: said(|known| &known.left).filter(|_| condition == Condition::Runs),
            seconds_left: stage
                .filter(|_| condition == Condition::Runs)
                .and_then(seconds_left),
            log: job.log.display().to_string(),
        }
    }

    fn stage(&self, job: &Job) -> Option<&Stage> {
        let stages = self.stages.get(&job.seed)?;
        stages.iter().find(|stage| stage.name == job.stage)
    }

    fn condition(&self, job: &Job) -> Condition {
        let of_folder = self.stage(job).map(|stage| stage.state);
        match (self.queue.get(&job.id), of_folder) {
            (_, Some(StageState::Done)) => Condition::Done,
            (Some(known), _) if known.state == "PENDING" => Condition::Waits,
            (Some(known), _) if known.is_in_queue() => Condition::Runs,
            (Some(known), _) if known.has_failed() => Condition::Failed,
            (Some(_), None) => Condition::Done,
            (None, Some(StageState::Running)) => Condition::Runs,
            // Without accounting Slurm forgets jobs within minutes.
            (None, None) if job.stage == CHECK && self.is_passed(job) => Condition::Done,
            (None, _) if self.failed(job).is_some() => Condition::Failed,
            _ => Condition::Unknown,
        }
    }

    /// The stage's own word on its failure in this job, not in one before.
    fn failed(&self, job: &Job) -> Option<Failed> {
        let run = RunFolder::at(&seed_folder(self.root, job.seed));
        Failed::since(&run.stage(&job.stage), job.submitted)
    }

    /// Whether a stage of the same submission has begun: the check before it must have ended well.
    fn is_passed(&self, check: &Job) -> bool {
        let has_begun = |job: &Job| {
            let stage = RunFolder::at(&seed_folder(self.root, job.seed)).stage(&job.stage);
            let signs = [stage.state_path(), stage.done_path(), stage.failed_path()];
            signs.iter().any(|sign| {
                let changed = fs::metadata(sign).and_then(|meta| meta.modified()).ok();
                let time = changed.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
                time.is_some_and(|time| time.as_secs() >= check.submitted)
            })
        };
        let jobs = self.submission.jobs.iter();
        let mut later = jobs.filter(|job| job.stage != CHECK && job.submitted >= check.submitted);
        later.any(has_begun)
    }

    fn reason(&self, job: &Job, condition: Condition) -> Option<String> {
        match condition {
            Condition::Done | Condition::Runs => None,
            Condition::Failed => Some(match self.failed_before(job) {
                // Some clusters cancel what waits in vain.
                Some(failed) if self.is_cancelled(job) => self.not_started(failed),
                _ => self.cause(job),
            }),
            Condition::Waits => Some(self.what_it_waits_for(job)),
            Condition::Unknown if self.queue.contains_key(&job.id) => {
                let run = RunFolder::at(&seed_folder(self.root, job.seed));
                Some(format!(
                    "the job completed, but {} is not seen here: is the run folder on a file system that this machine \
                     shares with the nodes?",
                    run.stage(&job.stage).done_path().display()
                ))
            }
            Condition::Unknown => Some(
                "Slurm does not know the job any more, and the stage is not done; submit again to go on"
                    .to_owned(),
            ),
        }
    }

    fn what_it_waits_for(&self, job: &Job) -> String {
        let known = self.queue.get(&job.id);
        if let Some(failed) = self.failed_before(job) {
            let never = known.filter(|known| known.waits_in_vain());
            let word = never.map_or_else(String::new, |known| format!(" ({})", known.reason));
            return self.not_started(failed) + &word;
        }
        let waits: Vec<&str> = self
            .parents(job)
            .filter(|parent| matches!(self.condition(parent), Condition::Waits | Condition::Runs))
            .map(|parent| parent.stage.as_str())
            .collect();
        match known {
            Some(known) if known.waits_in_vain() => {
                "not started: what it waits for did not end well (DependencyNeverSatisfied)"
                    .to_owned()
            }
            _ if !waits.is_empty() => format!("waits for {}", waits.join(", ")),
            Some(known) => format!("waits in the queue ({})", known.reason),
            None => "waits".to_owned(),
        }
    }

    fn not_started(&self, failed: &Job) -> String {
        format!(
            "not started: {} failed: {}",
            failed.stage,
            self.cause(failed)
        )
    }

    /// Whether it was taken out of the queue, with no failure of its own.
    fn is_cancelled(&self, job: &Job) -> bool {
        let known = self.queue.get(&job.id);
        known.is_some_and(|known| known.state == CANCELLED) && self.failed(job).is_none()
    }

    fn parents<'b>(&'b self, job: &'b Job) -> impl Iterator<Item = &'b Job> {
        job.after.iter().filter_map(|stage| {
            let check = (stage == CHECK).then_some(None);
            self.submission.job(stage, check.unwrap_or(job.seed))
        })
    }

    /// The nearest job before this one that has failed; one that was cancelled since another had failed is not the cause.
    fn failed_before<'b>(&'b self, job: &'b Job) -> Option<&'b Job> {
        let failed = self
            .parents(job)
            .find(|parent| self.condition(parent) == Condition::Failed);
        let before = || {
            self.parents(job)
                .find_map(|parent| self.failed_before(parent))
        };
        match failed {
            Some(failed) if !self.is_cancelled(failed) => Some(failed),
            cancelled => before().or(cancelled),
        }
    }

    /// Why a job failed: in the stage's own words, in its log's, or in Slurm's.
    fn cause(&self, job: &Job) -> String {
        if let Some(failed) = self.failed(job) {
            return failed.error.lines().next().unwrap_or_default().to_owned();
        }
        let state = self.queue.get(&job.id).map(|known| known.state.clone());
        let state = state.unwrap_or_else(|| "FAILED".to_owned());
        if state == CANCELLED {
            return "it was cancelled".to_owned();
        }
        let log = job.log.display();
        match fs::read_to_string(&job.log) {
            Ok(text) => match last_error(&text) {
                Some(line) => line,
                None => format!("{state}, with no word of explanation in {log}"),
            },
            Err(_) => format!("{state}, and {log} is not there: do the nodes see that folder?"),
        }
    }
}

/// What a log says of a failure: what a check found wrong, or the last error.
fn last_error(text: &str) -> Option<String> {
    let wrong: Vec<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("WRONG"))
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    if !wrong.is_empty() {
        return Some(wrong.join("; "));
    }
    let own = text
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("error: "));
    let any = || text.lines().rev().find(|line| line.contains("rror: "));
    own.or_else(any).map(str::to_owned)
}

fn metric(stage: &Stage) -> Option<(String, f64)> {
    TELLING.iter().find_map(|name| {
        let (_, value) = stage.series(name).pop()?;
        Some(((*name).to_owned(), value))
    })
}

fn seconds_left(stage: &Stage) -> Option<u64> {
    let last = stage.rows.last()?;
    let before = &stage.rows[stage.rows.len().saturating_sub(LATELY)];
    let left = stage.planned?.checked_sub(last.step)?;
    let steps = last
        .step
        .checked_sub(before.step)
        .filter(|steps| *steps > 0)?;
    let pace = (last.time - before.time) / steps as f64;
    Some((pace * left as f64).ceil() as u64)
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
