//! What pretraining, SFT and reward modelling share: a model, its optimizer, the place in the run,
//! the best evaluation, and the folders that come of it. The loop itself belongs to each stage:
//!
//! ```text
//! while session.is_running() {
//!     ... forward, backward ...
//!     session.update(&mut metrics)?;
//!     if session.evaluation_is_due() { ...; session.select(heldout_loss); }
//!     session.end_step(metrics, rows, tokens)?;
//! }
//! session.finish()
//! ```

use std::time::Instant;

use datasets::Tokenizer;
use model::Model;
use recipe::plan::{Duration, TrainPlan};
use runtime::metrics::Metrics;
use serde::{Deserialize, Serialize};

use crate::{Outcome, Progress, RestorePart, SnapshotPart, StageContext, Stepper, TrainerError};

/// A supervised stage under way.
pub struct Session<'a> {
    /// The stage.
    pub ctx: &'a StageContext,
    /// What is trained.
    pub model: Model,
    /// Its optimizer.
    pub stepper: Stepper,
    /// The tokenizer that belongs to it.
    pub tokenizer: Tokenizer,
    /// Updates done.
    pub step: u64,
    /// Updates in all.
    pub steps: u64,
    plan: &'a TrainPlan,
    num_examples: usize,
    best: Option<Best>,
    log: Progress,
    started: Instant,
    data_seconds: f64,
    evaluation_started: Option<Instant>,
    interrupted: bool,
}

/// The evaluation that decides which weights become `final/`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Best {
    step: u64,
    loss: f64,
}

/// What a snapshot holds beside tensors. The data cursor is the step.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    step: u64,
    best: Option<Best>,
}

/// Updates that a duration makes of `num_examples` examples.
pub fn num_steps(duration: Duration, num_examples: usize, batch: usize) -> u64 {
    match duration {
        Duration::Steps(steps) => steps,
        Duration::Epochs(epochs) => {
            ((epochs * num_examples as f64 / batch as f64).ceil() as u64).max(1)
        }
    }
}

impl<'a> Session<'a> {
    /// Starts, or continues from the last snapshot. `model` is as the stage begins with it.
    ///
    /// # Errors
    /// Where the last snapshot is damaged or does not fit.
    pub fn open(
        ctx: &'a StageContext,
        plan: &'a TrainPlan,
        model: Model,
        tokenizer: Tokenizer,
        num_examples: usize,
    ) -> Result<Self, TrainerError> {
        let steps = num_steps(plan.duration, num_examples, plan.batch);
        let mut stepper = Stepper::divided(&[&model][..], &plan.optimizer, steps, ctx.division())
            .with_nonfinite_skip(plan.nonfinite_skip);
        let mut parts = [RestorePart {
            name: "model",
            stepper: &mut stepper,
            ema: None,
        }];
        let state: State = ctx.restore(&mut parts)?.unwrap_or(State {
            step: 0,
            best: None,
        });
        let log = Progress::open(ctx, (state.step, steps))?;
        Ok(Self {
            ctx,
            model,
            stepper,
            tokenizer,
            step: state.step,
            steps,
            plan,
            num_examples,
            best: state.best,
            log,
            started: Instant::now(),
            data_seconds: 0.0,
            evaluation_started: None,
            interrupted: false,
        })
    }

    /// The present step's batch; how long the step waits for it is its metric `time/data`.
    pub fn fetch<T>(&mut self, batch: impl FnOnce(u64) -> T) -> T {
        self.ctx.ranks.at(&format!("step {}", self.step + 1));
        let started = Instant::now();
        let batch = batch(self.step);
        self.data_seconds = started.elapsed().as_secs_f64();
        batch
    }

    /// True while updates are left and nobody asked to stop.
    pub fn is_running(&self) -> bool {
        self.step < self.steps && !self.interrupted
    }

    /// The optimizer's update; on non-finite numbers the batch is written to
    /// `nonfinite-NNNNNN.json` before the run stops.
    ///
    /// # Errors
    /// Where a number is not finite and no skip is left.
    pub fn update(
        &mut self,
        batch: &impl Serialize,
        metrics: &mut Metrics,
    ) -> Result<(), TrainerError> {
        let result = self.stepper.update(self.step);
        let update = self
            .ctx
            .dump_if_nonfinite(result, || serde_json::json!(batch))?;
        self.step += 1;
        metrics.insert("optimizer/lr", update.lr);
        metrics.insert("optimizer/grad_norm", update.grad_norm);
        metrics.insert("optimizer/skipped", update.skipped as f64);
        Ok(())
    }

