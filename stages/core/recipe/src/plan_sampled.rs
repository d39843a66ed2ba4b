//! The plans of stages that sample: label and ppo.

use serde::{Deserialize, Serialize};

use crate::lora::LoraPlan;
use crate::plan::{OptimizerPlan, Overlong, Quantization, Source};
use crate::shape::ModelShape;

/// Sampling of responses, ranked by a labeler.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LabelPlan {
    /// The model that responds.
    pub model: Source,
    /// How that model's matrices are kept; `None`: in the stage's `dtype`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantize: Option<Quantization>,
    /// Shape of that model.
    pub shape: ModelShape,
    /// Prompts.
    pub prompts: Source,
    /// Prompts labelled of the training split.
    pub num_prompts: usize,
    /// Prompts labelled of the held-out split.
    pub num_heldout: usize,
    /// K: responses per prompt.
    pub responses: usize,
    /// Who ranks them.
    pub labeler: Labeler,
    /// How they are sampled.
    pub sampling: SamplingPlan,
}

/// Prompt and response lengths, and the distribution that is sampled from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplingPlan {
    /// Tokens of a prompt at most.
    pub max_prompt_tokens: usize,
    /// Tokens of a response at most, EOS included.
    pub max_new_tokens: usize,
    /// Logits are divided by this.
    pub temperature: f64,
    /// What happens to longer prompts.
    pub overlong: Overlong,
}

/// Who says what is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Labeler {
    /// A known rule, so that improvement can be measured.
    Gold {
        /// The rule.
        rule: GoldRule,
    },
}

/// Rules that score a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GoldRule {
    /// VADER's compound sentiment, -1 to 1 (Hutto and Gilbert 2014).
    Vader,
}

/// Proximal policy optimisation against one or more reward models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PpoPlan {
    /// Policy and reference start here.
    pub model: Source,
    /// Shape of the policy.
    pub shape: ModelShape,
    /// How the reference's matrices are kept, and with adapters the policy's under them, which are the same;
    /// `None`: in the stage's `dtype`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_quantize: Option<Quantization>,
    /// Reward models; their weighted sum is the score.
    pub reward: Vec<RewardSource>,
    /// Shape of the value model ([`PpoPlan::value_start`]), or of the policy whose trunk it shares.
    pub value_shape: ModelShape,
    /// The weight of the value loss beside the policy's where values come from a head on the policy's own trunk (Ziegler
    /// et al. 2019, their code); `None`: the value model is one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vf_coef: Option<f64>,
    /// Prompts.
    pub prompts: Source,
    /// How responses are sampled; the temperature divides logits in every log-probability.
    pub sampling: SamplingPlan,
    /// PPO iterations: collect a batch of episodes, then update on it.
    pub iterations: u64,
    /// Episodes per iteration.
    pub batch: usize,
    /// Episodes per update.
    pub minibatch: usize,
    /// Passes over an iteration's episodes.
    pub inner_epochs: usize,
    /// Coefficient of the KL penalty.
    pub kl: KlPlan,
    /// Discount.
    pub gamma: f64,
    /// GAE's lambda (Schulman et al. 2016).
    pub lambda: f64,
    /// Ratio clip of the policy loss.
    pub clip: f64,
    /// Clip of the value loss around the old values; `None`: unclipped.
    pub value_clip: Option<f64>,
    /// Whiten advantages over the iteration's response tokens.
    pub whiten_advantages: bool,
    /// What becomes of the score of a response that made no EOS.
    pub eos_rule: EosRule,
    /// Decay of the exponential moving average of the policy; `None`: off.
    pub ema: Option<f64>,
    /// Pretraining gradients mixed into each update (PPO-ptx).
    pub ptx: Option<PtxPlan>,
    /// Optimizer of the policy, and of a value head on its trunk.
    pub policy_optimizer: OptimizerPlan,
    /// Optimizer of a value model of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_optimizer: Option<OptimizerPlan>,
    /// Iterations between two evaluations on held-out prompts.
    pub eval_every: u64,
    /// Held-out prompts per evaluation, at most.
    pub eval_prompts: usize,
    /// A rule that is evaluated beside the score and used for nothing else.
    pub gold: Option<GoldRule>,
    /// Adapters that policy and value model train in place of their weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<PpoLora>,
    /// Largest allowed gap between sampled and recomputed log-probabilities (nats).
    pub max_logprob_gap: f64,
    /// Updates with non-finite numbers that may be skipped before the run stops.
    pub nonfinite_skip: u64,
}

