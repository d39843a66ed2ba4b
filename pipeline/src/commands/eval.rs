//! `rlhf eval`: the checkpoints that a PPO stage descends from, compared on held-out prompts.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use recipe::plan::{Plan, PpoPlan, Source, StagePlan, Task};
use recipe::request::EvalRequest;
use runtime::RunFolder;
use runtime::files::write_json;
use runtime::metrics::read_metrics;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{ask, print};
use crate::cli::EvalArgs;
use crate::failure::{Failure, Outcome};

/// What the worker measured of one model.
#[derive(Debug, Deserialize)]
struct Measured {
    samples: usize,
    gold: Option<f64>,
    gold_se: Option<f64>,
    kl: f64,
    eos_rate: f64,
    length: f64,
    distinct_2: f64,
    repeated_trigrams: f64,
    most_frequent_share: f64,
    base_perplexity: f64,
    true_prompt_preferred: f64,
    pretraining_loss: f64,
}

#[derive(Debug, Deserialize)]
struct Models {
    base: Measured,
    sft: Measured,
    ppo: Measured,
}

#[derive(Debug, Deserialize)]
struct Conversation {
    prompt: String,
    sft: String,
    ppo: String,
}

#[derive(Debug, Deserialize)]
struct Answer {
    models: Models,
    conversations: Vec<Conversation>,
}

/// Where the models of a PPO stage's lineage come from.
struct Lineage<'a> {
    stage: &'a StagePlan,
    ppo: &'a PpoPlan,
    base: PathBuf,
    sft: PathBuf,
}

/// Evaluates, prints a report, and writes it to `eval.json` in the run folder.
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
        prompts: path(&run, &lineage.ppo.prompts),
        text: lineage.ppo.ptx.as_ref().map(|ptx| path(&run, &ptx.data)),
        cache: run.stage(&lineage.stage.name).root().join("cache"),
        samples: args.samples,
        seed: args.seed,
        sampling: lineage.ppo.sampling.clone(),
        gold: lineage.ppo.gold,
        show: args.show,
        compute: args.compute.resolve(),
    };
    let line = ask("eval", &request)?;
    let value: Value = serde_json::from_str(&line)
        .context("the worker's answer")
        .map_err(Failure::Run)?;
    let answer: Answer = serde_json::from_value(value.clone())
        .context("the worker's answer")
        .map_err(Failure::Run)?;
    let accuracy = reward_accuracy(&run, lineage.ppo);
    let record = json!({ "seed": plan.seed, "reward_accuracy": accuracy, "report": value });
    write_json(&root.join("eval.json"), &record).map_err(Failure::run)?;
    let _ = print(report(&answer, accuracy, &root).trim_end());
    Ok(())
}

fn path(run: &RunFolder, source: &Source) -> PathBuf {
    match source {
        Source::Stage { name } => run.stage(name).final_dir(),
        Source::Path { path } => path.clone(),
    }
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
    let sft = path(run, &ppo.model);
    let base = match &ppo.model {
        Source::Stage { name } => match plan.stage(name).map(|stage| &stage.task) {
            Some(Task::Sft(task)) => path(run, &task.model),
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

fn report(answer: &Answer, accuracy: Option<f64>, root: &Path) -> String {
    let models = &answer.models;
    let mut text = String::new();
    let _ = writeln!(
        text,
        "\n{} held-out prompts, one reply each\n",
        models.ppo.samples
    );
    let _ = writeln!(text, "{:<34}{:>16}{:>16}{:>16}", "", "base", "SFT", "PPO");
    let mut row = |name: &str, show: &dyn Fn(&Measured) -> String| {
        let (base, sft, ppo) = (show(&models.base), show(&models.sft), show(&models.ppo));
        let _ = writeln!(text, "{name:<34}{base:>16}{sft:>16}{ppo:>16}");
    };
    row(
        "gold score (+- standard error)",
        &|m| match (m.gold, m.gold_se) {
            (Some(gold), Some(se)) => format!("{gold:.3} +- {se:.3}"),
            _ => "no gold rule".to_owned(),
        },
    );
    row("KL to SFT, nats", &|m| format!("{:.2}", m.kl));
    row("replies that end (EOS)", &|m| percent(m.eos_rate));
    row("tokens per reply", &|m| format!("{:.1}", m.length));
    row("distinct-2", &|m| format!("{:.3}", m.distinct_2));
    row("repeated trigrams", &|m| percent(m.repeated_trigrams));
    row("most frequent reply", &|m| percent(m.most_frequent_share));
    row("base perplexity of the replies", &|m| {
        format!("{:.1}", m.base_perplexity)
    });
    row("base prefers the true prompt", &|m| {
        percent(m.true_prompt_preferred)
    });
    row("pretraining loss, nats per token", &|m| {
        format!("{:.3}", m.pretraining_loss)
    });
    text.push_str(&verdict(models));
    if let Some(accuracy) = accuracy {
        let _ = writeln!(
            text,
            "reward model: {} of held-out pairs right",
            percent(accuracy)
        );
    }
    for conversation in &answer.conversations {
        let Conversation { prompt, sft, ppo } = conversation;
        let _ = write!(text, "\n  user  {prompt}\n  SFT   {sft}\n  PPO   {ppo}\n");
    }
    let _ = writeln!(text, "\nnumbers: {}", root.join("eval.json").display());
    let page = root.join("report.html");
    if page.exists() {
        let _ = writeln!(text, "curves:  {}", page.display());
    }
    text
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// Was the text sacrificed for the score?
fn verdict(models: &Models) -> String {
    let Models { base: _, sft, ppo } = models;
    let gain = ppo.gold.zip(sft.gold).map(|(after, before)| after - before);
    let checks = [
        (
            "gold score at least 0.4 above SFT's",
            gain.is_none_or(|gain| gain >= 0.4),
        ),
        ("KL to SFT at most 8 nats", ppo.kl <= 8.0),
        (
            "distinct-2 at least 0.9 x SFT's",
            ppo.distinct_2 >= 0.9 * sft.distinct_2,
        ),
        (
            "repeated trigrams at most 2 points above SFT's",
            ppo.repeated_trigrams <= sft.repeated_trigrams + 0.02,
        ),
        (
            "most frequent reply at most 2 %",
            ppo.most_frequent_share <= 0.02,
        ),
        (
            "base perplexity of the replies at most 1.5 x SFT's",
            ppo.base_perplexity <= 1.5 * sft.base_perplexity,
        ),
        (
            "EOS rate at most 1 point below SFT's",
            ppo.eos_rate >= sft.eos_rate - 0.01,
        ),
        (
            "true prompt preferred as often as for SFT, within 3 points",
            ppo.true_prompt_preferred >= sft.true_prompt_preferred - 0.03,
        ),
    ];
    let mut text = String::from("\n");
    for (name, holds) in checks {
        let _ = writeln!(text, "{} {name}", if holds { "ok  " } else { "NOT " });
    }
    if let Some(gain) = gain {
        let _ = writeln!(
            text,
            "\ngold: {gain:+.3} by PPO, at a KL of {:.2} nats",
            ppo.kl
        );
    }
    let rise = 100.0 * (ppo.pretraining_loss / sft.pretraining_loss - 1.0);
    let _ = writeln!(text, "pretraining loss: {rise:+.2} % by PPO");
    text
}
