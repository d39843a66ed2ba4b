//! The loop.
//!
//! Shapes: `n` responses of a micro-batch, all prompts' one after another; `t` columns, `d` width.

use std::rc::Rc;

use datasets::Tokenizer;
use datasets::collate::{ComparisonExample, Side, pad};
use judge::RewardJudge;
use model::{Checkpoint, Input, Model, RecordOptions};
use recipe::plan::RewardPlan;
use runtime::metrics::Metrics;
use runtime::seeds;
use runtime::statistics::{deviation, mean};
use tch::Tensor;
use trainer::{Outcome, Session, StageContext, TrainerError};

use crate::RewardError;
use crate::data::Data;
use crate::evaluate::{evaluate, to_vec};
use crate::loss::{PairIndex, accuracy, kwise_loss, margins};

/// Trains a reward model from its last snapshot, or from the language model's trunk.
///
/// # Errors
/// [`RewardError`] says what failed.
pub fn run(ctx: &StageContext, plan: &RewardPlan) -> Result<Outcome, RewardError> {
    let (model, tokenizer) = start(ctx, plan)?;
    let data = Data::open(ctx, plan, &tokenizer)?;
    let (pad_id, micro_batch) = (tokenizer.pad_id(), ctx.plan.execution.micro_batch);
    let mut session = Session::open(ctx, &plan.train, model, tokenizer, data.num_prompts())?;
    while session.is_running() {
        let mut batch = session.fetch(|step| data.batch(step, plan.train.batch));
        // Micro-batches of rows of like length pad little.
        batch.sort_by_key(|example| longest(example));
        let mut metrics = Metrics::new();
        backward(&mut session, plan, &batch, &mut metrics)?;
        let ids: Vec<&str> = batch.iter().map(|example| &example.id[..]).collect();
        session.update(&ids, &mut metrics)?;
        if session.evaluation_is_due() {
            let heldout = &data.heldout;
            let rows = (pad_id, micro_batch);
            let loss = evaluate(&session.model, heldout, rows, &ctx.ranks, &mut metrics)?;
            session.select(loss);
        }
        let lengths: Vec<usize> = batch
            .iter()
            .flat_map(|e| &e.responses)
            .map(Vec::len)
            .collect();
        session.end_step(metrics, lengths.len(), lengths.iter().sum())?;
    }
    if session.was_interrupted() {
        return Ok(Outcome::Interrupted);
    }
    let selected = session.restore_best()?;
    let rows = data.zero_rows(ctx, plan, &session.tokenizer)?;
    normalise(&mut session, &rows, pad_id, micro_batch)?;
    Ok(session.finish(selected)?)
}

/// The language model's trunk under a new head, and under new adapters where the plan has some.
fn start(ctx: &StageContext, plan: &RewardPlan) -> Result<(Model, Tokenizer), RewardError> {
    let Checkpoint {
        model, tokenizer, ..
    } = ctx.load_frozen(&plan.model, plan.quantize)?;
    let lora = plan.lora.as_ref();
    let model = ctx.adapt(model.to_scalar(ctx.seed), lora, &plan.model, "adapters");
    Ok((model, tokenizer))
}

/// Adds the gradients of the batch's mean loss, and reports loss, accuracy and scores.
fn backward(
    session: &mut Session,
    plan: &RewardPlan,
    batch: &[&ComparisonExample],
    metrics: &mut Metrics,
) -> Result<(), RewardError> {
    let pad_id = session.tokenizer.pad_id();
    let ranks = Rc::clone(&session.ctx.ranks);
    let micro_batch = session.ctx.plan.execution.micro_batch;
    let own = ranks.share(batch);
    session.stepper.expect(own.len().div_ceil(micro_batch));
    let (mut loss_sum, mut all_margins, mut scores) = (0.0, Vec::new(), Vec::new());
    for (index, micro) in own.chunks(micro_batch).enumerate() {
        let options = RecordOptions {
            checkpointing: session.ctx.plan.execution.checkpointing,
            dropout: plan.train.dropout,
            dropout_key: seeds::key(
                session.ctx.seed,
                "dropout",
                session.step,
                ranks.number(index),
            ),
        };
        let pairs = PairIndex::new(micro.iter().map(|e| (e.responses.len(), &e.pairs[..])));
        let mut tape = None;
        let scores_n = last_token_scores(&session.model, micro, pad_id, |input| {
            let (hidden_ntd, recorded) = session.model.record(input, &options)?;
            tape = Some(recorded);
            Ok(hidden_ntd)
        })?;
        let loss = kwise_loss(&scores_n, &pairs);
        (&loss / batch.len() as f64).backward();
        if let Some(tape) = tape {
            let stepper = &mut session.stepper;
            tape.backward_by_block(&session.model, |block| stepper.block_done(block))?;
        }
        session.stepper.accumulate()?;
        loss_sum += loss.double_value(&[]);
        all_margins.extend(to_vec(&margins(&scores_n.detach(), &pairs)));
        scores.extend(to_vec(&scores_n));
    }
    session.stepper.observe_loss(loss_sum / batch.len() as f64);
    let mut loss_sum = [loss_sum];
    ranks.sum(&mut loss_sum)?;
    let all_margins = ranks.exchange(all_margins)?.concat();
    let scores = ranks.exchange(scores)?.concat();
    metrics.insert("loss/train", loss_sum[0] / batch.len() as f64);
    metrics.insert("accuracy/train", accuracy(&all_margins));
    metrics.insert("reward/mean", mean(&scores));
    metrics.insert("reward/std", deviation(&scores));
    metrics.insert("reward/margin", mean(&all_margins));
    Ok(())
}

/// Tokens of the longest row of a prompt.
pub(crate) fn longest(example: &ComparisonExample) -> usize {
    example.responses.iter().map(Vec::len).max().unwrap_or(0)
}

/// The scores of all responses of some prompts, read at each response's last token.
pub(crate) fn last_token_scores(
    model: &Model,
    examples: &[&ComparisonExample],
    pad_id: u32,
    hidden: impl FnOnce(&Input) -> Result<Tensor, TrainerError>,
) -> Result<Tensor, TrainerError> {
    let rows: Vec<&[u32]> = examples
        .iter()
        .flat_map(|e| e.responses.iter().map(Vec::as_slice))
        .collect();
    let padded = pad(&rows, Side::Right, pad_id, None);
    let lengths: Vec<usize> = rows.iter().map(|row| row.len()).collect();
    let input = Input::from_padded(&padded, model.device()).wanted_last(&lengths);
    let hidden_ntd = hidden(&input)?;
    Ok(model.scalar_at_last(&hidden_ntd, &lengths))
}

/// Shifts the reward so that `rows` score 0 on average (Ouyang et al. 2022, C.2).
fn normalise(
    session: &mut Session,
    rows: &[Vec<u32>],
    pad_id: u32,
    micro_batch: usize,
) -> Result<(), RewardError> {
    let ranks = &session.ctx.ranks;
    let judge = RewardJudge::new(session.model.share())?;
    let whole = session.model.whole().map_err(TrainerError::from)?;
    let own = judge.score(&ranks.share(rows), pad_id, micro_batch)?;
    drop(whole);
    let scores = ranks.gather(own)?;
    let model = &mut session.model;
    model.reward_shift = -mean(&scores);
    tracing::info!(
        shift = model.reward_shift,
        demonstrations = rows.len(),
        "normalised"
    );
    Ok(())
}
