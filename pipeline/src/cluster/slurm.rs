//! Slurm's own commands: `sbatch`, `squeue`, `sacct`, `scancel`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::process::Command;

use crate::failure::Failure;

/// Why Slurm did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SlurmError {
    /// A command is not there.
    #[error(
        "{program} is not there\n  hint: run this on a login node of the cluster, where Slurm's commands are; `--dry-run` \
         prints the scripts anywhere"
    )]
    Missing {
        /// The command.
        program: &'static str,
    },
    /// The system does not start a command.
    #[error("cannot start {program}")]
    Start {
        /// The command.
        program: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// Slurm refuses, in its own words.
    #[error("{program} refuses: {words}")]
    Refused {
        /// The command.
        program: &'static str,
        /// What it says.
        words: String,
    },
}

impl From<SlurmError> for Failure {
    fn from(error: SlurmError) -> Self {
        if error.is_usage() {
            Self::usage(error)
        } else {
            Self::run(error)
        }
    }
}

impl SlurmError {
    /// Whether another command line or configuration would help.
    fn is_usage(&self) -> bool {
        match self {
            Self::Missing { .. } => true,
            Self::Start { .. } => false,
            Self::Refused { words, .. } => !words.contains("Unable to contact"),
        }
    }
}

/// What Slurm says of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobState {
    /// In Slurm's word, as `PENDING`.
    pub state: String,
    /// Why it is in it.
    pub reason: String,
    /// Its machines.
    pub nodes: String,
    /// How long it runs.
    pub elapsed: String,
    /// How long it may still run.
    pub left: String,
}

/// What a pending job says whose dependency can never hold.
const NEVER: &str = "DependencyNeverSatisfied";

/// States of jobs that will not run any more.
const ENDED: [&str; 10] = [
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
];

impl JobState {
    /// Whether it waits or runs.
    pub fn is_in_queue(&self) -> bool {
        !ENDED.contains(&self.state.as_str())
    }

    /// Whether what it waits for has failed.
    pub fn waits_in_vain(&self) -> bool {
        self.state == "PENDING" && self.reason == NEVER
    }

    /// Whether it runs, or will.
    pub fn may_run(&self) -> bool {
        self.is_in_queue() && !self.waits_in_vain()
    }

    /// Whether it has ended, and not well.
    pub fn has_failed(&self) -> bool {
        !self.is_in_queue() && self.state != "COMPLETED"
    }
}

/// Runs a command of Slurm to its end.
fn ask(program: &'static str, arguments: &[&str]) -> Result<String, SlurmError> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => SlurmError::Missing { program },
            _ => SlurmError::Start { program, source },
        })?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let words = text(&output.stderr).replace('\n', "; ");
    Err(SlurmError::Refused { program, words })
}

/// Whether jobs can be submitted here.
///
/// # Errors
/// No `sbatch`.
pub fn is_there() -> Result<(), SlurmError> {
    ask("sbatch", &["--version"]).map(drop)
}

/// Options of `sbatch` beside the script's own: what it waits for, and the places of an array.
pub fn options(dependency: Option<&str>, array: Option<&str>) -> Vec<String> {
    let mut options = vec!["--parsable".to_owned()];
    options.extend(dependency.map(|jobs| format!("--dependency={jobs}")));
    options.extend(array.map(|places| format!("--array={places}")));
    options
}

/// Submits a script; gives the job's number, and the cluster's name where there are several.
///
/// # Errors
/// Slurm's refusal.
pub fn submit(script: &Path, options: &[String]) -> Result<(String, Option<String>), SlurmError> {
    let path = script.to_string_lossy();
    let mut arguments: Vec<&str> = options.iter().map(String::as_str).collect();
    arguments.push(&path);
    let answer = ask("sbatch", &arguments)?;
    let line = answer.lines().last().unwrap_or_default();
    let (id, cluster) = match line.split_once(';') {
        Some((id, cluster)) => (id, Some(cluster.to_owned())),
        None => (line, None),
    };
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_digit()) {
        let words = format!("its answer {answer:?} is no number of a job");
        return Err(SlurmError::Refused {
            program: "sbatch",
            words,
        });
    }
    Ok((id.to_owned(), cluster))
}

/// Takes jobs out of the queue, or ends them. One that has ended already is no error.
///
/// # Errors
/// Slurm's refusal.
pub fn cancel(ids: &[&str]) -> Result<(), SlurmError> {
    if ids.is_empty() {
        return Ok(());
    }
    ask("scancel", ids).map(drop)
}

