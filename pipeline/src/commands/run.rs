//! `rlhf run`: runs the stages of a pipeline that are not done yet.

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use recipe::plan::{Plan, StagePlan, Task};
use runtime::files::{write_bytes, write_json};
use runtime::run_lock::seconds_since_epoch;
use runtime::{RunFolder, StageFolder, interrupt, logging};

use super::run_words::{continuation, in_words, shown};
use super::{TICK, find_libtorch, launch};
use crate::checks::check_inputs;
use crate::cli::RunArgs;
use crate::crew::{self, End, GPUS, Work};
use crate::data_stages;
use crate::failed::Failed;
use crate::failure::{Failure, Outcome};
use crate::fingerprint::Fingerprints;
use crate::graph::{self, GraphError, Record, Selection, State};
use crate::hub::{Models, run_folder};
use crate::libtorch::Libtorch;
use crate::team::Team;
use crate::worker::{self, WorkerError};

/// How much earlier than this process one on another machine may begin, by its own clock, in seconds.
const SKEW_S: u64 = 10;

/// `rlhf run`: as the environment says that this process stands among others, or alone.
///
/// # Errors
/// As [`run`].
pub fn alone(args: &RunArgs) -> Outcome {
    let join = Duration::from_secs(launch::JOIN_S);
    let timeout = Duration::from_secs(launch::TIMEOUT_S);
    let team = Team::from_environment(join, timeout).map_err(Failure::usage)?;
    run(args, &team, "rlhf")
}

/// Runs the selected stages in order. Everything that can be checked is checked before the first. `front` is the
/// command before `run`.
///
/// # Errors
/// A wrong configuration or input, a folder in use, no libtorch, a stage that fails, an interrupt.
pub fn run(args: &RunArgs, team: &Team, front: &str) -> Outcome {
    let started = seconds_since_epoch();
    let gpus = std::env::var(GPUS).ok();
    team.admit_gpus(args.device.as_str(), gpus.as_deref())
        .map_err(Failure::usage)?;
    let models = Models::default();
    let plan = models.plan(&args.source, args.run_dir.as_deref())?;
    let wanted = selection(args);
    let selected = graph::select(&plan, &wanted).map_err(Failure::usage)?;
    let moved = graph::restarted(&plan, &args.restart).map_err(Failure::usage)?;
    let root = run_folder(args.run_dir.as_deref(), &plan.name);
    let root = std::path::absolute(&root).unwrap_or(root);
    let run = RunFolder::open_or_create(&root).map_err(Failure::run)?;
    let _lock = match &args.only {
        _ if !team.leads() => None,
        // Stages that do not need each other may run side by side, each by a command of its own.
        Some(stage) if moved.is_empty() => Some(run.lock_part(stage).map_err(Failure::run)?),
        _ => Some(run.lock().map_err(Failure::run)?),
    };
    if !moved.is_empty() && team.size > team.here {
        return Err(Failure::usage(anyhow!(
            "--restart on several machines: each would move the folders\n  hint: `rlhf run --restart` on one first"
        )));
    }
    let states = graph::survey(&plan, &run, &moved).map_err(Failure::usage)?;
    graph::admit(&plan, &wanted, &states).map_err(Failure::usage)?;
    let selected: Vec<(&StagePlan, State)> = states
        .into_iter()
        .filter(|(stage, _)| selected.contains(stage))
        .collect();
    let stages: Vec<&StagePlan> = selected.iter().map(|(stage, _)| *stage).collect();
    team.admit(&plan, &stages).map_err(Failure::usage)?;
    let session = Session {
        args,
        team,
        front,
        plan: &plan,
        run: &run,
        libtorch: prepare(&selected, &models)?,
        started,
    };
    interrupt::install().context("cannot listen for signals")?;
    logging::init(
        Some(&run.log_path(&crew::log_name("rlhf", team.first))),
        false,
    );
    session.announce(&selected);
    session.move_aside(&moved)?;
    if team.leads() {
        record(&plan, &run, args.only.as_deref())?;
    }
    for (stage, _) in &selected {
        let ended = session.bring_to_an_end(stage);
        if let Err(failure) = &ended {
            Failed::note(failure, &run.stage(&stage.name));
        }
        ended?;
    }
    eprintln!("done: {}; see `rlhf inspect {}`", plan.name, shown(&root));
    Ok(())
}

