//! The loop.

use model::Checkpoint;
use recipe::plan::SftPlan;
use runtime::metrics::Metrics;
use trainer::{LmOptions, Outcome, Session, StageContext, lm_backward, lm_evaluate};

use crate::SftError;
use crate::data::Data;

/// Fine-tunes from its last snapshot, or from the base model.
///
/// # Errors
/// [`SftError`] says what failed.
pub fn run(ctx: &StageContext, plan: &SftPlan) -> Result<Outcome, SftError> {
    let Checkpoint {
        model, tokenizer, ..
    } = ctx.load_frozen(&plan.model, plan.quantize)?;
    let model = model.with_positions(&plan.shape);
    let data = Data::open(ctx, plan, &tokenizer)?;
    let model = ctx.adapt(model, plan.lora.as_ref(), &plan.model, "adapters");
    let options = LmOptions::new(ctx, tokenizer.pad_id(), 1.0);
    let mut session = Session::open(
        ctx,
        &plan.train,
        model,
        tokenizer,
        data.rows_per_epoch(plan.train.batch),
    )?;
    while session.is_running() {
        let batch = session.fetch(|step| data.batch(step, plan.train.batch))?;
        let options = options.with_dropout(plan.train.dropout, ctx.seed, session.step);
        let loss = lm_backward(&session.model, &mut session.stepper, &batch, &options)?;
        let mut metrics = Metrics::from([("loss/train", loss.mean())]);
        session.update(&batch, &mut metrics)?;
        if session.evaluation_is_due() {
            let (pad_id, micro_batch) = (options.pad_id, options.micro_batch);
            let rows = &data.heldout;
            let heldout = lm_evaluate(&session.model, rows, pad_id, micro_batch, &ctx.ranks)?;
            metrics.insert("loss/heldout", heldout.mean());
            session.select(heldout.mean());
        }
        let tokens: usize = batch.iter().map(|row| row.ids.len()).sum();
        session.end_step(metrics, batch.len(), tokens)?;
    }
    if session.was_interrupted() {
        return Ok(Outcome::Interrupted);
    }
    let selected = session.restore_best()?;
    Ok(session.finish(selected)?)
}
