//! Pretraining text mixed into later stages: PPO-ptx, and fine-tuning of what PPO starts from
//! (Ouyang et al. 2022, C.3 and C.4).

use datasets::loader::Order;
use datasets::pack::TokenRows;
use datasets::{DataError, Split, Tokenizer};
use recipe::plan::Source;

use crate::{LmRow, StageContext, TrainerError};

/// Rows of the token stream, in an order of their own.
#[derive(Debug)]
pub struct PretrainText {
    rows: TokenRows,
    order: Order,
}

impl PretrainText {
    /// Tokenises one split of the text into rows of `context` tokens, or finds them in the stage's
    /// cache; `purpose` names the order.
    ///
    /// # Errors
    /// Text that cannot be read or fills no row, or a cache that cannot be written.
    pub fn open(
        ctx: &StageContext,
        (data, split): (&Source, Split),
        tokenizer: &Tokenizer,
        context: usize,
        purpose: &'static str,
    ) -> Result<Self, TrainerError> {
        let path = ctx.path(data);
        let rows = TokenRows::build(&path, split, tokenizer, context, &ctx.cache_dir())?;
        Ok(Self {
            order: Order::new(ctx.seed, purpose, rows.num_rows(), rows.window()),
            rows,
        })
    }

    /// The rows of one update: update `u` reads the `u`-th `count` rows of the order.
    ///
    /// # Errors
    /// Where the cache cannot be read.
    pub fn batch(&self, update: u64, count: usize) -> Result<Vec<LmRow>, DataError> {
        self.rows_at(&self.order.batch(update, count))
    }

    /// The first `count` rows of the stream, for evaluation.
    ///
    /// # Errors
    /// Where the cache cannot be read.
    pub fn first(&self, count: usize) -> Result<Vec<LmRow>, DataError> {
        let indices: Vec<usize> = (0..self.rows.num_rows().min(count)).collect();
        self.rows_at(&indices)
    }

    fn rows_at(&self, indices: &[usize]) -> Result<Vec<LmRow>, DataError> {
        let rows = self.rows.rows(indices)?;
        Ok(rows.into_iter().map(LmRow::plain).collect())
    }
}
