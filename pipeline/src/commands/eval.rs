//! `rlhf eval`: the checkpoints that a PPO stage descends from, compared on held-out prompts.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use recipe::plan::{Objective, Plan, PpoPlan, Source, StagePlan, Task};
use recipe::request::{EvalReport, EvalRequest};
use recipe::trained_objective;
use runtime::hash::hash_json;
use runtime::manifest::content_id;
use runtime::metrics::read_metrics;
use runtime::{Manifest, RunFolder, StageFolder};

use super::{ask, print};
use crate::cli::EvalArgs;
use crate::failure::{Failure, Outcome};
use crate::hub::Models;
use crate::inspect::{Evaluation, Screen, not_a_run_folder, read_plan};

/// Where the models of a PPO stage's lineage come from.
struct Lineage<'a> {
    stage: &'a StagePlan,
    ppo: &'a PpoPlan,
    base: PathBuf,
    sft: PathBuf,
}

/// Evaluates, prints a report, and writes it to `eval.json` in the stage's folder. What was evaluated
/// before is read from there.
///
/// # Errors
/// A folder that is no run, a run that has no PPO stage or is not done, or what the worker says.
pub fn run(args: &EvalArgs) -> Outcome {
    let Some(dir) = &args.run else {
        unreachable!("the command line asks for a run where there is no other evaluation");
    };
    let plan = read_plan(dir).map_err(Failure::Usage)?;
    let plan = plan.ok_or_else(|| Failure::Usage(not_a_run_folder(dir, "no plan.toml")))?;
    let run = RunFolder::open_or_create(dir).map_err(Failure::run)?;
    let _lock = run.lock().map_err(Failure::run)?;
    let lineage = lineage(&plan, &run)?;
    check_judge(&lineage.base)?;
    let stage = run.stage(&lineage.stage.name);
    let inputs = lineage.inputs(args, &stage)?;
    let known = Evaluation::read(stage.root()).map_err(Failure::run)?;
    let evaluation = match known {
        Some(known) if known.inputs == inputs => known,
        _ => {
            let line = ask("eval", &lineage.request(args, &run, &stage))?;
            let measured: EvalReport = serde_json::from_str(&line)
                .context("the worker's answer")
                .map_err(Failure::Run)?;
            let evaluation = Evaluation {
                inputs,
                seed: plan.seed,
                reward_accuracy: reward_accuracy(&run, lineage.ppo),
                measured,
            };
            evaluation.write(stage.root()).map_err(Failure::run)?;
            evaluation
        }
    };
    let screen = Screen::detect();
    let _ = print(screen.encode(&evaluation.to_text(screen.rule())).trim_end());
    eprintln!("numbers: {}", Evaluation::path(stage.root()).display());
    Ok(())
}

impl Lineage<'_> {
    /// A hash of the models and of how they are evaluated; two evaluations with equal ones are equal.
    fn inputs(&self, args: &EvalArgs, stage: &StageFolder) -> Outcome<String> {
        let mut models = Vec::new();
        for folder in [&self.base, &self.sft, &stage.final_dir()] {
            if !folder.join("config.json").exists() {
                return Err(Failure::Usage(anyhow!(
                    "{} has no model yet\n  hint: finish the run first: `rlhf run`",
                    folder.display()
                )));
            }
            models.push(content_id(folder, Manifest::verify).map_err(Failure::usage)?);
        }
        let compute = args.compute.resolve();
        let how = (
            args.samples,
            args.seed,
            args.show,
            compute.dtype,
            compute.quantize,
        );
        Ok(hash_json(&(models, how)))
    }

    fn request(&self, args: &EvalArgs, run: &RunFolder, stage: &StageFolder) -> EvalRequest {
        EvalRequest {
            base: self.base.clone(),
            reference: self.sft.clone(),
            policy: stage.final_dir(),
            prompts: self.ppo.prompts.path(run),
            text: self.ppo.ptx.as_ref().map(|ptx| ptx.data.path(run)),
            cache: stage.root().join("cache"),
            samples: args.samples,
            seed: args.seed,
            sampling: self.ppo.sampling.clone(),
            gold: self.ppo.gold,
            show: args.show,
            compute: args.compute.resolve(),
        }
    }
}

/// Checks that the base model can judge how fluent the replies are.
fn check_judge(base: &Path) -> Outcome {
    let objective = trained_objective(base).map_err(Failure::run)?;
    if objective == Objective::Causal {
        return Ok(());
    }
    Err(Failure::Usage(anyhow!(
        "{} is to judge how fluent replies are, and was pretrained with objective = {:?}\n  hint: pretrain it on \
         with next tokens (a stage of kind pretrain whose model it is), and fine-tune what that makes",
        base.display(),
        objective.word()
    )))
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
            run.plan_path().display()
        )));
    };
    let base = match &ppo.model {
        Source::Stage { name } => match plan.stage(name).map(|stage| &stage.task) {
            Some(Task::Sft(task)) => &task.model,
            _ => &ppo.model,
        },
        Source::Path { .. } | Source::Hub { .. } => &ppo.model,
    };
    Models::default().fetch_source(base)?;
    Ok(Lineage {
        stage,
        ppo,
        base: base.path(run),
        sft: ppo.model.path(run),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_model_that_continues_no_text_judges_none() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let manifest = || Manifest::new("checkpoint", "pretrain", 1);
        manifest().seal(dir.path())?;
        assert!(check_judge(dir.path()).is_ok());
        let mut masked = manifest();
        masked.config["objective"] = "masked".into();
        masked.seal(dir.path())?;
        let Err(Failure::Usage(error)) = check_judge(dir.path()) else {
            panic!("it judges");
        };
        let error = error.to_string();
        assert!(
            error.contains("objective = \"masked\"") && error.contains("hint: pretrain it on"),
            "{error}"
        );
        Ok(())
    }
}
