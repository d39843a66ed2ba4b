//! The loop: collect, score, shape, estimate, update, observe.

use std::time::Instant;

use datasets::Split;
use judge::GoldRule;
use model::Model;
use recipe::plan::{PpoPlan, PtxPlan};
use runtime::metrics::Metrics;
use runtime::statistics::mean;
use serde::{Deserialize, Serialize};
use trainer::{
    Ema, Outcome, PretrainText, Progress, RestorePart, SnapshotPart, StageContext, Stepper,
};

use crate::PpoError;
use crate::advantage::masked_moments;
use crate::data::{Models, Prompts};
use crate::evaluate::{Heldout, TEXT_ROWS, evaluate, objective, options, score_options};
use crate::kl::KlController;
use crate::record::{RecordContext, write_rollouts};
use crate::rollout::{self, Episode};
use crate::scoring;
use crate::update::{Lesson, Report, Steppers, update};

/// What a snapshot holds beside tensors.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    iteration: u64,
    kl: KlController,
}

struct Ppo<'a> {
    ctx: &'a StageContext,
    plan: &'a PpoPlan,
    models: Models,
    steppers: Steppers,
    state: State,
    prompts: Prompts,
    text: Option<PretrainText>,
    heldout: Heldout,
    log: Progress,
}

/// Runs PPO from its last snapshot, or from the start.
///
/// # Errors
/// [`PpoError`] says what failed.
pub fn run(ctx: &StageContext, plan: &PpoPlan) -> Result<Outcome, PpoError> {
    let mut ppo = Ppo::open(ctx, plan)?;
    ppo.evaluate_before_training()?;
    while ppo.state.iteration < plan.iterations {
        let started = Instant::now();
        let mut metrics = Metrics::new();
        let episodes = ppo.collect(&mut metrics)?;
        let report = ppo.learn(&episodes, &mut metrics)?;
        let health = ppo.observe(&episodes, &report, &mut metrics);
        ppo.state.iteration += 1;
        ppo.time(started, &episodes, &mut metrics);
        if ppo.is_due(plan.eval_every) {
            let started = Instant::now();
            metrics.extend(evaluate(ctx, plan, &ppo.models, &ppo.heldout)?);
            metrics.insert("time/evaluate", started.elapsed().as_secs_f64());
        }
        ppo.log.step(ppo.state.iteration, metrics)?;
        health?;
        let interrupted = ctx.asked_to_stop()?;
        if ppo.is_due(ctx.plan.execution.save_every) || interrupted {
            ppo.save()?;
        }
        if interrupted && ppo.state.iteration < plan.iterations {
            return Ok(Outcome::Interrupted);
        }
    }
    ppo.finish()
}

impl<'a> Ppo<'a> {
    fn open(ctx: &'a StageContext, plan: &'a PpoPlan) -> Result<Self, PpoError> {
        let models = Models::load(ctx, plan)?;
        let mut steppers = Steppers::new(ctx, plan, &models);
        let state = restore(ctx, &mut steppers)?.unwrap_or_else(|| State {
            iteration: 0,
            kl: KlController::new(plan.kl),
        });
        let tokenizer = &models.tokenizer;
        let prompts = Prompts::open(ctx, plan, &models, (Split::Train, plan.batch))?;
        let text = |split| {
            let open = |ptx: &PtxPlan| {
                let open =
                    || PretrainText::open(ctx, (&ptx.data, split), tokenizer, ptx.context, "ptx");
                // The first rank tokenises, and the others find the cache.
                ctx.ranks.first_alone(open)
            };
            plan.ptx.as_ref().map(open).transpose()
        };
        let heldout_prompts = Prompts::open(ctx, plan, &models, (Split::Heldout, 1))?;
        let num_heldout = plan.eval_prompts.min(heldout_prompts.len());
        let heldout_text = text(Split::Heldout)?;
        let heldout = Heldout {
            prompts: heldout_prompts.batch(0, num_heldout),
            text: heldout_text
                .map(|text| text.first(TEXT_ROWS))
                .transpose()?
                .unwrap_or_default(),
        };
        let log = Progress::open(ctx, (state.iteration, plan.iterations))?;
        Ok(Self {
            text: text(Split::Train)?,
            ctx,
            plan,
            models,
            steppers,
            state,
            prompts,
            heldout,
            log,
        })
    }

