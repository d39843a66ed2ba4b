//! A run folder, read from disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Error, Result, anyhow, bail};
use recipe::plan::{Duration, Plan, StagePlan, Task};
use runtime::manifest::Manifest;
use runtime::metrics::read_metrics;
use runtime::run_folder::PLAN;
use runtime::run_lock::is_held;

use super::evaluation::Evaluation;
use super::run::{Run, Stage, State};

/// A stage's name, and its steps where the plan knows them.
type PlannedStage = (String, Option<u64>);

/// Reads the runs in these folders and gives each a label: its folder's name, or its path where
/// two folders have one name.
///
/// # Errors
/// A path that is no run folder; a plan or a metrics file that cannot be read.
pub fn read_runs(roots: &[PathBuf]) -> Result<Vec<Run>> {
    let mut runs = roots
        .iter()
        .map(|root| read_run(root))
        .collect::<Result<Vec<_>>>()?;
    let labels: Vec<String> = runs.iter().map(|run| run.label.clone()).collect();
    for run in &mut runs {
        if labels.iter().filter(|label| **label == run.label).count() > 1 {
            run.label = run.root.display().to_string();
        }
    }
    Ok(runs)
}

/// Reads one run folder.
///
/// # Errors
/// A path that is no run folder; a plan or a metrics file that cannot be read.
pub fn read_run(root: &Path) -> Result<Run> {
    if !root.is_dir() {
        let beside = Path::new("runs").join(root);
        let hint = if beside.is_dir() {
            format!("did you mean `{}`?", beside.display())
        } else {
            "name a folder that `rlhf run` made, for example runs/demo".to_owned()
        };
        bail!(
            "{}: there is no such folder\n  hint: {hint}",
            root.display()
        );
    }
    let plan = read_plan(root)?;
    let folders = stage_folders(root)?;
    if plan.is_none() && folders.is_empty() {
        return Err(not_a_run_folder(
            root,
            "neither plan.toml nor a stage with metrics.jsonl",
        ));
    }
    let planned: Vec<PlannedStage> = plan.map_or_else(Vec::new, |plan| {
        let stages = plan.stages.iter();
        stages
            .map(|stage| (stage.name.clone(), planned_steps(stage)))
            .collect()
    });
    let is_planned = |folder: &String| planned.iter().any(|(name, _)| name == folder);
    let unplanned: Vec<String> = folders
        .into_iter()
        .filter(|folder| !is_planned(folder))
        .collect();
    let read = |(name, steps)| read_stage(root, name, steps);
    let mut others = unplanned
        .into_iter()
        .map(|name| read((name, None)))
        .collect::<Result<Vec<_>>>()?;
    others.sort_by(|a, b| a.first_time().total_cmp(&b.first_time()));
    let mut stages = planned.into_iter().map(read).collect::<Result<Vec<_>>>()?;
    stages.extend(others);
    mark_running(root, &mut stages);
    Ok(Run {
        label: folder_name(root),
        root: root.to_owned(),
        stages,
    })
}

/// The error that a folder is none of `rlhf run`; `lack` says what it has not.
pub fn not_a_run_folder(root: &Path, lack: &str) -> Error {
    anyhow!(
        "{}: not a run folder: it has {lack}\n  \
         hint: name a folder that `rlhf run` made, for example runs/demo",
        root.display()
    )
}

/// The plan that a run folder was made by; `None` without one.
///
/// # Errors
/// A plan that cannot be read, or that another version made.
pub fn read_plan(root: &Path) -> Result<Option<Plan>> {
    let path = root.join(PLAN);
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    let plan = Plan::from_toml(&text).with_context(|| {
        let path = path.display();
        format!(
            "{path}: not a plan of this version of rlhf
  hint: inspect it with the version that made it"
        )
    })?;
    Ok(Some(plan))
}

/// Steps a stage will take, where its plan says so.
fn planned_steps(stage: &StagePlan) -> Option<u64> {
    if let Task::Ppo(plan) = &stage.task {
        return Some(plan.iterations);
    }
    match stage.task.train()?.duration {
        Duration::Steps(steps) => Some(steps),
        Duration::Epochs(_) => None,
    }
}

