//! The update: clipped policy and value losses over minibatches, with pretraining gradients mixed in.

use datasets::loader::Order;
use model::RecordOptions;
use recipe::plan::PpoPlan;
use tch::{Kind, Tensor, no_grad};
use trainer::{Ema, PretrainText, StageContext, Stepper};

use crate::PpoError;
use crate::advantage::Moments;
use crate::data::Models;
use crate::loss::{policy_loss, value_loss};
use crate::rollout::{Episode, EpisodeBatch, response_values, to_batch};

/// The optimizers, and the moving average where it is on.
pub struct Steppers {
    /// The policy's optimizer.
    pub policy: Stepper,
    /// The value model's optimizer.
    pub value: Stepper,
    /// The policy's moving average.
    pub ema: Option<Ema>,
}

/// What an iteration's updates report: sums over response tokens, divided in [`Report::metrics`].
#[derive(Debug, Default)]
pub struct Report {
    tokens: f64,
    policy_loss: f64,
    value_loss: f64,
    clipped: f64,
    value_clipped: f64,
    approx_kl: f64,
    ratio_max: f64,
    ptx_loss: f64,
    ptx_updates: f64,
    grad_norm: f64,
    value_grad_norm: f64,
    updates: f64,
    lr: f64,
    skipped: u64,
    gap_sum: f64,
    gap_tokens: f64,
    gap_max: f64,
}

/// One iteration's episodes and how to learn from them.
pub struct Lesson<'a> {
    /// The stage.
    pub ctx: &'a StageContext,
    /// Its plan.
    pub plan: &'a PpoPlan,
    /// Text for PPO-ptx.
    pub text: Option<&'a PretrainText>,
    /// The episodes.
    pub episodes: &'a [Episode],
    /// Moments of their advantages.
    pub whitening: &'a Moments,
    /// The iteration, from 0.
    pub iteration: u64,
}

/// Updates policy and value model on an iteration's episodes.
///
/// # Errors
/// Where numbers are not finite, or libtorch fails.
pub fn update(
    lesson: &Lesson,
    models: &Models,
    steppers: &mut Steppers,
) -> Result<Report, PpoError> {
    let plan = lesson.plan;
    let order = Order::new(lesson.ctx.seed, "minibatches", plan.batch, plan.batch);
    let minibatches = plan.batch / plan.minibatch;
    let mut report = Report::default();
    for inner in 0..(plan.inner_epochs * minibatches) as u64 {
        let index = lesson.iteration * (plan.inner_epochs * minibatches) as u64 + inner;
        let mut chosen = order.batch(index, plan.minibatch);
        chosen.sort_by_key(|i| {
            let episode = &lesson.episodes[*i];
            (episode.response_ids.len(), episode.prompt_ids.len())
        });
        let episodes: Vec<Episode> = chosen.iter().map(|i| lesson.episodes[*i].clone()).collect();
        policy_update(lesson, models, steppers, &episodes, index, &mut report)?;
        value_update(lesson, models, steppers, &episodes, index, &mut report)?;
        report.updates += 1.0;
    }
    report.skipped = steppers.policy.skipped() + steppers.value.skipped();
    Ok(report)
}

fn policy_update(
    lesson: &Lesson,
    models: &Models,
    steppers: &mut Steppers,
    episodes: &[Episode],
    index: u64,
    report: &mut Report,
) -> Result<(), PpoError> {
    let tokens = num_tokens(episodes);
    let before_any_update = report.updates == 0.0;
    for micro in episodes.chunks(lesson.ctx.plan.execution.micro_batch) {
        let batch = lesson.batch(micro, models, &models.policy);
        let (hidden_btd, tape) = models
            .policy
            .record(&batch.input, &record_options(lesson.ctx));
        let logprobs_br = model::response_logprobs(
            &models.policy,
            &hidden_btd,
            &batch.input.ids_bt,
            batch.response_start,
            lesson.plan.sampling.temperature,
        );
        let loss = policy_loss(
            &logprobs_br,
            &batch.logprobs_br,
            &batch.advantages_br,
            &batch.mask_br,
            lesson.plan.clip,
        );
        (&loss.sum / tokens).backward();
        tape.backward(&models.policy)?;
        steppers.policy.accumulate();
        let sum = loss.sum.double_value(&[]);
        steppers.policy.observe_loss(sum / tokens);
        report.observe_policy(sum, loss.clipped, &logprobs_br, &batch, before_any_update);
    }
    if before_any_update && report.gap_max > lesson.plan.max_logprob_gap {
        let (iteration, bound) = (lesson.iteration + 1, lesson.plan.max_logprob_gap);
        return Err(PpoError::LogprobGap {
            iteration,
            gap: report.gap_max,
            bound,
        });
    }
    report.tokens += tokens;
    if let (Some(text), Some(ptx)) = (lesson.text, &lesson.plan.ptx) {
        let rows = text.batch(index, ptx.sequences_per_episode * lesson.plan.minibatch)?;
        let loss = trainer::lm_backward(
            &models.policy,
            &mut steppers.policy,
            &rows,
            &trainer::LmOptions::new(lesson.ctx, models.tokenizer.pad_id(), ptx.coef),
        )?;
        report.ptx_loss += loss.mean();
        report.ptx_updates += 1.0;
    }
    let step = lesson
        .ctx
        .dump_if_nonfinite(steppers.policy.update(index), || dump(episodes))?;
    report.grad_norm += step.grad_norm;
    report.lr = step.lr;
    if let (Some(ema), false) = (&mut steppers.ema, step.was_skipped) {
        ema.update(&steppers.policy);
    }
    Ok(())
}

