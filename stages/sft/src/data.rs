//! Demonstrations as masked token rows.

use datasets::collate::sft_examples;
use datasets::loader::Order;
use datasets::{Demonstration, Split, Tokenizer};
use recipe::plan::SftPlan;
use trainer::{LmRow, StageContext};

use crate::SftError;

/// Training examples in their order, and the held-out examples.
pub(crate) struct Data {
    train: Vec<LmRow>,
    order: Order,
    /// Examples that the evaluation reads.
    pub heldout: Vec<LmRow>,
}

impl Data {
    /// Reads and tokenises both splits.
    pub fn open(
        ctx: &StageContext,
        plan: &SftPlan,
        tokenizer: &Tokenizer,
    ) -> Result<Self, SftError> {
        let train = examples(
            ctx,
            plan,
            tokenizer,
            (Split::Train, "train", plan.train.batch),
        )?;
        let mut heldout = examples(ctx, plan, tokenizer, (Split::Heldout, "held-out", 1))?;
        heldout.truncate(plan.train.eval_examples);
        Ok(Self {
            order: Order::new(ctx.seed, "sft", train.len(), train.len()),
            train,
            heldout,
        })
    }

    /// Demonstrations that an epoch has.
    pub fn num_examples(&self) -> usize {
        self.train.len()
    }

    /// The examples of an update.
    pub fn batch(&self, step: u64, batch: usize) -> Vec<LmRow> {
        self.order
            .batch(step, batch)
            .into_iter()
            .map(|i| self.train[i].clone())
            .collect()
    }
}

fn examples(
    ctx: &StageContext,
    plan: &SftPlan,
    tokenizer: &Tokenizer,
    (split, name, needed): (Split, &'static str, usize),
) -> Result<Vec<LmRow>, SftError> {
    let path = ctx.path(&plan.data);
    let rows: Vec<Demonstration> = datasets::load_split(&path, split)?;
    let overlong = trainer::overlong(plan.overlong);
    let (examples, counts) = sft_examples(&rows, tokenizer, plan.context, overlong)?;
    tracing::info!(
        split = name,
        demonstrations = examples.len(),
        ?counts,
        "demonstrations"
    );
    if examples.len() < needed {
        return Err(SftError::TooFew {
            split: name,
            path,
            found: examples.len(),
            needed,
        });
    }
    Ok(examples
        .into_iter()
        .map(|e| LmRow {
            ids: e.ids,
            loss: e.loss,
        })
        .collect())
}
