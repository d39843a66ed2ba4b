//! The workers that this process starts for a stage, followed as one.
//!
//! The first rank's progress is the stage's. The first failure ends all; reported is the one that the others' failures
//! follow from.

use std::time::{Duration, Instant};

use anyhow::anyhow;
use runtime::ranks::Place;
use runtime::{Event, RunFolder, interrupt};

use crate::commands::print;
use crate::libtorch::Libtorch;
use crate::progress::Progress;
use crate::team::Team;
use crate::worker::{CUBLAS_BUFFERS, Incoming, Worker, WorkerError};

/// How long a look at all workers takes at most.
const TICK: Duration = Duration::from_millis(100);

/// How long the others may take, after a first failure, to say what they died of.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// How a stage ended well.
pub enum End {
    /// It is done.
    Finished,
    /// It was asked to stop, and has saved.
    Interrupted,
}

/// A worker and its rank.
pub struct Member {
    /// From 0, over all machines.
    pub rank: usize,
    /// `None` once it has ended.
    pub worker: Option<Worker>,
}

/// A stage to be run.
#[derive(Debug, Clone, Copy)]
pub struct Work<'a> {
    /// The library that workers load.
    pub libtorch: &'a Libtorch,
    /// The run's folder.
    pub run: &'a RunFolder,
    /// The stage's name.
    pub stage: &'a str,
    /// Of what it is made.
    pub hash: &'a str,
    /// Where to compute.
    pub device: &'a str,
    /// The same bits in every run.
    pub deterministic: bool,
}

/// The log of a program or a stage: the first rank's has the plain name.
pub fn log_name(name: &str, rank: usize) -> String {
    match rank {
        0 => name.to_owned(),
        _ => format!("{name}-rank{rank}"),
    }
}

/// Starts a worker for each of the team's ranks on this machine.
///
/// # Errors
/// Where no port is free, or a worker does not start.
pub fn start(work: &Work, team: &Team) -> anyhow::Result<Vec<Member>> {
    let member = |place: &Place| {
        Ok(Member {
            rank: place.rank,
            worker: Some(start_one(work, team, place)?),
        })
    };
    team.places()?.iter().map(member).collect()
}

fn start_one(work: &Work, team: &Team, place: &Place) -> Result<Worker, WorkerError> {
    let root = work.run.root().to_string_lossy();
    let mut arguments = vec!["stage", "--run-dir", &root, "--stage", work.stage];
    arguments.extend(["--device", work.device]);
    let mut environment = Vec::new();
    if work.deterministic {
        arguments.push("--deterministic");
        environment.push(CUBLAS_BUFFERS);
    }
    let log = Some(work.run.log_path(&log_name(work.stage, place.rank)));
    if team.size == 1 {
        return Worker::start_with(work.libtorch, &arguments, log, &environment);
    }
    let patience = [team.join, team.timeout].map(|time| time.as_secs().to_string());
    arguments.extend(["--join-timeout", &patience[0], "--timeout", &patience[1]]);
    arguments.extend(["--hash", work.hash]);
    let threads = team.threads().to_string();
    environment.push(("OMP_NUM_THREADS", &threads));
    let mut own = place.to_variables().to_vec();
    if team.here > 1 && work.device != "cpu" {
        let visible = std::env::var(GPUS).ok();
        own.push((GPUS, gpu_of(place.local_rank, visible.as_deref())));
    }
    Worker::start_ranked(work.libtorch, &arguments, log, &environment, &own)
}

/// Which GPUs a process sees, in CUDA's own words.
pub const GPUS: &str = "CUDA_VISIBLE_DEVICES";

/// The GPU of a rank, of those that this process sees: as many as there are ranks, where they are listed
/// ([`Team::admit_gpus`]). (One that is not there is refused by the worker.)
fn gpu_of(local_rank: usize, visible: Option<&str>) -> String {
    let all: Vec<&str> = visible.map_or_else(Vec::new, |list| list.split(',').collect());
    match all.get(local_rank) {
        Some(gpu) => (*gpu).to_owned(),
        None => local_rank.to_string(),
    }
}

struct Failed {
    rank: usize,
    error: WorkerError,
}