impl PpoPlan {
    /// The reward model that the value model starts from: the first that reads the policy's ids, since
    /// the value model does. `None` where all have tokenizers of their own, or where it shares the policy's trunk: it
    /// then starts from the policy, with a head of zeros.
    pub fn value_start(&self) -> Option<usize> {
        let separate = self.vf_coef.is_none();
        let reads = |reward: &RewardSource| separate && !reward.own_tokenizer;
        self.reward.iter().position(reads)
    }
}

/// Adapters in PPO: the reference is the policy without its adapters, and the value model has adapters and a
/// head of its own on what it starts from ([`PpoPlan::value_start`]).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PpoLora {
    /// The policy's adapters.
    pub policy: LoraPlan,
    /// The value model's. On a shared backbone it begins with those of the first reward model; a head on the policy's
    /// trunk stands on the policy's.
    pub value: LoraPlan,
    /// Reward models are not read merged: their adapters stand on the policy's own frozen weights, so that
    /// these are in memory once.
    pub share_backbone: bool,
}

impl PpoLora {
    /// The same where the value model is a head on the policy's trunk.
    #[must_use]
    pub(crate) fn with_value_head(self, on_trunk: bool) -> Self {
        if on_trunk {
            Self {
                value: self.policy.clone(),
                ..self
            }
        } else {
            self
        }
    }
}

/// A reward model and its weight in the score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RewardSource {
    /// The reward model.
    pub model: Source,
    /// Its shape.
    pub shape: ModelShape,
    /// Its weight.
    pub weight: f64,
    /// How its matrices are kept, and those under the adapters of a value model that stands on them; `None`: in
    /// the stage's `dtype`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantize: Option<Quantization>,
    /// It does not read the policy's ids: what is scored is decoded, written by its own chat template
    /// and encoded by its own tokenizer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own_tokenizer: bool,
}

/// What becomes of the score of a response that was cut off before its EOS.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EosRule {
    /// Nothing.
    Off,
    /// Another score takes its place (Ziegler et al. 2019; `InstructGPT`'s ancestors).
    Replace {
        /// The score.
        score: f64,
    },
    /// It is lowered (TRL's `missing_eos_penalty`).
    Subtract {
        /// By how much.
        penalty: f64,
    },
}

impl EosRule {
    /// The score of a response without EOS, of which the reward models say `score`.
    pub fn without_eos(self, score: f64) -> f64 {
        match self {
            Self::Off => score,
            Self::Replace { score } => score,
            Self::Subtract { penalty } => score - penalty,
        }
    }
}

/// How the KL coefficient moves.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum KlPlan {
    /// It does not.
    Fixed {
        /// The coefficient.
        coef: f64,
    },
    /// Proportional control towards a target (Ziegler et al. 2019, section 2.2).
    Adaptive {
        /// The first coefficient.
        coef: f64,
        /// Wanted KL per episode, nats.
        target: f64,
        /// Episodes over which an error of 1 changes the coefficient by a factor e.
        horizon: f64,
    },
}

/// PPO-ptx (`InstructGPT`, equation 2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PtxPlan {
    /// Texts.
    pub data: Source,
    /// Weight of the mean token loss.
    pub coef: f64,
    /// Pretraining sequences per episode.
    pub sequences_per_episode: usize,
    /// Tokens per sequence.
    pub context: usize,
}