/// Writes the plan into its run folder; `own` is the stage that this process has locked, if it is only one.
///
/// # Errors
/// It cannot be written; or it says something else of a stage that somebody runs, whose workers read it there.
pub fn record(plan: &Plan, run: &RunFolder, own: Option<&str>) -> Outcome {
    let text = plan.to_toml().map_err(Failure::run)?;
    let path = run.plan_path();
    let _lock = run.lock_plan().map_err(Failure::run)?;
    let found = fs::read_to_string(&path).unwrap_or_default();
    if found == text {
        return Ok(());
    }
    if let Ok(found) = Plan::from_toml(&found) {
        let differs =
            |stage: &&StagePlan| found.seed != plan.seed || plan.stage(&stage.name) != Some(*stage);
        let mut others = found
            .stages
            .iter()
            .filter(|stage| Some(stage.name.as_str()) != own && run.is_part_held(&stage.name));
        if let Some(stage) = others.find(differs) {
            return Err(Failure::usage(anyhow!(
                "stage `{}` is being run in {} with other settings\n  hint: give all commands in a run folder the same \
                 settings (--set), wait for it, or take another --run-dir",
                stage.name,
                shown(run.root())
            )));
        }
    }
    write_bytes(&path, text.as_bytes()).map_err(Failure::run)
}

fn selection(args: &RunArgs) -> Selection {
    match (&args.only, &args.kind, &args.until) {
        (Some(name), ..) => Selection::Only(name.clone()),
        (_, Some(kind), _) => Selection::Kind(kind.clone()),
        (.., Some(name)) => Selection::Until(name.clone()),
        _ => Selection::All,
    }
}

/// Checks the inputs of what will be run, finds libtorch and the worker if they will be needed, and
/// fetches models from the hub.
fn prepare(selected: &[(&StagePlan, State)], models: &Models) -> Outcome<Option<Libtorch>> {
    let mut needs_worker = false;
    for (stage, _) in selected.iter().filter(|(_, state)| *state != State::Done) {
        check_inputs(stage).map_err(Failure::usage)?;
        needs_worker |= !matches!(stage.task, Task::Import(_) | Task::Tokenizer(_));
    }
    if !needs_worker {
        return Ok(None);
    }
    worker::program().map_err(Failure::run)?;
    let libtorch = find_libtorch()?;
    for (stage, _) in selected.iter().filter(|(_, state)| *state != State::Done) {
        models.fetch(stage)?;
    }
    Ok(Some(libtorch))
}

struct Session<'a> {
    args: &'a RunArgs,
    team: &'a Team,
    front: &'a str,
    plan: &'a Plan,
    run: &'a RunFolder,
    libtorch: Option<Libtorch>,
    /// Since when this process runs, in seconds since the epoch.
    started: u64,
}

