//! `rlhf cancel`: ends the jobs of a run folder.

use std::path::PathBuf;

use clap::Args;

use super::print;
use super::status::submission;
use crate::cluster::record::Job;
use crate::cluster::slurm::{self, JobState};
use crate::failure::{Failure, Outcome};

/// Cancel the jobs of a run that was submitted; what they have saved stays
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Example:
  rlhf cancel runs/big

A stage that runs is ended by Slurm, which lets it save a snapshot first. `rlhf submit` again goes on from there.")]
pub struct CancelArgs {
    /// The run folder.
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
}

/// Cancels all jobs that have not ended.
///
/// # Errors
/// A folder from which nothing was submitted; no Slurm, or its refusal.
pub fn run(args: &CancelArgs) -> Outcome {
    let root = std::path::absolute(&args.run).unwrap_or_else(|_| args.run.clone());
    let submission = submission(&root)?;
    let queue = slurm::look(&submission.ids())?;
    let is_in_queue = |job: &&Job| queue.get(&job.id).is_some_and(JobState::is_in_queue);
    let jobs: Vec<&Job> = submission.jobs.iter().filter(is_in_queue).collect();
    let ids: Vec<&str> = jobs.iter().map(|job| job.id.as_str()).collect();
    slurm::cancel(&ids)?;
    for Job { stage, id, .. } in &jobs {
        print(&format!("{stage:>12}  job {id} is cancelled")).map_err(Failure::run)?;
    }
    if jobs.is_empty() {
        eprintln!("no job of {} is in the queue", root.display());
    }
    Ok(())
}