/// Shows what the workers do until all have ended; passes on the wish to stop.
///
/// # Errors
/// Where one fails or dies; the others have ended by then.
pub fn follow(mut crew: Vec<Member>, stage: &str) -> anyhow::Result<End> {
    let several = crew.iter().any(|member| member.rank > 0) || crew.len() > 1;
    let mut progress = Progress::waiting(stage);
    let (mut end, mut failed) = (None, Vec::new());
    let mut patience: Option<Instant> = None;
    let mut asked_to_stop = false;
    while crew.iter().any(|member| member.worker.is_some()) {
        if interrupt::requested() && !asked_to_stop {
            asked_to_stop = true;
            for worker in crew.iter_mut().filter_map(|member| member.worker.as_mut()) {
                worker.send(&recipe::request::Command::Stop);
            }
            progress.note("saving a snapshot and ending; Ctrl-C again ends at once");
        }
        let running = crew.iter().filter(|member| member.worker.is_some()).count();
        for (index, member) in crew.iter_mut().enumerate() {
            if let Err(error) = look(
                member,
                (index == 0, several),
                &mut progress,
                &mut end,
                TICK / running as u32,
            ) {
                failed.push(error);
                patience.get_or_insert_with(|| Instant::now() + LAST_WORDS);
            }
        }
        if patience.is_some_and(|end| Instant::now() > end) {
            Worker::end_all(crew.iter_mut().filter_map(|m| m.worker.take()).collect());
        }
    }
    conclude(progress, failed, end, several)
}

/// The next thing that a worker says, if it says one in time.
fn look(
    member: &mut Member,
    (is_first, several): (bool, bool),
    progress: &mut Progress,
    end: &mut Option<End>,
    patience: Duration,
) -> Result<(), Failed> {
    let rank = member.rank;
    let Some(worker) = &mut member.worker else {
        return Ok(());
    };
    match worker.receive(patience) {
        Some(Incoming::Closed) => {
            let ended = member.worker.take().map_or(Ok(()), Worker::finish);
            return ended.map_err(|error| Failed { rank, error });
        }
        Some(Incoming::Event(Event::Note { text })) if several => {
            progress.note(&format!("[rank {rank}] {text}"));
        }
        Some(Incoming::Event(event)) if is_first => show(event, progress, end),
        _ => {}
    }
    Ok(())
}

/// What the first of the workers says.
fn show(event: Event, progress: &mut Progress, end: &mut Option<End>) {
    match event {
        Event::Started { step, steps, .. } => progress.begin(step, steps),
        Event::Progress {
            step,
            steps,
            metrics,
            ..
        } => progress.advance(step, steps, metrics),
        Event::Note { text } => progress.note(&text),
        Event::Output { line } => drop(print(&line)),
        Event::Finished { interrupted, .. } => {
            *end = Some(if interrupted {
                End::Interrupted
            } else {
                End::Finished
            });
        }
        Event::Failed { .. } => {}
    }
}

fn conclude(
    progress: Progress,
    failed: Vec<Failed>,
    end: Option<End>,
    several: bool,
) -> anyhow::Result<End> {
    match (cause(failed), end) {
        (Some(Failed { rank, error }), _) => {
            progress.end("failed");
            Err(if several {
                anyhow::Error::from(error).context(format!("rank {rank}"))
            } else {
                error.into()
            })
        }
        (None, Some(end)) => {
            progress.end(if matches!(end, End::Finished) {
                "done"
            } else {
                "saved"
            });
            Ok(end)
        }
        (None, None) => {
            progress.end("ended");
            Err(anyhow!("the worker ended without saying that it finished"))
        }
    }
}

/// The failure that others follow from: the first that is not the loss of another rank.
fn cause(mut failed: Vec<Failed>) -> Option<Failed> {
    let by_itself = |failed: &Failed| !matches!(failed.error, WorkerError::LostOthers(_));
    let first = failed.iter().position(by_itself).unwrap_or(0);
    (first < failed.len()).then(|| failed.swap_remove(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rank_has_one_of_the_gpus_that_are_seen() {
        assert_eq!(gpu_of(1, None), "1");
        assert_eq!(gpu_of(1, Some("2,5")), "5");
        assert_eq!(gpu_of(0, Some("GPU-1a2b")), "GPU-1a2b");
    }

    #[test]
    fn the_cause_is_what_other_failures_follow_from() {
        let lost = |rank| Failed {
            rank,
            error: WorkerError::LostOthers("a rank is gone".to_owned()),
        };
        let own = |rank| Failed {
            rank,
            error: WorkerError::Failed("the disk is full".to_owned()),
        };
        let rank = |failed| cause(failed).map(|failed| failed.rank);
        assert_eq!(rank(vec![lost(2), lost(0), own(1), own(3)]), Some(1));
        assert_eq!(rank(vec![lost(2), lost(0)]), Some(2));
        assert_eq!(rank(Vec::new()), None);
    }
}
