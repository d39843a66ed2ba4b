//! `rlhf run`: runs the stages of a pipeline that are not done yet.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use recipe::plan::{Duration as Length, Plan, StagePlan, Task, TrainPlan};
use runtime::files::{write_bytes, write_json};
use runtime::{RunFolder, StageFolder, interrupt, logging};

use super::{TICK, find_libtorch, launch};
use crate::checks::check_inputs;
use crate::cli::RunArgs;
use crate::crew::{self, End, Work};
use crate::data_stages;
use crate::failure::{Failure, Outcome};
use crate::fingerprint::Fingerprints;
use crate::graph::{self, GraphError, Record, Selection, State};
use crate::hub::{Models, run_folder};
use crate::libtorch::Libtorch;
use crate::team::Team;
use crate::worker;

/// `rlhf run`: as the environment says that this process stands among others, or alone.
///
/// # Errors
/// As [`run`].
pub fn alone(args: &RunArgs) -> Outcome {
    let join = Duration::from_secs(launch::JOIN_S);
    let timeout = Duration::from_secs(launch::TIMEOUT_S);
    let team = Team::from_environment(join, timeout).map_err(Failure::usage)?;
    run(args, &team)
}

/// Runs the selected stages in order. Everything that can be checked is checked before the first.
///
/// # Errors
/// A wrong configuration or input, a folder in use, no libtorch, a stage that fails, an interrupt.
pub fn run(args: &RunArgs, team: &Team) -> Outcome {
    let models = Models::default();
    let plan = models.plan(&args.source, args.run_dir.as_deref())?;
    let wanted = selection(args);
    let selected = graph::select(&plan, &wanted).map_err(Failure::usage)?;
    let moved = graph::restarted(&plan, &args.restart).map_err(Failure::usage)?;
    let root = run_folder(args.run_dir.as_deref(), &plan.name);
    let root = std::path::absolute(&root).unwrap_or(root);
    let run = RunFolder::open_or_create(&root).map_err(Failure::run)?;
    let _lock = if team.leads() {
        Some(run.lock().map_err(Failure::run)?)
    } else {
        None
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
        plan: &plan,
        run: &run,
        libtorch: prepare(&selected, &models)?,
    };
    interrupt::install().context("cannot listen for signals")?;
    logging::init(
        Some(&run.log_path(&crew::log_name("rlhf", team.first))),
        false,
    );
    session.announce(&selected);
    session.move_aside(&moved)?;
    let text = plan.to_toml().map_err(Failure::run)?;
    if team.leads() {
        write_bytes(&run.plan_path(), text.as_bytes()).map_err(Failure::run)?;
    }
    for (stage, _) in &selected {
        session.bring_to_an_end(stage)?;
    }
    eprintln!("done: {}; see `rlhf inspect {}`", plan.name, shown(&root));
    Ok(())
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
    plan: &'a Plan,
    run: &'a RunFolder,
    libtorch: Option<Libtorch>,
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

    /// Waits for a stage that the first machine does alone.
    fn wait_for(&self, folder: &StageFolder) -> Outcome {
        let end = Instant::now() + self.team.timeout;
        while !folder.done_path().exists() {
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
                Err(error
                    .context(format!("stage `{}` failed", stage.name))
                    .into())
            }
        }
    }

    fn interrupted(&self) -> Failure {
        Failure::Interrupted(format!(
            "everything is saved; continue with: {}",
            continuation(self.args)
        ))
    }
}

/// The command that continues: the same one, without restarts.
fn continuation(args: &RunArgs) -> String {
    let mut command = format!("rlhf run {}", args.source.config.display());
    let flags = [
        ("--only", &args.only),
        ("--kind", &args.kind),
        ("--until", &args.until),
    ];
    for (flag, value) in flags {
        if let Some(value) = value {
            let _ = write!(command, " {flag} {value}");
        }
    }
    for (key, value) in &args.source.overrides {
        let _ = write!(command, " --set '{key}={value}'");
    }
    if let Some(dir) = &args.run_dir {
        let _ = write!(command, " --run-dir {}", dir.display());
    }
    if args.device != crate::values::Device::default() {
        let _ = write!(command, " --device {}", args.device.as_str());
    }
    if args.deterministic {
        command.push_str(" --deterministic");
    }
    command
}

/// Relative to the working directory where that is shorter.
fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    let short: PathBuf = path.strip_prefix(here).unwrap_or(path).into();
    short.display().to_string()
}

fn in_words(task: &Task) -> String {
    match task {
        Task::Import(import) => match &import.path {
            Some(path) => format!("convert {} ({})", shown(path), import.format),
            None => format!("make data ({})", import.format),
        },
        Task::Tokenizer(plan) => format!("train a tokenizer of {} tokens", plan.vocab_size),
        Task::Pretrain(plan) => format!("train a base model, {}", length(&plan.train)),
        Task::Sft(plan) => format!("fine-tune on demonstrations, {}", length(&plan.train)),
        Task::Label(plan) => format!(
            "sample {} responses to each of {} prompts and rank them",
            plan.responses,
            plan.num_prompts + plan.num_heldout
        ),
        Task::Reward(plan) => format!("train a reward model on rankings, {}", length(&plan.train)),
        Task::Ppo(plan) => format!(
            "optimise the policy by PPO, {} iterations of {} episodes",
            plan.iterations, plan.batch
        ),
    }
}

fn length(train: &TrainPlan) -> String {
    match train.duration {
        Length::Steps(steps) => format!("{steps} steps of {}", train.batch),
        Length::Epochs(epochs) => format!("{epochs} epochs in steps of {}", train.batch),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    #[test]
    fn the_continuation_is_the_command_without_restarts() {
        let line = "rlhf run a.toml --until sft --restart sft --set b=1 --run-dir r --device cpu --deterministic";
        let Ok(Cli {
            command: Command::Run(args),
        }) = Cli::try_parse_from(line.split(' '))
        else {
            panic!("must parse")
        };
        let expected =
            "rlhf run a.toml --until sft --set 'b=1' --run-dir r --device cpu --deterministic";
        assert_eq!(continuation(&args), expected);
        assert_eq!(selection(&args), Selection::Until("sft".into()));
    }
}
