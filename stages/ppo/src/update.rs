//! The update: clipped policy and value losses over minibatches, with pretraining gradients mixed in.

use datasets::loader::Order;
use model::RecordOptions;
use recipe::plan::PpoPlan;
use tch::{Kind, Tensor};
use trainer::{
    Ema, LmOptions, PretrainText, Ranks, StageContext, Stepper, TrainerError, lm_backward,
};

use crate::PpoError;
use crate::advantage::Moments;
use crate::backward::{Done, PolicyPass, Terms, ValueHead, policy_backward, value_backward};
use crate::data::Models;
use crate::rollout::{Episode, EpisodeBatch, to_batch};

/// The optimizers, and the moving average where it is on.
pub struct Steppers {
    /// The policy's optimizer, and that of a value head on its trunk.
    pub policy: Stepper,
    /// The optimizer of a value model of its own.
    pub value: Option<Stepper>,
    /// The moving average of what the policy's optimizer trains.
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
    value_updates: f64,
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
        backward(lesson, models, steppers, &episodes, &mut report)?;
        pretraining_backward(lesson, models, &mut steppers.policy, index, &mut report)?;
        step(lesson, steppers, &episodes, index, &mut report)?;
        report.updates += 1.0;
    }
    let value = steppers.value.as_ref().map_or(0, Stepper::skipped);
    report.skipped = steppers.policy.skipped() + value;
    report.of_all_ranks(&lesson.ctx.ranks)?;
    Ok(report)
}

/// Adds the gradients of a minibatch. Each model goes over each micro-batch once.
fn backward(
    lesson: &Lesson,
    models: &Models,
    steppers: &mut Steppers,
    episodes: &[Episode],
    report: &mut Report,
) -> Result<(), PpoError> {
    let terms = lesson.terms(episodes);
    let before_any_update = report.updates == 0.0;
    let head = lesson.plan.vf_coef.map(|coef| ValueHead {
        value: &models.value,
        coef,
    });
    let micro_batch = lesson.ctx.plan.execution.micro_batch;
    let own = lesson.ctx.ranks.share(episodes);
    let passes = own.len().div_ceil(micro_batch);
    // Those on pretraining text come after.
    let more = usize::from(lesson.text.is_some());
    steppers.policy.expect(passes + more);
    if let Some(value) = &mut steppers.value {
        value.expect(passes);
    }
    for micro in own.chunks(micro_batch) {
        let batch = lesson.batch(micro, models);
        let stepper = &mut steppers.policy;
        let done = |block| stepper.block_done(block);
        let pass = policy_backward(&models.policy, head, &batch, &terms, done)?;
        steppers.policy.accumulate()?;
        steppers.policy.observe_loss(pass.sum / terms.tokens);
        report.observe_policy(&pass, &batch, before_any_update);
        let value = match &mut steppers.value {
            None => pass.value,
            Some(stepper) => {
                let value = value_backward(&models.value, &batch, &terms, |block| {
                    stepper.block_done(block)
                })?;
                stepper.accumulate()?;
                stepper.observe_loss(value.sum / terms.tokens);
                Some(value)
            }
        };
        report.observe_value(value);
    }
    let mut gap = [report.gap_max];
    if before_any_update {
        lesson.ctx.ranks.max(&mut gap)?;
    }
    if before_any_update && gap[0] > lesson.plan.max_logprob_gap {
        return Err(PpoError::LogprobGap {
            iteration: lesson.iteration + 1,
            gap: gap[0],
            bound: lesson.plan.max_logprob_gap,
        });
    }
    report.tokens += terms.tokens;
    Ok(())
}

