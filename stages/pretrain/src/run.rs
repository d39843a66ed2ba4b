//! The loop.

use model::{Head, Model};
use recipe::plan::PretrainPlan;
use runtime::metrics::Metrics;
use trainer::{LmOptions, Outcome, Session, StageContext, lm_backward, lm_evaluate};

use crate::PretrainError;
use crate::data::Data;

/// Trains a base model from its last snapshot, from the model that it continues, or from random weights.
///
/// # Errors
/// [`PretrainError`] says what failed.
pub fn run(ctx: &StageContext, plan: &PretrainPlan) -> Result<Outcome, PretrainError> {
    let tokenizer = ctx.load_tokenizer(&plan.tokenizer)?;
    let (tokens, vocab_size) = (tokenizer.vocab_size(), plan.model.vocab_size);
    if tokens > vocab_size {
        return Err(PretrainError::Vocabulary { tokens, vocab_size });
    }
    // The first rank tokenises, and the others find the cache.
    let mut data = ctx
        .ranks
        .first_alone(|| Data::open(ctx, plan, &tokenizer))?;
    let model = match &plan.start {
        Some(start) => ctx.load_to_continue(start, &plan.model)?,
        None => ctx.divide(Model::init(
            &plan.model,
            Head::Token,
            ctx.seed,
            ctx.device,
            ctx.kind,
        )),
    };
    let options = LmOptions::new(ctx, tokenizer.pad_id(), 1.0);
    let mut session = Session::open(ctx, &plan.train, model, tokenizer, data.num_rows())?;
    while session.is_running() {
        let batch = session.fetch(|step| data.batch(step))?;
        let options = options.with_dropout(plan.train.dropout, ctx.seed, session.step);
        let loss = lm_backward(&session.model, &mut session.stepper, &batch, &options)?;
        let mut metrics = Metrics::from([("loss/train", loss.mean())]);
        session.update(&batch, &mut metrics)?;
        if session.evaluation_is_due() {
            evaluate(&session, &data, &options, &mut metrics)?;
        }
        let tokens = batch.iter().map(|row| row.ids.len()).sum();
        session.end_step(metrics, batch.len(), tokens)?;
    }
    if session.was_interrupted() {
        return Ok(Outcome::Interrupted);
    }
    let last = session.step;
    Ok(session.finish(last)?)
}

fn evaluate(
    session: &Session,
    data: &Data,
    options: &LmOptions,
    metrics: &mut Metrics,
) -> Result<(), PretrainError> {
    let loss = lm_evaluate(
        &session.model,
        &data.heldout,
        options.pad_id,
        options.micro_batch,
        &session.ctx.ranks,
    )?;
    metrics.insert("loss/heldout", loss.mean());
    if let Some(bytes_per_token) = data.bytes_per_token {
        let bits_per_token = loss.mean() / std::f64::consts::LN_2;
        let bits_per_byte = bits_per_token / bytes_per_token;
        metrics.insert("loss/heldout_bits_per_byte", bits_per_byte);
    }
    Ok(())
}
