//! The models of PPO, and its prompts.

use datasets::collate::{PromptExample, prompt_examples};
use datasets::loader::Order;
use datasets::{Prompt, Split, Tokenizer};
use judge::RewardJudge;
use model::{Checkpoint, Model};
use recipe::plan::{PpoPlan, RewardSource};
use runtime::manifest::Manifest;
use trainer::{StageContext, TrainerError};

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
    /// With adapters no weights are copied: the reference is the policy's weights without its adapters, and
    /// the value model has adapters and a head of its own on the first reward model.
    ///
    /// # Errors
    /// Where a checkpoint cannot be read or does not fit.
    pub fn load(ctx: &StageContext, plan: &PpoPlan) -> Result<Self, PpoError> {
        // Codes are not trained: they are what the reference is made of, and what adapters stand on.
        let under_policy = plan.reference_quantize.filter(|_| plan.lora.is_some());
        let Checkpoint {
            model: policy,
            tokenizer,
            ..
        } = ctx.load_frozen(&plan.model, under_policy)?;
        let mut rewards = Vec::with_capacity(plan.reward.len());
        for source in &plan.reward {
            let (model, reward_tokenizer) = reward_model(ctx, plan, source, &policy)?;
            if reward_tokenizer.hash() != tokenizer.hash() {
                let (reward, policy) = (ctx.path(&source.model), ctx.path(&plan.model));
                return Err(PpoError::OtherTokenizer { reward, policy });
            }
            rewards.push((RewardJudge::new(model)?, source.weight));
        }
        let first = rewards[0].0.model();
        let (policy, reference, value) = match &plan.lora {
            None => {
                let reference = match plan.reference_quantize {
                    None => policy.deep_copy(),
                    quantize => ctx.load_frozen(&plan.model, quantize)?.model,
                };
                let value = match plan.reward[0].quantize {
                    None => first.deep_copy(),
                    Some(_) => ctx.load_checkpoint(&plan.reward[0].model)?.model,
                };
                (policy, reference, value)
            }
            Some(lora) => {
                let reference = policy.share();
                let own = (!lora.share_backbone).then_some(&lora.value);
                let source = &plan.reward[0].model;
                let value = ctx.adapt(first.fork(), own, source, "value adapters");
                let adapters = Some(&lora.policy);
                let policy = ctx.adapt(policy, adapters, &plan.model, "policy adapters");
                (policy, reference, value)
            }
        };
        Ok(Self {
            policy,
            reference,
            value,
            rewards,
            tokenizer,
        })
    }
}

/// A reward model and its tokenizer: its adapters on the policy's weights where the backbone is shared, else
/// the merged model.
fn reward_model(
    ctx: &StageContext,
    plan: &PpoPlan,
    source: &RewardSource,
    policy: &Model,
) -> Result<(Model, Tokenizer), PpoError> {
    if plan.lora.as_ref().is_some_and(|lora| lora.share_backbone) {
        let dir = ctx.path(&source.model);
        Manifest::verify(&dir).map_err(TrainerError::from)?;
        let model = policy.with_adapter(&dir.join(trainer::ADAPTER))?;
        return Ok((model, ctx.load_tokenizer(&source.model)?));
    }
    let Checkpoint {
        model, tokenizer, ..
    } = ctx.load_frozen(&source.model, source.quantize)?;
    Ok((model, tokenizer))
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
