//! What is reported of an iteration, and the evaluation on held-out prompts.

use datasets::collate::PromptExample;
use generation::SamplingOptions;
use judge::GoldRule;
use recipe::plan::PpoPlan;
use runtime::metrics::Metrics;
use runtime::statistics::{deviation, mean, standard_error};
use trainer::{LmRow, StageContext};

use crate::PpoError;
use crate::data::Models;
use crate::rollout::{self, Episode};
use crate::scoring::{self, ScoreOptions};

/// Held-out prompts and text, chosen once.
pub struct Heldout {
    /// Prompts, one sample each.
    pub prompts: Vec<PromptExample>,
    /// Rows of held-out pretraining text, where PPO-ptx is on.
    pub text: Vec<LmRow>,
}

/// Held-out text rows per evaluation.
pub const TEXT_ROWS: usize = 64;

/// Mean of a number over episodes.
fn mean_of(episodes: &[Episode], f: impl Fn(&Episode) -> f64) -> f64 {
    mean(&episodes.iter().map(f).collect::<Vec<_>>())
}

/// The objective's parts, as measured on the episodes that were collected for training.
pub fn objective(episodes: &[Episode], gold: Option<GoldRule>) -> Metrics {
    let scores: Vec<f64> = episodes.iter().map(|e| e.score).collect();
    let tokens: f64 = episodes.iter().map(|e| e.response_ids.len() as f64).sum();
    let surprise: f64 = episodes.iter().flat_map(|e| &e.logprobs).map(|x| -x).sum();
    let mut metrics = Metrics::from([
        ("objective/score", mean_of(episodes, |e| e.score)),
        ("objective/score_std", deviation(&scores)),
        ("objective/kl", mean_of(episodes, Episode::kl)),
        ("objective/kl_k3", mean_of(episodes, Episode::kl_k3)),
        ("objective/entropy", surprise / tokens),
        (
            "objective/eos_rate",
            mean_of(episodes, |e| f64::from(e.has_eos)),
        ),
        ("objective/length", tokens / episodes.len().max(1) as f64),
        (
            "objective/rlhf_reward",
            mean_of(episodes, |e| e.rewards.iter().sum()),
        ),
        ("ppo/explained_variance", explained_variance(episodes)),
    ]);
    if let Some(rule) = gold {
        let scores: Vec<f64> = episodes
            .iter()
            .map(|e| rule.score(&e.response_text))
            .collect();
        metrics.insert("objective/gold", mean(&scores));
        metrics.insert("objective/gold_se", standard_error(&scores));
    }
    metrics
}

/// `1 - Var(returns - values) / Var(returns)` over response tokens.
fn explained_variance(episodes: &[Episode]) -> f64 {
    let returns: Vec<f64> = episodes
        .iter()
        .flat_map(|e| e.returns.iter().copied())
        .collect();
    let pairs = episodes
        .iter()
        .flat_map(|e| e.returns.iter().zip(&e.values));
    let errors: Vec<f64> = pairs.map(|(r, v)| r - v).collect();
    1.0 - (deviation(&errors) / deviation(&returns).max(1e-12)).powi(2)
}

/// Samples once per held-out prompt, with the same random numbers at every evaluation.
///
/// # Errors
/// Where sampling or scoring fails.
pub fn evaluate(
    ctx: &StageContext,
    plan: &PpoPlan,
    models: &Models,
    heldout: &Heldout,
) -> Result<Metrics, PpoError> {
    let options = SamplingOptions {
        purpose: "ppo evaluation",
        ..options(ctx, plan, models)
    };
    let micro_batch = ctx.plan.execution.micro_batch;
    let own = rollout::share(&ctx.ranks, heldout.prompts.clone(), 0);
    let mut episodes = rollout::collect(models, &own, &options)?;
    scoring::score(models, &mut episodes, &score_options(ctx, plan))?;
    scoring::reference_logprobs(
        models,
        &mut episodes,
        plan.sampling.temperature,
        micro_batch,
    )?;
    let episodes = rollout::gather(&ctx.ranks, episodes)?;
    let measured = objective(&episodes, plan.gold.map(GoldRule::from));
    let names = [
        ("objective/score", "heldout/score"),
        ("objective/gold", "heldout/gold"),
        ("objective/gold_se", "heldout/gold_se"),
        ("objective/kl", "heldout/kl"),
        ("objective/eos_rate", "heldout/eos_rate"),
        ("objective/length", "heldout/length"),
    ];
    let mut metrics: Metrics = names
        .into_iter()
        .filter_map(|(from, to)| measured.get(from).map(|value| (to, *value)))
        .collect();
    let texts: Vec<String> = episodes.iter().map(|e| e.response_text.clone()).collect();
    metrics.insert("heldout/distinct2", judge::text::distinct_2(&texts));
    if !heldout.text.is_empty() {
        let loss = trainer::lm_evaluate(
            &models.policy,
            &heldout.text,
            models.tokenizer.pad_id(),
            micro_batch,
            &ctx.ranks,
        )?;
        metrics.insert("loss/heldout", loss.mean());
    }
    Ok(metrics)
}

/// How the policy is sampled for training: at the plan's temperature, from the whole distribution,
/// so that the log-probabilities are those of what was sampled from.
pub fn options(ctx: &StageContext, plan: &PpoPlan, models: &Models) -> SamplingOptions {
    SamplingOptions {
        max_new_tokens: plan.sampling.max_new_tokens,
        temperature: plan.sampling.temperature,
        seed: ctx.seed,
        purpose: "ppo",
        eos_ids: models.tokenizer.stop_ids().to_vec(),
        max_batch: ctx.plan.execution.sample_batch,
        ..SamplingOptions::default()
    }
}

/// How episodes are scored.
pub fn score_options(ctx: &StageContext, plan: &PpoPlan) -> ScoreOptions {
    ScoreOptions {
        eos_rule: plan.eos_rule,
        overlong: plan.sampling.overlong,
        micro_batch: ctx.plan.execution.micro_batch,
    }
}