/// Names of the subfolders with metrics, by name; stages that were moved aside are not among them.
fn stage_folders(root: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root).with_context(|| format!("{}", root.display()))? {
        let entry = entry.with_context(|| format!("{}", root.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.contains(".old-") && entry.path().join("metrics.jsonl").is_file() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn read_stage(root: &Path, name: String, planned: Option<u64>) -> Result<Stage> {
    let folder = root.join(&name);
    let metrics = folder.join("metrics.jsonl");
    let rows = if metrics.is_file() {
        read_metrics(&metrics)?
    } else {
        Vec::new()
    };
    let state = if folder.join("done.json").is_file() {
        State::Done
    } else if last_change(&folder).is_some() {
        State::Stopped
    } else {
        State::Waiting
    };
    let selected = match folder.join("final") {
        dir if dir.is_dir() => Manifest::read(&dir)?.map(|manifest| manifest.step),
        _ => None,
    };
    Ok(Stage {
        name,
        state,
        planned,
        selected: selected.filter(|&step| step > 0),
        rows,
        evaluation: Evaluation::read(&folder)?,
    })
}

/// When a stage last wrote what it writes at its start or while it works; `None` before its start.
fn last_change(folder: &Path) -> Option<SystemTime> {
    let changed = |name: &str| {
        fs::metadata(folder.join(name))
            .and_then(|meta| meta.modified())
            .ok()
    };
    ["stage.json", "metrics.jsonl"]
        .into_iter()
        .filter_map(changed)
        .max()
}

/// Marks the stages that processes work on: those whose own lock is held, or where the run's is, the one that wrote
/// last of those that were started and are not done.
fn mark_running(root: &Path, stages: &mut [Stage]) {
    for stage in stages.iter_mut().filter(|stage| stage.state != State::Done) {
        if is_held(&root.join(&stage.name).join("lock")) {
            stage.state = State::Running;
        }
    }
    if !is_held(&root.join("lock")) {
        return;
    }
    let open = stages
        .iter_mut()
        .filter(|stage| stage.state == State::Stopped);
    if let Some(stage) = open.max_by_key(|stage| last_change(&root.join(&stage.name))) {
        stage.state = State::Running;
    }
}

/// The folder's own name, also for `.` and `..`.
fn folder_name(root: &Path) -> String {
    let resolved = root.canonicalize().unwrap_or_else(|_| root.to_owned());
    resolved
        .file_name()
        .unwrap_or(resolved.as_os_str())
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn run_with_metrics(lines: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir(dir.path().join("sft")).expect("a folder");
        fs::write(dir.path().join("sft/metrics.jsonl"), lines).expect("a file");
        dir
    }

    #[test]
    fn a_repeated_step_counts_once_and_a_torn_line_not_at_all() {
        let dir = run_with_metrics(
            "{\"step\":1,\"time\":10.0,\"loss/train\":3.0}\n\
             {\"step\":2,\"time\":11.0,\"loss/train\":2.5}\n\
             {\"step\":2,\"time\":50.0,\"loss/train\":2.0,\"loss/heldout\":null}\n\
             {\"step\":3,\"time\":51.0,\"loss/tr",
        );
        let run = read_run(dir.path()).expect("a run");
        let stage = run.stage("sft").expect("a stage");
        assert_eq!(stage.state, State::Stopped);
        assert_eq!(stage.series("loss/train"), [(1, 3.0), (2, 2.0)]);
        assert_eq!(stage.series("loss/heldout"), [], "null is no value");
        assert_eq!(stage.last_step(), Some(2));
    }

    #[test]
    fn a_stage_runs_while_the_lock_is_held_and_is_done_with_done_json() {
        let dir = run_with_metrics("");
        let stage_state = || read_run(dir.path()).expect("a run").stages[0].state;
        let lock = File::create(dir.path().join("lock")).expect("a file");
        assert_eq!(stage_state(), State::Stopped);
        lock.lock().expect("a lock");
        assert_eq!(stage_state(), State::Running);
        lock.unlock().expect("unlocked");
        assert_eq!(stage_state(), State::Stopped);
        // One of several that run side by side holds its own.
        let own = File::create(dir.path().join("sft/lock")).expect("a file");
        own.lock().expect("a lock");
        assert_eq!(stage_state(), State::Running);
        fs::write(dir.path().join("sft/done.json"), "{}").expect("a file");
        assert_eq!(stage_state(), State::Done);
    }

    #[test]
    fn the_plan_says_which_stages_and_steps_there_are() {
        let pipeline = crate::fixtures::pipeline().expect("a pipeline");
        let root = pipeline.run.root();
        let text = toml::to_string(&pipeline.plan).expect("TOML");
        fs::write(pipeline.run.plan_path(), text).expect("a file");
        for (stage, time) in [("late", 9.0), ("odd", 8.0), ("sft", 7.0)] {
            fs::create_dir_all(root.join(stage)).expect("a folder");
            let line = format!("{{\"step\":1,\"time\":{time}}}\n");
            fs::write(root.join(stage).join("metrics.jsonl"), line).expect("a file");
        }
        let run = read_run(root).expect("a run");
        let names: Vec<_> = run.stages.iter().map(|stage| stage.name.as_str()).collect();
        assert_eq!(
            names,
            ["corpus", "tokenizer", "pretrain", "sft", "odd", "late"]
        );
        let steps = pipeline.plan.stages.iter().map(planned_steps);
        assert!(steps.eq(run.stages[..4].iter().map(|stage| stage.planned)));
        assert!(
            run.stages[2].planned.is_some(),
            "a training stage has its steps in the plan"
        );
        assert_eq!(run.stages[2].state, State::Waiting);
    }

    #[test]
    fn what_is_no_run_is_refused_with_a_hint() {
        let dir = tempfile::tempdir().expect("a folder");
        let missing = read_run(&dir.path().join("nowhere"))
            .expect_err("no folder")
            .to_string();
        assert!(
            missing.contains("nowhere: there is no such folder\n  hint: "),
            "{missing}"
        );
        let empty = read_run(dir.path()).expect_err("no run").to_string();
        assert!(
            empty.contains("not a run folder") && empty.contains("\n  hint: "),
            "{empty}"
        );
        fs::write(dir.path().join(PLAN), "name = 3").expect("a file");
        let foreign = read_run(dir.path()).expect_err("no plan").to_string();
        assert!(
            foreign.contains("plan.toml: not a plan of this version"),
            "{foreign}"
        );
    }

    #[test]
    fn runs_of_one_name_are_told_apart_by_their_path() {
        let dir = tempfile::tempdir().expect("a folder");
        let roots = ["a/demo", "b/demo", "other"].map(|name| dir.path().join(name));
        for root in &roots {
            fs::create_dir_all(root.join("sft.old-1")).expect("a folder");
            fs::create_dir_all(root.join("sft")).expect("a folder");
            for stage in ["sft", "sft.old-1"] {
                fs::write(root.join(stage).join("metrics.jsonl"), "").expect("a file");
            }
        }
        let runs = read_runs(&roots).expect("runs");
        assert_eq!(runs[0].label, roots[0].display().to_string());
        assert_eq!(runs[2].label, "other");
        assert_eq!(
            runs[2].stages.len(),
            1,
            "what was moved aside is not a stage"
        );
    }
}
