//! The plans of stages that train on fixed data: pretrain, sft, reward.

use serde::{Deserialize, Serialize};

use crate::lora::LoraPlan;
use crate::plan::{Objective, Overlong, Quantization, Source};
use crate::shape::ModelShape;

/// How long a stage trains.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Duration {
    /// Updates.
    Steps(u64),
    /// Passes over the training data; becomes updates once the data is counted.
    Epochs(f64),
}

/// The loop that pretraining, SFT and reward modelling share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainPlan {
    /// Sequences (reward: prompts) per update, over all ranks.
    pub batch: usize,
    /// When it ends.
    pub duration: Duration,
    /// The optimizer.
    pub optimizer: OptimizerPlan,
    /// Updates between two evaluations on held-out data.
    pub eval_every: u64,
    /// Held-out examples per evaluation, at most.
    pub eval_examples: usize,
    /// Residual dropout.
    pub dropout: f64,
    /// Updates with non-finite numbers that may be skipped before the run stops.
    pub nonfinite_skip: u64,
}

/// `AdamW` with its schedule and clipping.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OptimizerPlan {
    /// Peak learning rate.
    pub lr: f64,
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled weight decay (matrices only).
    pub weight_decay: f64,
    /// Shape of the learning rate over the run.
    pub schedule: Schedule,
    /// Fraction of the peak at which linear and cosine schedules end.
    pub floor: f64,
    /// Updates of linear warm-up.
    pub warmup: u64,
    /// Fraction of the peak at which the warm-up starts.
    pub warmup_from: f64,
    /// Largest global gradient norm; larger gradients are scaled down to it.
    pub clip: f64,
}

/// Shape of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Stays at the peak.
    Constant,
    /// A straight line down to the floor.
    Linear,
    /// Half a cosine down to the floor.
    Cosine,
}

/// Base pretraining.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PretrainPlan {
    /// Texts.
    pub data: Source,
    /// The model that it goes on from; `None`: random weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<Source>,
    /// The tokenizer's folder; that of `start` where there is one.
    pub tokenizer: Source,
    /// The model to be made.
    pub model: ModelShape,
    /// What it is to predict.
    #[serde(default)]
    pub objective: Objective,
    /// Tokens of text per row.
    pub context: usize,
    /// The loop.
    pub train: TrainPlan,
}

/// Supervised fine-tuning on demonstrations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SftPlan {
    /// The model it starts from; its tokenizer comes along.
    pub model: Source,
    /// Shape of that model, lengthened where the stage does so.
    pub shape: ModelShape,
    /// Demonstrations.
    pub data: Source,
    /// Tokens per dialogue at most.
    pub context: usize,
    /// What happens to longer ones.
    pub overlong: Overlong,
    /// Pretraining text among the demonstrations.
    pub pretrain: Option<MixPlan>,
    /// Adapters that are trained in place of the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraPlan>,
    /// How the matrices under the adapters are kept; `None`: in the stage's `dtype`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantize: Option<Quantization>,
    /// The loop.
    pub train: TrainPlan,
}

/// Pretraining text mixed into fine-tuning (`InstructGPT`, C.3: a tenth of the data).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MixPlan {
    /// Texts.
    pub data: Source,
    /// Its share of each batch's rows. (A row of text fills the context, so its share of the tokens is
    /// larger.)
    pub share: f64,
    /// The same as a number of rows, at least one.
    pub rows: usize,
}

/// Reward-model training on ranked comparisons.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RewardPlan {
    /// The model whose trunk it starts from.
    pub model: Source,
    /// Shape of that model.
    pub shape: ModelShape,
    /// Comparisons.
    pub data: Source,
    /// Demonstrations whose mean reward becomes 0; `None`: the mean over the comparisons' responses.
    pub demonstrations: Option<Source>,
    /// Tokens of prompt and response together at most.
    pub context: usize,
    /// What happens to longer ones.
    pub overlong: Overlong,
    /// Adapters that are trained in place of the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraPlan>,
    /// How the matrices under the adapters are kept; `None`: in the stage's `dtype`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantize: Option<Quantization>,
    /// The loop; a batch counts prompts.
    pub train: TrainPlan,
}
