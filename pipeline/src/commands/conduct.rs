//! `rlhf conduct`: releases the jobs of a pipeline on Kubernetes, each after those it needs.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use clap::Args;
use runtime::interrupt;

use super::TICK;
use crate::cluster::kubectl::{Job, Kubectl};
use crate::cluster::manifests::STAGE;
use crate::failure::{Failure, Outcome};

/// How often Kubernetes may give no answer, one time after the other.
const PATIENCE: usize = 60;

/// Release the jobs that `rlhf submit --to kubernetes` holds, each when those it needs are complete
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Example:
  rlhf conduct big --namespace team

`rlhf submit --to kubernetes` makes a job that runs this in the cluster, by an account that may get, list and patch jobs.
Needs kubectl. All that it knows is in the jobs, so it may be ended and begun at any time. It ends when all jobs have ended:
with 1 where one has failed.")]
pub struct ConductArgs {
    /// The run: what the label rlhf/run of its jobs says.
    #[arg(value_name = "RUN")]
    pub run: String,
    /// The namespace of its jobs.
    #[arg(long, default_value = "default")]
    pub namespace: String,
    /// Seconds from one look to the next.
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    pub every: u64,
}

/// What is to be done now.
#[derive(Debug, Default, PartialEq, Eq)]
struct Next<'a> {
    /// Jobs that may begin.
    release: Vec<&'a str>,
    /// Jobs that have failed or will never begin, and why.
    lost: BTreeMap<&'a str, String>,
    /// Whether any job will yet run, or runs.
    goes_on: bool,
}

/// Looks, and releases, until all jobs have ended.
///
/// # Errors
/// A job that failed; no `kubectl`, no right, no answer for long.
pub fn run(args: &ConductArgs) -> Outcome {
    interrupt::install().map_err(Failure::run)?;
    let kubectl = Kubectl {
        namespace: &args.namespace,
    };
    let mut said = BTreeSet::new();
    let mut without_answer = 0;
    loop {
        match kubectl.jobs(&args.run) {
            Ok(jobs) => {
                without_answer = 0;
                if jobs.is_empty() {
                    return Err(Failure::usage(anyhow!(
                        "there are no jobs of {} in namespace {}\n  hint: `rlhf submit --to kubernetes` makes them",
                        args.run,
                        args.namespace
                    )));
                }
                let next = next(&jobs);
                for name in &next.release {
                    // A refusal shows again at the next look, where its patience is counted.
                    match kubectl.release(&jobs[*name]) {
                        Ok(()) => eprintln!("{name} begins"),
                        Err(error) => eprintln!("{name}: {error}"),
                    }
                }
                for (name, why) in &next.lost {
                    if said.insert((*name).to_owned()) {
                        eprintln!("{name} {why}");
                    }
                }
                if !next.goes_on {
                    return end(&next);
                }
            }
            Err(error) if error.is_for_good() || without_answer == PATIENCE => {
                return Err(error.into());
            }
            Err(error) => {
                without_answer += 1;
                eprintln!("{error}");
            }
        }
        wait(Duration::from_secs(args.every))?;
    }
}

fn end(next: &Next) -> Outcome {
    if next.lost.is_empty() {
        eprintln!("all jobs are complete");
        return Ok(());
    }
    let all: Vec<String> = next
        .lost
        .iter()
        .map(|(name, why)| format!("{name} {why}"))
        .collect();
    Err(Failure::Run(anyhow!(
        "{}\n  hint: `kubectl logs job/NAME` of what failed says more; submit again to go on",
        all.join("; ")
    )))
}

fn wait(duration: Duration) -> Outcome {
    let end = Instant::now() + duration;
    while Instant::now() < end {
        if interrupt::requested() {
            return Err(Failure::Interrupted("the same command goes on".to_owned()));
        }
        thread::sleep(TICK);
    }
    Ok(())
}

