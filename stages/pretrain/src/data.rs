//! Rows of the token stream, in the order of the run.

use datasets::loader::Order;
use datasets::pack::TokenRows;
use datasets::{Split, Tokenizer};
use recipe::plan::PretrainPlan;
use trainer::{LmRow, StageContext};

use crate::PretrainError;

/// Training rows in their order, and the held-out rows.
pub(crate) struct Data {
    train: TokenRows,
    order: Order,
    /// Rows that the evaluation reads.
    pub heldout: Vec<LmRow>,
    /// UTF-8 bytes per held-out token.
    pub bytes_per_token: f64,
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
        // A row's first token is not predicted, so its bytes do not count either.
        let predicted = (num_heldout * (plan.context - 1)) as f64;
        let bytes_per_token = heldout.bytes_of(&indices)? as f64 / predicted;
        Ok(Self {
            order: Order::new(ctx.seed, "pretrain", train.num_rows(), train.num_rows()),
            train,
            heldout: heldout
                .rows(&indices)?
                .into_iter()
                .map(LmRow::plain)
                .collect(),
            bytes_per_token,
        })
    }

    /// Rows that an epoch has.
    pub fn num_rows(&self) -> usize {
        self.train.num_rows()
    }

    /// The rows of an update.
    pub fn batch(&self, step: u64, batch: usize) -> Result<Vec<LmRow>, PretrainError> {
        let rows = self.train.rows(&self.order.batch(step, batch))?;
        Ok(rows.into_iter().map(LmRow::plain).collect())
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