/// What Slurm knows of these jobs: those in the queue or just ended, and where accounting is on, all.
///
/// # Errors
/// `squeue` is missing, or refuses. (Without accounting, old jobs are unknown.)
pub fn look(ids: &[&str]) -> Result<BTreeMap<String, JobState>, SlurmError> {
    if ids.is_empty() {
        return Ok(BTreeMap::new());
    }
    let arrays: BTreeSet<&str> = ids.iter().filter_map(|id| id.split('_').next()).collect();
    let list: Vec<&str> = arrays.into_iter().collect();
    let list = list.join(",");
    let jobs = format!("--jobs={list}");
    let format = "--format=%i|%T|%r|%N|%M|%L";
    let mut known = match ask(
        "squeue",
        &["--noheader", "--array", "--states=all", format, &jobs],
    ) {
        Ok(text) => parse_queue(&text),
        // Asked for one job alone, it refuses what it has forgotten.
        Err(SlurmError::Refused { words, .. }) if words.contains("Invalid job id") => {
            BTreeMap::new()
        }
        Err(error) => return Err(error),
    };
    if ids.iter().any(|id| !known.contains_key(*id)) {
        let fields = "--format=JobID,State,NodeList,Elapsed";
        let flags = ["--noheader", "--parsable2", "--allocations", fields, &jobs];
        // Many clusters have no accounting; what is known then is what the queue says.
        if let Ok(text) = ask("sacct", &flags) {
            for (id, state) in parse_accounts(&text) {
                known.entry(id).or_insert(state);
            }
        }
    }
    Ok(known)
}

fn parse_queue(text: &str) -> BTreeMap<String, JobState> {
    let job = |line: &str| {
        let fields: Vec<&str> = line.trim().split('|').collect();
        let [id, state, reason, nodes, elapsed, left] = fields[..] else {
            return None;
        };
        let state = JobState {
            state: state.to_owned(),
            reason: reason.to_owned(),
            nodes: nodes.to_owned(),
            elapsed: elapsed.to_owned(),
            left: left.to_owned(),
        };
        Some((id.to_owned(), state))
    };
    text.lines().filter_map(job).collect()
}

fn parse_accounts(text: &str) -> BTreeMap<String, JobState> {
    let job = |line: &str| {
        let fields: Vec<&str> = line.trim().split('|').collect();
        let [id, state, nodes, elapsed] = fields[..] else {
            return None;
        };
        // `CANCELLED by 1000`
        let state = state.split(' ').next().unwrap_or_default();
        let state = JobState {
            state: state.to_owned(),
            reason: String::new(),
            nodes: nodes.to_owned(),
            elapsed: elapsed.to_owned(),
            left: String::new(),
        };
        Some((id.to_owned(), state))
    };
    text.lines().filter_map(job).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_is_read_as_squeue_writes_it() {
        let text = "5_1|COMPLETED|None|node1|0:07|UNLIMITED\n\
                    5_2|PENDING|DependencyNeverSatisfied||0:00|UNLIMITED\n\
                    8|RUNNING|None|node[1-2]|1-00:00:05|23:59:55\nnonsense\n";
        let known = parse_queue(text);
        assert_eq!(known.len(), 3);
        assert!(known["5_2"].waits_in_vain() && known["5_2"].is_in_queue());
        assert!(!known["5_1"].is_in_queue() && !known["5_1"].has_failed());
        let running = &known["8"];
        assert!(running.is_in_queue() && !running.waits_in_vain());
        assert_eq!(
            (&running.nodes[..], &running.left[..]),
            ("node[1-2]", "23:59:55")
        );
    }

    #[test]
    fn accounts_are_read_as_sacct_writes_them() {
        let known =
            parse_accounts("7|CANCELLED by 1000|None assigned|00:00:00\n9|FAILED|n1|00:01:00");
        assert!(known["7"].has_failed() && known["7"].state == "CANCELLED");
        assert!(known["9"].has_failed() && known["9"].nodes == "n1");
    }

    #[test]
    fn another_partition_helps_and_a_controller_that_is_away_is_nobodys_mistake() {
        let refused = |words: &str| SlurmError::Refused {
            program: "sbatch",
            words: words.to_owned(),
        };
        assert!(refused("invalid partition specified: x").is_usage());
        assert!(!refused("Unable to contact slurm controller (connect failure)").is_usage());
        assert!(SlurmError::Missing { program: "sbatch" }.is_usage());
    }
}
