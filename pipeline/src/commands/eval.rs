//! `rlhf eval`: the checkpoints that a PPO stage descends from, compared on held-out prompts.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use recipe::plan::{Plan, PpoPlan, Source, StagePlan, Task};
use recipe::request::EvalRequest;
use runtime::RunFolder;
use runtime::metrics::read_metrics;

use super::{ask, print};
use crate::cli::EvalArgs;
use crate::failure::{Failure, Outcome};
use crate::inspect::{Evaluation, Measurements, Screen};

/// Where the models of a PPO stage's lineage come from.
struct Lineage<'a> {
    stage: &'a StagePlan,
    ppo: &'a PpoPlan,
    base: PathBuf,
    sft: PathBuf,
}

/// Evaluates, prints a report, and writes it to `eval.json` in the stage's folder.
///
/// # Errors
/// A configuration that has no PPO stage, a run that is not done, or what the worker says.
pub fn run(args: &EvalArgs) -> Outcome {
    let plan = recipe::load(&args.source.config, &args.source.overrides).map_err(Failure::usage)?;
    let root = args
        .run_dir
        .clone()
        .unwrap_or_else(|| Path::new("runs").join(&plan.name));
    if !root.is_dir() {
        return Err(Failure::Usage(anyhow!(
            "there is no run folder {}\n  hint: run the pipeline first: rlhf run {}",
            root.display(),
            args.source.config.display()
        )));
    }
    let run = RunFolder::open_or_create(&root).map_err(Failure::run)?;
    let _lock = run.lock().map_err(Failure::run)?;
    let lineage = lineage(&plan, &run)?;
    let policy = run.stage(&lineage.stage.name).final_dir();
    for folder in [&lineage.base, &lineage.sft, &policy] {
        if !folder.join("config.json").exists() {
            return Err(Failure::Usage(anyhow!(
                "{} has no model yet\n  hint: finish the run first: rlhf run {}",
                folder.display(),
                args.source.config.display()
            )));
        }
    }
    let request = EvalRequest {
        base: lineage.base.clone(),
        reference: lineage.sft.clone(),
        policy,
        prompts: lineage.ppo.prompts.path(&run),
        text: lineage.ppo.ptx.as_ref().map(|ptx| ptx.data.path(&run)),
        cache: run.stage(&lineage.stage.name).root().join("cache"),
        samples: args.samples,
        seed: args.seed,
        sampling: lineage.ppo.sampling.clone(),
        gold: lineage.ppo.gold,
        show: args.show,
        compute: args.compute.resolve(),
    };
    let line = ask("eval", &request)?;
    let measured: Measurements = serde_json::from_str(&line)
        .context("the worker's answer")
        .map_err(Failure::Run)?;
    let evaluation = Evaluation {
        seed: plan.seed,
        reward_accuracy: reward_accuracy(&run, lineage.ppo),
        measured,
    };
    let stage = run.stage(&lineage.stage.name);
    evaluation.write(stage.root()).map_err(Failure::run)?;
    let screen = Screen::detect();
    let _ = print(screen.encode(&evaluation.to_text(screen.rule())).trim_end());
    eprintln!("wrote {}", Evaluation::path(stage.root()).display());
    Ok(())
}

/// The last PPO stage, and what it descends from.
fn lineage<'a>(plan: &'a Plan, run: &RunFolder) -> Outcome<Lineage<'a>> {
    let last = plan
        .stages
        .iter()
        .rev()
        .find_map(|stage| match &stage.task {
            Task::Ppo(ppo) => Some((stage, &**ppo)),
            _ => None,
        });
    let Some((stage, ppo)) = last else {
        return Err(Failure::Usage(anyhow!(
            "{} has no stage of kind ppo\n  hint: eval compares a policy with what it descends from",
            plan.source.display()
        )));
    };
    let sft = ppo.model.path(run);
    let base = match &ppo.model {
        Source::Stage { name } => match plan.stage(name).map(|stage| &stage.task) {
            Some(Task::Sft(task)) => task.model.path(run),
            _ => sft.clone(),
        },
        Source::Path { .. } => sft.clone(),
    };
    Ok(Lineage {
        stage,
        ppo,
        base,
        sft,
    })
}

/// The selected reward model's accuracy on held-out pairs: at the step with the lowest held-out loss.
fn reward_accuracy(run: &RunFolder, ppo: &PpoPlan) -> Option<f64> {
    let Source::Stage { name } = &ppo.reward.first()?.model else {
        return None;
    };
    let rows = read_metrics(&run.stage(name).metrics_path()).ok()?;
    let evaluated = rows.iter().filter_map(|row| {
        Some((
            *row.values.get("loss/heldout")?,
            *row.values.get("accuracy/heldout")?,
        ))
    });
    evaluated
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, accuracy)| accuracy)
}
