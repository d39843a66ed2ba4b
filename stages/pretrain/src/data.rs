//! Rows of the token stream as tasks, in the order of the run.

use datasets::loader::{Order, Prefetch};
use datasets::pack::TokenRows;
use datasets::{DataError, Objective, Split, Tasks, Tokenizer};
use recipe::plan::PretrainPlan;
use trainer::{LmRow, StageContext};

use crate::PretrainError;

/// Training rows in their order, and the held-out rows.
pub(crate) struct Data {
    batches: Prefetch<Result<Vec<LmRow>, DataError>>,
    num_rows: usize,
    /// Rows that the evaluation reads.
    pub heldout: Vec<LmRow>,
    /// UTF-8 bytes per predicted held-out token, where a text is predicted as a whole.
    pub bytes_per_token: Option<f64>,
}

impl Data {
    /// Tokenises both splits, or finds them in the stage's cache.
    pub fn open(
        ctx: &StageContext,
        plan: &PretrainPlan,
        tokenizer: &Tokenizer,
    ) -> Result<Self, PretrainError> {
        let train = rows(
            ctx,
            plan,
            tokenizer,
            Split::Train,
            "train",
            plan.train.batch,
        )?;
        let heldout = rows(ctx, plan, tokenizer, Split::Heldout, "held-out", 1)?;
        let num_heldout = plan.train.eval_examples.min(heldout.num_rows());
        let indices: Vec<usize> = (0..num_heldout).collect();
        let bytes_per_token = if plan.objective == Objective::Causal {
            // A row's first token is not predicted, so its bytes do not count either.
            let predicted = (num_heldout * (plan.context - 1)) as f64;
            Some(heldout.bytes_of(&indices)? as f64 / predicted)
        } else {
            None
        };
        let tasks = |purpose| Tasks::new(plan.objective, tokenizer, ctx.seed, purpose);
        let (training, evaluation) = (tasks("pretrain tasks")?, tasks("held-out tasks")?);
        let num_rows = train.num_rows();
        let order = Order::new(ctx.seed, "pretrain", num_rows, train.window());
        let batch = plan.train.batch;
        let batches = Prefetch::new(move |step| {
            // What is hidden of a row goes by its place in the run, so every epoch hides something else.
            let numbers = step * batch as u64..;
            let rows = train.rows(&order.batch(step, batch))?;
            let tasks = rows.into_iter().zip(numbers);
            Ok(tasks
                .map(|(row, number)| training.row(row, number))
                .collect())
        });
        Ok(Self {
            batches,
            num_rows,
            heldout: heldout
                .rows(&indices)?
                .into_iter()
                .zip(0..)
                .map(|(row, number)| evaluation.row(row, number))
                .collect(),
            bytes_per_token,
        })
    }

    /// Rows that an epoch has.
    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// The rows of an update; those of the next one are read meanwhile.
    pub fn batch(&mut self, step: u64) -> Result<Vec<LmRow>, PretrainError> {
        Ok(self.batches.next(step)?)
    }
}

fn rows(
    ctx: &StageContext,
    plan: &PretrainPlan,
    tokenizer: &Tokenizer,
    split: Split,
    name: &'static str,
    needed: usize,
) -> Result<TokenRows, PretrainError> {
    let path = ctx.path(&plan.data);
    let rows = TokenRows::build(&path, split, tokenizer, plan.context, &ctx.cache_dir())?;
    tracing::info!(
        split = name,
        rows = rows.num_rows(),
        context = plan.context,
        tokens_left_over = rows.num_dropped(),
        "token rows"
    );
    if rows.num_rows() < needed {
        let (found, context) = (rows.num_rows(), plan.context);
        return Err(PretrainError::TooLittleText {
            split: name,
            path,
            rows: found,
            context,
            needed,
        });
    }
    Ok(rows)
}