    /// Collects a batch of episodes, scores them, and estimates their advantages.
    fn collect(&self, metrics: &mut Metrics) -> Result<Vec<Episode>, PpoError> {
        let (plan, models) = (self.plan, &self.models);
        let micro_batch = self.ctx.plan.execution.micro_batch;
        let ranks = &self.ctx.ranks;
        ranks.at(&format!("iteration {}", self.state.iteration + 1));
        let prompts = self.prompts.batch(self.state.iteration, plan.batch);
        let own = rollout::share(ranks, prompts, self.state.iteration * plan.batch as u64);
        let started = Instant::now();
        let options = options(self.ctx, plan, models);
        let mut episodes = rollout::collect(models, &own, &options)?;
        metrics.insert("time/sample", started.elapsed().as_secs_f64());
        let started = Instant::now();
        scoring::score(models, &mut episodes, &score_options(self.ctx, plan))?;
        scoring::reference_logprobs(
            models,
            &mut episodes,
            plan.sampling.temperature,
            micro_batch,
        )?;
        if !models.value_on_trunk {
            scoring::values(models, &mut episodes, micro_batch)?;
        }
        let mut episodes = rollout::gather(ranks, episodes)?;
        rollout::estimate(&mut episodes, self.state.kl.coef, plan.gamma, plan.lambda);
        metrics.insert("time/score", started.elapsed().as_secs_f64());
        Ok(episodes)
    }

    /// Writes the rollouts down and updates both models on them.
    fn learn(&mut self, episodes: &[Episode], metrics: &mut Metrics) -> Result<Report, PpoError> {
        let started = Instant::now();
        let mask_br = rollout::response_mask(episodes, (tch::Kind::Double, tch::Device::Cpu));
        let advantages_br = rollout::response_tensor(episodes, |e| &e.advantages);
        let whitening = masked_moments(&advantages_br, &mask_br);
        let context = RecordContext {
            plan: self.plan,
            kl_coef: self.state.kl.coef,
            whitening: &whitening,
        };
        let iteration = self.state.iteration;
        if self.ctx.ranks.is_first() {
            let path = self.ctx.stage.rollout_path(iteration + 1);
            write_rollouts(&path, episodes, &context)?;
        }
        let lesson = Lesson {
            ctx: self.ctx,
            plan: self.plan,
            text: self.text.as_ref(),
            episodes,
            whitening: &whitening,
            iteration,
        };
        let report = update(&lesson, &self.models, &mut self.steppers)?;
        metrics.insert("time/update", started.elapsed().as_secs_f64());
        Ok(report)
    }

    /// Gathers the metrics, moves the KL coefficient, and stops what went wrong.
    fn observe(
        &mut self,
        episodes: &[Episode],
        report: &Report,
        metrics: &mut Metrics,
    ) -> Result<(), PpoError> {
        let iteration = self.state.iteration + 1;
        metrics.extend(objective(episodes, self.plan.gold.map(GoldRule::from)));
        metrics.extend(report.metrics());
        metrics.insert("ppo/kl_coef", self.state.kl.coef);
        let kl_b: Vec<f64> = episodes.iter().map(Episode::kl).collect();
        let kl = mean(&kl_b);
        if self.state.kl.is_negative(&kl_b) {
            return Err(PpoError::NegativeKl { iteration, kl });
        }
        self.state.kl.observe(kl, episodes.len());
        Ok(())
    }

    /// The iteration's time, and what it got done in it.
    fn time(&self, started: Instant, episodes: &[Episode], metrics: &mut Metrics) {
        let seconds = started.elapsed().as_secs_f64();
        let tokens: usize = episodes.iter().map(|e| e.response_ids.len()).sum();
        metrics.insert("time/step", seconds);
        metrics.insert("episodes_per_second", episodes.len() as f64 / seconds);
        metrics.insert("tokens_per_second", tokens as f64 / seconds);
        metrics.insert(
            "mfu",
            self.ctx.peak.utilisation(self.flops(episodes), seconds),
        );
    }

    /// Model FLOPs of an iteration: every model's forward passes over the episodes, the updates of
    /// policy and value model, and those on pretraining text.
    fn flops(&self, episodes: &[Episode]) -> f64 {
        let lengths = episodes
            .iter()
            .map(|e| e.prompt_ids.len() + e.response_ids.len());
        let tokens: usize = lengths.sum();
        let context = tokens / episodes.len().max(1);
        let of = |model: &Model| model.forward_flops_per_token(context);
        let models = &self.models;
        let rewards: f64 = models
            .rewards
            .iter()
            .map(|reward| of(reward.judge.model()))
            .sum();
        let inner_epochs = self.plan.inner_epochs as f64;
        let train = |model: &Model| model.training_flops_per_token(context);
        // A head on the policy's trunk has no passes of its own.
        let (value, train_value) = if models.value_on_trunk {
            (0.0, 0.0)
        } else {
            (of(&models.value), train(&models.value))
        };
        let forward = of(&models.policy) + of(&models.reference) + rewards + value;
        let updates = inner_epochs * (train(&models.policy) + train_value);
        let pretraining = self.plan.ptx.as_ref().map_or(0.0, |ptx| {
            let tokens = self.plan.batch * ptx.sequences_per_episode * ptx.context;
            let per_token = models.policy.training_flops_per_token(ptx.context);
            inner_epochs * tokens as f64 * per_token
        });
        tokens as f64 * (forward + updates) + pretraining
    }

