//! Comparisons as groups of token rows, and the demonstrations that set the reward's zero.

use datasets::collate::{ComparisonExample, comparison_examples, sft_examples};
use datasets::loader::Order;
use datasets::{Comparison, Demonstration, Split, Tokenizer};
use recipe::plan::RewardPlan;
use trainer::StageContext;

use crate::RewardError;

/// Demonstrations whose mean reward becomes 0, at most.
const MAX_DEMONSTRATIONS: usize = 1024;

/// Training comparisons in their order, and the held-out ones.
pub(crate) struct Data {
    train: Vec<ComparisonExample>,
    order: Order,
    /// Comparisons that the evaluation reads.
    pub heldout: Vec<ComparisonExample>,
}

impl Data {
    /// Reads and tokenises both splits.
    pub fn open(
        ctx: &StageContext,
        plan: &RewardPlan,
        tokenizer: &Tokenizer,
    ) -> Result<Self, RewardError> {
        let train = examples(
            ctx,
            plan,
            tokenizer,
            (Split::Train, "train", plan.train.batch),
        )?;
        let mut heldout = examples(ctx, plan, tokenizer, (Split::Heldout, "held-out", 1))?;
        heldout.truncate(plan.train.eval_examples);
        Ok(Self {
            order: Order::new(ctx.seed, "reward", train.len(), train.len()),
            train,
            heldout,
        })
    }

    /// Prompts that an epoch has.
    pub fn num_prompts(&self) -> usize {
        self.train.len()
    }

    /// The prompts of an update.
    pub fn batch(&self, step: u64, batch: usize) -> Vec<&ComparisonExample> {
        self.order
            .batch(step, batch)
            .into_iter()
            .map(|i| &self.train[i])
            .collect()
    }

    /// The rows whose mean reward becomes 0: demonstrations where the plan names some, else the
    /// responses of the training comparisons.
    pub fn zero_rows(
        &self,
        ctx: &StageContext,
        plan: &RewardPlan,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<Vec<u32>>, RewardError> {
        let Some(source) = &plan.demonstrations else {
            let responses = self.train.iter().flat_map(|e| e.responses.iter().cloned());
            return Ok(responses.take(MAX_DEMONSTRATIONS).collect());
        };
        let rows: Vec<Demonstration> = datasets::load_split(&ctx.path(source), Split::Train)?;
        let order = Order::new(ctx.seed, "reward zero", rows.len(), rows.len());
        let chosen = order.batch(0, rows.len().min(MAX_DEMONSTRATIONS));
        let rows: Vec<Demonstration> = chosen.into_iter().map(|i| rows[i].clone()).collect();
        let (examples, _) = sft_examples(&rows, tokenizer, plan.context, plan.overlong)?;
        Ok(examples
            .iter()
            .map(until_last_answer)
            .filter(|ids| !ids.is_empty())
            .collect())
    }
}

/// A dialogue up to the end of its last assistant turn, where a reward is read.
fn until_last_answer(example: &datasets::collate::SftExample) -> Vec<u32> {
    let end = example
        .loss
        .iter()
        .rposition(|l| *l)
        .map_or(0, |last| last + 1);
    example.ids[..end].to_vec()
}

fn examples(
    ctx: &StageContext,
    plan: &RewardPlan,
    tokenizer: &Tokenizer,
    (split, name, needed): (Split, &'static str, usize),
) -> Result<Vec<ComparisonExample>, RewardError> {
    let path = ctx.path(&plan.data);
    let rows: Vec<Comparison> = datasets::load_split(&path, split)?;
    let (mut examples, counts, ties) =
        comparison_examples(&rows, tokenizer, plan.context, plan.overlong)?;
    examples.retain(|example| !example.pairs.is_empty());
    let found = examples.len();
    tracing::info!(split = name, prompts = found, ties, ?counts, "comparisons");
    if found < needed {
        return Err(RewardError::TooFew {
            split: name,
            path,
            found,
            ties,
            needed,
        });
    }
    Ok(examples)
}
