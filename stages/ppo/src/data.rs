//! The models of PPO, and its prompts.

use datasets::collate::{PromptExample, prompt_examples};
use datasets::loader::Order;
use datasets::{Overlong, Prompt, Reply, Split, Tokenizer, reply_rows};
use judge::RewardJudge;
use model::{Checkpoint, Model};
use recipe::plan::{PpoPlan, RewardSource};
use runtime::manifest::Manifest;
use trainer::{StageContext, TrainerError};

use crate::PpoError;
use crate::rollout::Episode;
use crate::scoring::ScoreOptions;

/// Everything that is run forward: policy and value model are trained, the others are frozen.
pub struct Models {
    /// What is optimised.
    pub policy: Model,
    /// The policy as it began; the KL penalty is measured against it.
    pub reference: Model,
    /// The critic, which reads the policy's ids ([`PpoPlan::value_start`]).
    pub value: Model,
    /// All of the critic but its head is the policy itself.
    pub value_on_trunk: bool,
    /// Reward models; their weighted sum is the score.
    pub rewards: Vec<RewardModel>,
    /// The tokenizer of policy, reference and value model.
    pub tokenizer: Tokenizer,
}

/// A reward model, and how it is shown what the policy said.
pub struct RewardModel {
    /// The model.
    pub judge: RewardJudge,
    /// Its weight in the score.
    pub weight: f64,
    /// Its own tokenizer, where it does not read the policy's ids.
    pub own_tokenizer: Option<Tokenizer>,
}

impl Models {
    /// Loads them as the plan says.
    ///
    /// With adapters no weights are copied: the reference is the policy's weights without its adapters, and
    /// the value model has adapters and a head of its own on the weights that it starts from. A value model that
    /// shares the policy's trunk has a head alone, with adapters or without.
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
            rewards.push(RewardModel {
                judge: RewardJudge::new(model)?,
                weight: source.weight,
                own_tokenizer: source.own_tokenizer.then_some(reward_tokenizer),
            });
        }
        let reference = match (&plan.lora, plan.reference_quantize) {
            (Some(_), _) => policy.share(),
            (None, None) => policy.deep_copy(),
            (None, quantize) => ctx.load_frozen(&plan.model, quantize)?.model,
        };
        let adapters = plan.lora.as_ref().map(|lora| &lora.policy);
        let policy = ctx.adapt(policy, adapters, &plan.model, "policy adapters");
        let value_on_trunk = plan.vf_coef.is_some();
        let value = if value_on_trunk {
            policy.to_value()
        } else {
            let start = adapters.map_or(&policy, |_| &reference);
            value_model(ctx, plan, &rewards, start)?
        };
        Ok(Self {
            policy,
            reference,
            value,
            value_on_trunk,
            rewards,
            tokenizer,
        })
    }
}

/// A value model of its own; `policy` is the policy's start, without adapters.
fn value_model(
    ctx: &StageContext,
    plan: &PpoPlan,
    rewards: &[RewardModel],
    policy: &Model,
) -> Result<Model, PpoError> {
    let start = plan.value_start().map(|index| (index, &plan.reward[index]));
    let own_weights = |model: Model| match plan.lora {
        Some(_) => model,
        None => model.deep_copy(),
    };
    let value = match start {
        // Codes are not trained.
        Some((_, source)) if plan.lora.is_none() && source.quantize.is_some() => {
            ctx.load_checkpoint(&source.model)?.model
        }
        Some((index, _)) => own_weights(rewards[index].judge.model().fork()),
        None => own_weights(policy.to_value()),
    };
    let own = plan.lora.as_ref().filter(|lora| !lora.share_backbone);
    let source = start.map_or(&plan.model, |(_, source)| &source.model);
    Ok(ctx.adapt(value, own.map(|lora| &lora.value), source, "value adapters"))
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

impl RewardModel {
    /// Raw scores of the episodes, and how many of their prompts were shortened to fit into the model.
    ///
    /// # Errors
    /// Where its template refuses a dialogue, an episode does not fit, or a score is not finite.
    pub fn score(
        &self,
        episodes: &[Episode],
        policy_tokenizer: &Tokenizer,
        options: &ScoreOptions,
    ) -> Result<(Vec<f64>, usize), PpoError> {
        let ended = |e: &Episode| e.ended(policy_tokenizer.eos_id());
        let (rows, num_shortened) = match &self.own_tokenizer {
            None => (episodes.iter().map(ended).collect(), 0),
            Some(own) => {
                let replies: Vec<Reply> = episodes.iter().map(Episode::reply).collect();
                reply_rows(&replies, own, self.context(), options.overlong)?
            }
        };
        let pad_id = self
            .own_tokenizer
            .as_ref()
            .unwrap_or(policy_tokenizer)
            .pad_id();
        Ok((
            self.judge.score(&rows, pad_id, options.micro_batch)?,
            num_shortened,
        ))
    }

    /// Refuses prompts that its own template or context cannot take, before anything is trained.
    fn check(&self, prompts: &[PromptExample], overlong: Overlong) -> Result<(), PpoError> {
        let Some(own) = &self.own_tokenizer else {
            return Ok(());
        };
        let replies: Vec<Reply> = prompts.iter().map(unanswered).collect();
        reply_rows(&replies, own, self.context(), overlong)?;
        Ok(())
    }

    fn context(&self) -> usize {
        self.judge.model().shape.max_positions
    }
}

/// A prompt with the least reply there is.
fn unanswered(prompt: &PromptExample) -> Reply<'_> {
    Reply {
        id: &prompt.id,
        prompt: &prompt.messages,
        content: "",
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
    /// Where they cannot be read, are fewer than `at_least`, or a reward model of another tokenizer
    /// cannot take one.
    pub fn open(
        ctx: &StageContext,
        plan: &PpoPlan,
        models: &Models,
        (split, at_least): (Split, usize),
    ) -> Result<Self, PpoError> {
        let path = ctx.path(&plan.prompts);
        let rows: Vec<Prompt> = datasets::load_split(&path, split)?;
        let sampling = &plan.sampling;
        let (examples, counts) = prompt_examples(
            &rows,
            &models.tokenizer,
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
        for reward in &models.rewards {
            reward.check(&examples, plan.sampling.overlong)?;
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