    /// The held-out numbers of the untrained policy are the curve's first point, at step 0.
    fn evaluate_before_training(&mut self) -> Result<(), PpoError> {
        if self.state.iteration == 0 {
            let metrics = evaluate(self.ctx, self.plan, &self.models, &self.heldout)?;
            self.log.step(0, metrics)?;
        }
        Ok(())
    }

    fn is_due(&self, every: u64) -> bool {
        self.state.iteration.is_multiple_of(every) || self.state.iteration == self.plan.iterations
    }

    fn save(&mut self) -> Result<(), PpoError> {
        let mut parts = vec![SnapshotPart {
            name: "policy",
            model: &self.models.policy,
            stepper: &self.steppers.policy,
            ema: self.steppers.ema.as_ref(),
        }];
        parts.extend(self.steppers.value.as_ref().map(|stepper| SnapshotPart {
            name: "value",
            model: &self.models.value,
            stepper,
            ema: None,
        }));
        self.ctx.save(
            self.state.iteration,
            &parts,
            &self.models.tokenizer,
            &self.state,
            None,
        )?;
        Ok(())
    }

    /// `final/` holds the moving average where it is on, and the weights as they are in `final-raw/`. `value/` is a whole
    /// model also where it shares the policy's trunk: it is then that policy's, averaged with it.
    fn finish(self) -> Result<Outcome, PpoError> {
        let Self {
            ctx,
            plan,
            models,
            mut steppers,
            ..
        } = self;
        let final_dir = ctx.stage.final_dir();
        let mut manifest = ctx.manifest("checkpoint", plan.iterations);
        if let Some(ema) = &steppers.ema {
            let raw = ctx.manifest("checkpoint", plan.iterations);
            let raw_dir = final_dir.with_file_name("final-raw");
            let value = models.value_on_trunk.then_some(("value", &models.value));
            let further = value.as_slice();
            ctx.finish(&raw_dir, &models.policy, further, &models.tokenizer, raw)?;
            // A head on the policy's trunk is among what its optimizer trains.
            ema.apply(&mut steppers.policy)?;
        }
        let weights = if steppers.ema.is_some() { "ema" } else { "raw" };
        manifest.notes.insert("weights".to_owned(), weights.into());
        if models.value_on_trunk {
            let trunk = "the policy's, under a head of its own";
            manifest.notes.insert("value".to_owned(), trunk.into());
        }
        let further = [("value", &models.value)];
        ctx.finish(
            &final_dir,
            &models.policy,
            &further,
            &models.tokenizer,
            manifest,
        )?;
        Ok(Outcome::Finished)
    }
}

impl Steppers {
    /// Fresh optimizers. Where values come from a head on the policy's trunk, one trains both.
    fn new(ctx: &StageContext, plan: &PpoPlan, models: &Models) -> Self {
        let updates_per_iteration = plan.inner_epochs * plan.batch / plan.minibatch;
        let updates = plan.iterations * updates_per_iteration as u64;
        let stepper = |trained: &[&Model], optimizer| {
            Stepper::divided(trained, optimizer, updates, ctx.division())
                .with_nonfinite_skip(plan.nonfinite_skip)
        };
        let mut with_policy = vec![&models.policy];
        if models.value_on_trunk {
            with_policy.push(&models.value);
        }
        let policy = stepper(&with_policy, &plan.policy_optimizer);
        let value = plan.value_optimizer.as_ref();
        Self {
            ema: plan.ema.map(|decay| Ema::new(&policy, decay)),
            value: value.map(|optimizer| stepper(&[&models.value], optimizer)),
            policy,
        }
    }
}

/// Brings models and optimizers to the state of the latest snapshot.
fn restore(ctx: &StageContext, steppers: &mut Steppers) -> Result<Option<State>, PpoError> {
    let ema = steppers.ema.as_mut();
    let mut parts = vec![RestorePart {
        name: "policy",
        stepper: &mut steppers.policy,
        ema,
    }];
    parts.extend(steppers.value.as_mut().map(|stepper| RestorePart {
        name: "value",
        stepper,
        ema: None,
    }));
    Ok(ctx.restore(&mut parts)?)
}
