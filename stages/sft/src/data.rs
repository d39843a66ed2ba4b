//! Demonstrations as masked token rows, and the pretraining text among them.

use datasets::collate::sft_examples;
use datasets::loader::Order;
use datasets::{Demonstration, Split, Tokenizer};
use recipe::plan::{MixPlan, SftPlan};
use trainer::{LmRow, PretrainText, StageContext};

use crate::SftError;

/// Training examples in their order, and the held-out examples.
pub(crate) struct Data {
    train: Vec<LmRow>,
    order: Order,
    /// Pretraining text, and its rows in each batch.
    text: Option<(PretrainText, usize)>,
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
        let text = |mix: &MixPlan| {
            let from = (&mix.data, Split::Train);
            let text = PretrainText::open(ctx, from, tokenizer, plan.context, "sft text")?;
            Ok::<_, SftError>((text, mix.rows))
        };
        Ok(Self {
            order: Order::new(ctx.seed, "sft", train.len(), train.len()),
            train,
            text: plan.pretrain.as_ref().map(text).transpose()?,
            heldout,
        })
    }

    /// Rows that an epoch of the demonstrations has, the text among them counted, in batches of
    /// `batch` rows.
    pub fn rows_per_epoch(&self, batch: usize) -> usize {
        self.train.len() * batch / (batch - self.num_text())
    }

    fn num_text(&self) -> usize {
        self.text.as_ref().map_or(0, |(_, rows)| *rows)
    }

    /// The rows of an update: demonstrations, then pretraining text where it is mixed in.
    pub fn batch(&self, step: u64, batch: usize) -> Result<Vec<LmRow>, SftError> {
        let demonstrations = self.order.batch(step, batch - self.num_text()).into_iter();
        let mut rows: Vec<LmRow> = demonstrations.map(|i| self.train[i].clone()).collect();
        if let Some((text, count)) = &self.text {
            rows.extend(text.batch(step, *count)?);
        }
        Ok(rows)
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
    let (examples, counts) = sft_examples(&rows, tokenizer, plan.context, plan.overlong)?;
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
        .map(|e| LmRow::next_tokens(e.ids, &e.loss))
        .collect())
}
