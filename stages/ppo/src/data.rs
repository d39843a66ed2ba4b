//! The models of PPO, and its prompts.

use datasets::collate::{PromptExample, prompt_examples};
use datasets::loader::Order;
use datasets::{Prompt, Split, Tokenizer};
use judge::RewardJudge;
use model::{Checkpoint, Model};
use recipe::plan::PpoPlan;
use trainer::StageContext;

use crate::PpoError;

/// Everything that is run forward: policy and value model are trained, the others are frozen.
pub struct Models {
    /// What is optimised.
    pub policy: Model,
    /// The policy as it began; the KL penalty is measured against it.
    pub reference: Model,
    /// The critic. It begins as the first reward model, whatever that one's weight.
    pub value: Model,
    /// Reward models with their weights.
    pub rewards: Vec<(RewardJudge, f64)>,
    /// The tokenizer of all of them.
    pub tokenizer: Tokenizer,
}

impl Models {
    /// Loads them as the plan says; refuses reward models of another tokenizer.
    ///
    /// # Errors
    /// Where a checkpoint cannot be read or does not fit.
    pub fn load(ctx: &StageContext, plan: &PpoPlan) -> Result<Self, PpoError> {
        let Checkpoint {
            model: policy,
            tokenizer,
            ..
        } = ctx.load_checkpoint(&plan.model)?;
        let mut rewards = Vec::with_capacity(plan.reward.len());
        for source in &plan.reward {
            let reward = ctx.load_checkpoint(&source.model)?;
            if reward.tokenizer.hash() != tokenizer.hash() {
                let (reward, policy) = (ctx.path(&source.model), ctx.path(&plan.model));
                return Err(PpoError::OtherTokenizer { reward, policy });
            }
            let judge = RewardJudge::new(reward.model)?;
            rewards.push((judge, source.weight));
        }
        Ok(Self {
            reference: policy.deep_copy(),
            value: rewards[0].0.model().deep_copy(),
            policy,
            rewards,
            tokenizer,
        })
    }
}

/// Prompts and their order.
pub struct Prompts {
    examples: Vec<PromptExample>,
    order: Order,
}

impl Prompts {
    /// Reads one split of the plan's prompts.
    ///
    /// # Errors
    /// Where they cannot be read, or are fewer than `at_least`.
    pub fn open(
        ctx: &StageContext,
        plan: &PpoPlan,
        tokenizer: &Tokenizer,
        (split, at_least): (Split, usize),
    ) -> Result<Self, PpoError> {
        let path = ctx.path(&plan.prompts);
        let rows: Vec<Prompt> = datasets::load_split(&path, split)?;
        let sampling = &plan.sampling;
        let (examples, counts) = prompt_examples(
            &rows,
            tokenizer,
            sampling.max_prompt_tokens,
            sampling.overlong,
        )?;
        tracing::info!(prompts = examples.len(), ?counts, "prompts");
        if examples.len() < at_least {
            let found = examples.len();
            return Err(PpoError::TooFewPrompts {
                path,
                found,
                batch: at_least,
            });
        }
        let purpose = match split {
            Split::Train => "ppo prompts",
            Split::Heldout => "ppo held-out prompts",
        };
        Ok(Self {
            order: Order::new(ctx.seed, purpose, examples.len(), examples.len()),
            examples,
        })
    }

    /// The prompts of an iteration.
    pub fn batch(&self, iteration: u64, batch: usize) -> Vec<PromptExample> {
        let indices = self.order.batch(iteration, batch);
        indices
            .into_iter()
            .map(|i| self.examples[i].clone())
            .collect()
    }

    /// Number of prompts.
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// True where there is no prompt.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }
}