/// Adds the gradients of pretraining text, where PPO-ptx is on.
fn pretraining_backward(
    lesson: &Lesson,
    models: &Models,
    policy: &mut Stepper,
    index: u64,
    report: &mut Report,
) -> Result<(), PpoError> {
    if let (Some(text), Some(ptx)) = (lesson.text, &lesson.plan.ptx) {
        let rows = text.batch(index, ptx.sequences_per_episode * lesson.plan.minibatch)?;
        let options = LmOptions::new(lesson.ctx, models.tokenizer.pad_id(), ptx.coef);
        let loss = lm_backward(&models.policy, policy, &rows, &options)?;
        report.ptx_loss += loss.mean();
        report.ptx_updates += 1.0;
    }
    Ok(())
}

/// One step of each optimizer with what was added up.
fn step(
    lesson: &Lesson,
    steppers: &mut Steppers,
    episodes: &[Episode],
    index: u64,
    report: &mut Report,
) -> Result<(), PpoError> {
    let checked = |result| lesson.ctx.dump_if_nonfinite(result, || dump(episodes));
    let policy = checked(steppers.policy.update(index))?;
    report.grad_norm += policy.grad_norm;
    report.lr = policy.lr;
    if let (Some(ema), false) = (&mut steppers.ema, policy.was_skipped) {
        ema.update(&steppers.policy);
    }
    if let Some(value) = &mut steppers.value {
        report.value_grad_norm += checked(value.update(index))?.grad_norm;
        report.value_updates += 1.0;
    }
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

impl Lesson<'_> {
    fn batch(&self, episodes: &[Episode], models: &Models) -> EpisodeBatch {
        let whitening = self.plan.whiten_advantages.then_some(self.whitening);
        let pad_id = models.tokenizer.pad_id();
        to_batch(episodes, pad_id, &models.policy, whitening)
    }

    fn terms(&self, episodes: &[Episode]) -> Terms {
        let tokens: usize = episodes.iter().map(|e| e.response_ids.len()).sum();
        Terms {
            clip: self.plan.clip,
            value_clip: self.plan.value_clip,
            temperature: self.plan.sampling.temperature,
            tokens: tokens as f64,
            record: RecordOptions {
                checkpointing: self.ctx.plan.execution.checkpointing,
                dropout: 0.0,
                dropout_key: 0,
            },
        }
    }
}

impl Report {
    fn observe_policy(&mut self, pass: &PolicyPass, batch: &EpisodeBatch, before_any_update: bool) {
        let mask_br = &batch.mask_br;
        let difference_br = (&pass.logprobs_br - &batch.logprobs_br) * mask_br;
        let sum = |x: &Tensor| x.sum(Kind::Double).double_value(&[]);
        self.policy_loss += pass.policy.sum;
        self.clipped += pass.policy.clipped;
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

    fn observe_value(&mut self, value: Option<Done>) {
        if let Some(value) = value {
            self.value_loss += value.sum;
            self.value_clipped += value.clipped;
        }
    }

    /// Adds up what each rank has measured on its share. (Tokens were counted over all.)
    fn of_all_ranks(&mut self, ranks: &Ranks) -> Result<(), TrainerError> {
        let mut sums = [
            &mut self.policy_loss,
            &mut self.value_loss,
            &mut self.clipped,
            &mut self.value_clipped,
            &mut self.approx_kl,
            &mut self.gap_sum,
            &mut self.gap_tokens,
        ];
        let mut numbers = sums.each_ref().map(|number| **number);
        ranks.sum(&mut numbers)?;
        for (place, number) in sums.iter_mut().zip(numbers) {
            **place = number;
        }
        let mut largest = [self.ratio_max, self.gap_max];
        ranks.max(&mut largest)?;
        [self.ratio_max, self.gap_max] = largest;
        Ok(())
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
            ("optimizer/grad_norm", self.grad_norm / self.updates),
            ("optimizer/lr", self.lr),
            ("optimizer/skipped", self.skipped as f64),
        ]);
        if self.value_updates > 0.0 {
            let norm = self.value_grad_norm / self.value_updates;
            metrics.insert("ppo/value_grad_norm", norm);
        }
        if self.ptx_updates > 0.0 {
            metrics.insert("ppo/ptx_loss", self.ptx_loss / self.ptx_updates);
        }
        metrics
    }
}