fn value_update(
    lesson: &Lesson,
    models: &Models,
    steppers: &mut Steppers,
    episodes: &[Episode],
    index: u64,
    report: &mut Report,
) -> Result<(), PpoError> {
    let tokens = num_tokens(episodes);
    for micro in episodes.chunks(lesson.ctx.plan.execution.micro_batch) {
        let batch = lesson.batch(micro, models, &models.value);
        let (hidden_btd, tape) = models
            .value
            .record(&batch.input, &record_options(lesson.ctx));
        let values_br = response_values(&models.value, &hidden_btd, batch.response_start);
        let loss = value_loss(
            &values_br,
            &batch.values_br,
            &batch.returns_br,
            &batch.mask_br,
            lesson.plan.value_clip,
        );
        (&loss.sum / tokens).backward();
        tape.backward(&models.value)?;
        steppers.value.accumulate();
        let sum = loss.sum.double_value(&[]);
        steppers.value.observe_loss(sum / tokens);
        report.value_loss += sum;
        report.value_clipped += loss.clipped;
    }
    let step = lesson
        .ctx
        .dump_if_nonfinite(steppers.value.update(index), || dump(episodes))?;
    report.value_grad_norm += step.grad_norm;
    Ok(())
}

/// What is left behind of a minibatch that made non-finite numbers.
fn dump(episodes: &[Episode]) -> serde_json::Value {
    let one = |e: &Episode| {
        serde_json::json!({
            "id": e.id,
            "episode": e.episode,
            "prompt_ids": e.prompt_ids,
            "response_ids": e.response_ids,
            "score": e.score,
            "advantages": e.advantages,
            "returns": e.returns,
        })
    };
    episodes.iter().map(one).collect()
}

fn record_options(ctx: &StageContext) -> RecordOptions {
    RecordOptions {
        checkpointing: ctx.plan.execution.checkpointing,
        dropout: 0.0,
        dropout_key: 0,
    }
}

fn num_tokens(episodes: &[Episode]) -> f64 {
    episodes.iter().map(|e| e.response_ids.len()).sum::<usize>() as f64
}

impl Lesson<'_> {
    fn batch(&self, episodes: &[Episode], models: &Models, model: &model::Model) -> EpisodeBatch {
        let whitening = self.plan.whiten_advantages.then_some(self.whitening);
        to_batch(episodes, models.tokenizer.pad_id(), model, whitening)
    }
}

impl Report {
    fn observe_policy(
        &mut self,
        loss: f64,
        clipped: f64,
        logprobs_br: &Tensor,
        batch: &EpisodeBatch,
        before_any_update: bool,
    ) {
        let mask_br = &batch.mask_br;
        let difference_br = no_grad(|| (logprobs_br.detach() - &batch.logprobs_br) * mask_br);
        let sum = |x: &Tensor| x.sum(Kind::Double).double_value(&[]);
        self.policy_loss += loss;
        self.clipped += clipped;
        self.approx_kl += sum(&difference_br.square()) / 2.0;
        self.ratio_max = self
            .ratio_max
            .max(difference_br.max().double_value(&[]).exp());
        if before_any_update {
            let gap_br = difference_br.abs();
            self.gap_max = self.gap_max.max(gap_br.max().double_value(&[]));
            self.gap_sum += sum(&gap_br);
            self.gap_tokens += sum(mask_br);
        }
    }

    /// The means over an iteration, under their names.
    pub fn metrics(&self) -> runtime::metrics::Metrics {
        let mut metrics = runtime::metrics::Metrics::from([
            ("ppo/policy_loss", self.policy_loss / self.tokens),
            ("ppo/value_loss", self.value_loss / self.tokens),
            ("ppo/clip_fraction", self.clipped / self.tokens),
            ("ppo/value_clip_fraction", self.value_clipped / self.tokens),
            ("ppo/approx_kl", self.approx_kl / self.tokens),
            ("ppo/ratio_max", self.ratio_max),
            ("ppo/logprob_gap_max", self.gap_max),
            (
                "ppo/logprob_gap_mean",
                self.gap_sum / self.gap_tokens.max(1.0),
            ),
            ("ppo/value_grad_norm", self.value_grad_norm / self.updates),
            ("optimizer/grad_norm", self.grad_norm / self.updates),
            ("optimizer/lr", self.lr),
            ("optimizer/skipped", self.skipped as f64),
        ]);
        if self.ptx_updates > 0.0 {
            metrics.insert("ppo/ptx_loss", self.ptx_loss / self.ptx_updates);
        }
        metrics
    }
}