    /// True after every `eval_every`-th update and after the last. What follows until
    /// [`Self::end_step`] is timed as the evaluation.
    pub fn evaluation_is_due(&mut self) -> bool {
        let is_due = self.step.is_multiple_of(self.plan.eval_every) || self.step == self.steps;
        self.evaluation_started = is_due.then(Instant::now);
        is_due
    }

    /// Reports the held-out loss of the weights as they are; the lowest one becomes `final/`, so
    /// [`Self::end_step`] saves a new best. A loss that is not finite is none.
    pub fn select(&mut self, heldout_loss: f64) {
        let is_better = self.best.is_none_or(|best| heldout_loss < best.loss);
        if heldout_loss.is_finite() && is_better {
            self.best = Some(Best {
                step: self.step,
                loss: heldout_loss,
            });
        }
    }

    /// Logs the step, then saves a snapshot when one is due or the weights are the best so far, and
    /// notices a request to stop. `rows` and `tokens` are what the update learned from.
    ///
    /// # Errors
    /// Where the log or the snapshot cannot be written.
    pub fn end_step(
        &mut self,
        mut metrics: Metrics,
        rows: usize,
        tokens: usize,
    ) -> Result<(), TrainerError> {
        let mut seconds = self.started.elapsed().as_secs_f64();
        if let Some(started) = self.evaluation_started.take() {
            let evaluation = started.elapsed().as_secs_f64();
            metrics.insert("time/evaluate", evaluation);
            seconds -= evaluation;
        }
        let seen = self.step as f64 * self.plan.batch as f64;
        metrics.insert("data/epoch", seen / self.num_examples as f64);
        metrics.insert("time/step", seconds);
        metrics.insert("time/data", self.data_seconds);
        metrics.insert("tokens_per_second", tokens as f64 / seconds);
        let context = tokens / rows.max(1);
        let flops = tokens as f64 * self.model.training_flops_per_token(context);
        metrics.insert("mfu", self.ctx.peak.utilisation(flops, seconds));
        self.log.step(self.step, metrics)?;
        self.interrupted = self.ctx.asked_to_stop()? && self.step < self.steps;
        let due = self.step.is_multiple_of(self.ctx.plan.execution.save_every);
        let is_best = self.best.is_some_and(|best| best.step == self.step);
        if due || is_best || self.interrupted {
            self.save()?;
        }
        self.started = Instant::now();
        Ok(())
    }

    fn save(&self) -> Result<(), TrainerError> {
        let part = SnapshotPart {
            name: "model",
            model: &self.model,
            stepper: &self.stepper,
            ema: None,
        };
        let state = State {
            step: self.step,
            best: self.best,
        };
        let best = self.best.map(|best| best.step);
        self.ctx
            .save(self.step, &[part], &self.tokenizer, &state, best)
    }

    /// Brings the weights of the best evaluation back where another step was better than the last;
    /// returns the step that is selected.
    ///
    /// # Errors
    /// Where that snapshot cannot be read.
    pub fn restore_best(&mut self) -> Result<u64, TrainerError> {
        match self.best {
            Some(best) if best.step != self.step => {
                let folder = self.ctx.stage.snapshot_dir(best.step);
                let selected = if self.model.has_adapter() {
                    self.model.with_adapter(&folder)?
                } else {
                    Model::load(&folder, self.model.device(), self.model.kind())?
                };
                self.model.copy_from(&selected);
                Ok(best.step)
            }
            _ => Ok(self.step),
        }
    }

    /// True where the loop ended because somebody asked.
    pub fn was_interrupted(&self) -> bool {
        self.interrupted
    }

    /// Writes `final/` from the model as it is, saying which step was selected.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn finish(self, selected: u64) -> Result<Outcome, TrainerError> {
        let mut manifest = self.ctx.manifest("checkpoint", selected);
        if let Some(best) = self.best {
            manifest
                .notes
                .insert("selected_by".to_owned(), "loss/heldout".into());
            manifest
                .notes
                .insert("loss/heldout".to_owned(), best.loss.into());
        }
        let dir = self.ctx.stage.final_dir();
        self.ctx
            .finish(&dir, &self.model, &[], &self.tokenizer, manifest)?;
        Ok(Outcome::Finished)
    }
}