impl Session<'_> {
    /// The first screen: what will happen, and where it can be followed.
    fn announce(&self, selected: &[(&StagePlan, State)]) {
        let Plan {
            name, seed, stages, ..
        } = self.plan;
        let left = selected
            .iter()
            .filter(|(_, state)| *state != State::Done)
            .count();
        eprintln!(
            "{name}: {left} of {} stages to run in {}, seed {seed}",
            stages.len(),
            shown(self.run.root())
        );
        for (stage, state) in selected {
            let state = match state {
                State::Done => "done".to_owned(),
                State::Continue(step) => format!("continue at {step}"),
                State::ToDo | State::Changed(_) => "to do".to_owned(),
            };
            eprintln!("{:>12}  {state:<16} {}", stage.name, in_words(&stage.task));
        }
        if let Some(libtorch) = &self.libtorch {
            let Libtorch {
                version, lib_dir, ..
            } = libtorch;
            eprintln!(
                "libtorch {version} in {}; device {}",
                lib_dir.display(),
                self.args.device.as_str()
            );
        }
        eprintln!(
            "logs: {}; Ctrl-C saves a snapshot, and the same command continues from it",
            shown(&self.run.log_path("STAGE"))
        );
    }

    fn move_aside(&self, moved: &BTreeSet<String>) -> Outcome {
        for name in moved {
            if let Some(aside) = self.run.stage(name).move_aside().map_err(Failure::run)? {
                eprintln!("{name:>12}  its old folder is now {}", shown(&aside));
            }
        }
        Ok(())
    }

    /// Runs a stage unless it is done.
    fn bring_to_an_end(&self, stage: &StagePlan) -> Outcome {
        if interrupt::requested() {
            return Err(self.interrupted());
        }
        let folder = self.run.stage(&stage.name);
        let fingerprint = Fingerprints::new(self.plan, self.run)
            .of(stage, &BTreeSet::new())
            .map_err(Failure::usage)?;
        match graph::state(&folder, &fingerprint).map_err(Failure::run)? {
            State::Done => return Ok(()),
            State::Changed(keys) => {
                let changed = vec![(stage.name.clone(), keys)];
                let restart = vec![stage.name.clone()];
                return Err(Failure::usage(GraphError::Changed { changed, restart }));
            }
            State::ToDo | State::Continue(_) => {}
        }
        if self.team.leads() {
            Failed::forget(&folder).map_err(Failure::run)?;
        }
        let record = Record::of(&fingerprint);
        tracing::info!(stage = stage.name, hash = record.hash, "begins");
        if matches!(stage.task, Task::Import(_) | Task::Tokenizer(_)) {
            if !self.team.leads() {
                return self.wait_for(&folder);
            }
            let made = data_stages::run(self.plan, stage, self.run, &fingerprint)
                .with_context(|| format!("stage `{}`", stage.name))?;
            eprintln!("{:>12}  {}", stage.name, made.unwrap_or_default());
        } else {
            fs::create_dir_all(folder.root())
                .with_context(|| format!("cannot create {}", folder.root().display()))?;
            if self.team.leads() {
                write_json(&folder.state_path(), &record).map_err(Failure::run)?;
            }
            self.run_workers(stage, &record)?;
        }
        if !folder.final_dir().is_dir() {
            let missing = folder.final_dir();
            return Err(
                anyhow!("stage `{}` ended without {}", stage.name, missing.display()).into(),
            );
        }
        if self.team.leads() {
            write_json(&folder.done_path(), &record).map_err(Failure::run)?;
        }
        tracing::info!(stage = stage.name, "is done");
        Ok(())
    }

    /// Waits for a stage that the first machine does alone, or has failed at already.
    fn wait_for(&self, folder: &StageFolder) -> Outcome {
        let end = Instant::now() + self.team.timeout;
        let since = self.started.saturating_sub(SKEW_S);
        while !folder.done_path().exists() {
            if let Some(failed) = Failed::since(folder, since) {
                return Err(Failure::Elsewhere(anyhow!(
                    "the first machine ({}) failed: {}",
                    failed.host,
                    failed.error
                )));
            }
            if interrupt::requested() {
                return Err(self.interrupted());
            }
            if Instant::now() > end {
                return Err(anyhow!(
                    "{} did not come within {} s\n  hint: look at the first machine; is the run folder on a file system \
                     that all share?",
                    folder.done_path().display(),
                    self.team.timeout.as_secs()
                )
                .into());
            }
            thread::sleep(TICK);
        }
        Ok(())
    }

    fn run_workers(&self, stage: &StagePlan, record: &Record) -> Outcome {
        let Some(libtorch) = &self.libtorch else {
            return Err(anyhow!(
                "stage `{}` became due while others ran; run again",
                stage.name
            )
            .into());
        };
        let work = Work {
            libtorch,
            run: self.run,
            stage: &stage.name,
            hash: &record.hash,
            device: self.args.device.as_str(),
            deterministic: self.args.deterministic,
        };
        let crew = crew::start(&work, self.team)?;
        match crew::follow(crew, &stage.name) {
            Ok(End::Finished) => Ok(()),
            Ok(End::Interrupted) => Err(self.interrupted()),
            Err(error) => {
                tracing::error!(stage = stage.name, "{error:#}");
                let kind = error.downcast_ref::<WorkerError>();
                let (killed, elsewhere) = (
                    matches!(kind, Some(WorkerError::Died { killed: true, .. })),
                    matches!(kind, Some(WorkerError::LostOthers(_))),
                );
                let error = error.context(format!("stage `{}` failed", stage.name));
                Err(match (killed, elsewhere) {
                    (true, _) => Failure::Killed(error, 1),
                    (_, true) => Failure::Elsewhere(error),
                    _ => Failure::Run(error),
                })
            }
        }
    }

    fn interrupted(&self) -> Failure {
        Failure::Interrupted(format!(
            "everything is saved; continue with: {}",
            continuation(self.front, self.args)
        ))
    }
}