fn next(jobs: &BTreeMap<String, Job>) -> Next<'_> {
    let mut next = Next::default();
    // A job that is lost takes those after it along, whatever their order.
    loop {
        let before = next.lost.len();
        for job in jobs.values() {
            if let Some(why) = why_lost(job, jobs, &next.lost) {
                next.lost.insert(job.name(), why);
            }
        }
        if next.lost.len() == before {
            break;
        }
    }
    for job in jobs.values().filter(|job| job.is_live()) {
        // The conductor itself has no stage.
        if next.lost.contains_key(job.name()) || job.annotation(STAGE).is_empty() {
            continue;
        }
        next.goes_on = true;
        let complete = |name: &str| jobs.get(name).is_some_and(Job::is_complete);
        if job.is_held() && job.after().all(complete) {
            next.release.push(job.name());
        }
    }
    next
}

fn why_lost(
    job: &Job,
    jobs: &BTreeMap<String, Job>,
    lost: &BTreeMap<&str, String>,
) -> Option<String> {
    if job.annotation(STAGE).is_empty() {
        return None;
    }
    if let Some(failure) = job.failure() {
        return Some(format!("has failed ({failure})"));
    }
    if !job.is_held() {
        return None;
    }
    job.after().find_map(|name| {
        if !jobs.contains_key(name) {
            Some(format!("is not started: {name} is not there any more"))
        } else if lost.contains_key(name) {
            Some(format!("is not started, since it needs {name}"))
        } else {
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn job(name: &str, after: &str, (suspend, condition): (bool, Option<&str>)) -> Value {
        let annotations = json!({"rlhf/stage": name, "rlhf/after": after});
        let conditions: Vec<Value> = condition
            .into_iter()
            .map(|kind| json!({"type": kind, "status": "True", "reason": "R", "message": "m"}))
            .collect();
        json!({
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"suspend": suspend},
            "status": {"conditions": conditions},
        })
    }

    fn jobs(all: &[Value]) -> BTreeMap<String, Job> {
        let read = |value: &Value| -> Job { serde_json::from_value(value.clone()).expect("a job") };
        all.iter()
            .map(read)
            .map(|job| (job.name().to_owned(), job))
            .collect()
    }

    #[test]
    fn a_job_begins_when_all_that_it_needs_is_complete() {
        let of = |a: Option<&str>, b: Option<&str>| {
            let all = [
                job("a", "", (false, a)),
                job("b", "", (false, b)),
                job("c", "a,b", (true, None)),
                job("d", "c", (true, None)),
            ];
            let jobs = jobs(&all);
            let next = next(&jobs);
            let lost: Vec<String> = next
                .lost
                .iter()
                .map(|(name, why)| format!("{name} {why}"))
                .collect();
            (next.release.join(","), lost.join("; "), next.goes_on)
        };
        let done = Some("Complete");
        assert_eq!(of(done, None), (String::new(), String::new(), true));
        assert_eq!(of(done, done), ("c".to_owned(), String::new(), true));
        let (release, lost, goes_on) = of(done, Some("Failed"));
        assert!(release.is_empty() && !goes_on);
        assert_eq!(
            lost,
            "b has failed (R: m); c is not started, since it needs b; d is not started, since it needs c"
        );
        // What does not need it goes on.
        assert!(of(None, Some("Failed")).2);
    }

    #[test]
    fn what_was_released_is_not_held_and_what_was_taken_away_is_missed() {
        let mut queued = job("c", "a", (true, None));
        queued["metadata"]["labels"] = json!({"kueue.x-k8s.io/queue-name": "q"});
        let all = jobs(&[job("a", "", (false, Some("Complete"))), queued]);
        let found = next(&all);
        assert!(found.release.is_empty() && found.goes_on, "{found:?}");
        let all = jobs(&[job("c", "a", (true, None))]);
        let found = next(&all);
        assert_eq!(found.lost["c"], "is not started: a is not there any more");
        assert!(!found.goes_on);
    }
}
