//! What will be done: every stage with every number resolved. Saved as `plan.toml` with the run.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

use crate::shape::ModelShape;

/// A whole pipeline, resolved: what `rlhf plan` prints and the worker executes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Version of this format.
    pub format_version: u32,
    /// The pipeline's name; its run folder is `runs/<name>` unless told otherwise.
    pub name: String,
    /// The one seed from which all randomness derives.
    pub seed: u64,
    /// The preset whose constants stand where the file is silent.
    pub preset: Option<String>,
    /// The configuration file that this came from.
    pub source: PathBuf,
    /// Stages in an order in which each comes after what it refers to.
    pub stages: Vec<StagePlan>,
}

/// One stage of a [`Plan`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StagePlan {
    /// The stage's name, unique in the pipeline; also its folder's name.
    pub name: String,
    /// What the stage computes. All of it is in the stage's hash.
    pub task: Task,
    /// How it is computed on this machine. None of it is in the hash.
    pub execution: Execution,
}

/// Choices that may change between two runs of one stage without making its result another's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Execution {
    /// Storage type of weights and activations; master weights are `f32` at least.
    pub dtype: Dtype,
    /// Sequences per forward pass and rank; a batch is made of as many of these as it needs.
    pub micro_batch: usize,
    /// Recompute each block's activations in the backward pass instead of keeping them.
    pub checkpointing: bool,
    /// Updates between two snapshots.
    pub save_every: u64,
    /// Snapshots kept beside the best one.
    pub keep: usize,
}

/// Number formats of weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit floats.
    F32,
    /// bfloat16 with `f32` master weights.
    Bf16,
    /// 64-bit floats, for tests.
    F64,
}

/// Where an artefact comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum Source {
    /// `"stage:NAME"`: the final artefact of another stage.
    Stage {
        /// The stage's name.
        name: String,
    },
    /// `"path:PATH"` or a bare path: a file or folder on this machine, made absolute.
    Path {
        /// The absolute path.
        path: PathBuf,
    },
}

/// What a stage computes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Task {
    /// Converts foreign data to the Parquet schemas.
    Import(ImportPlan),
    /// Trains a byte-level BPE tokenizer.
    Tokenizer(TokenizerPlan),
    /// Trains a base model on text.
    Pretrain(PretrainPlan),
    /// Fine-tunes on demonstrations.
    Sft(SftPlan),
    /// Samples responses and lets a labeler rank them.
    Label(LabelPlan),
    /// Trains a reward model on comparisons.
    Reward(RewardPlan),
    /// Optimises a policy against a reward model.
    Ppo(Box<PpoPlan>),
}

/// See [`datasets::import()`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImportPlan {
    /// The format's name, as in the configuration.
    pub format: String,
    /// What is imported; `None` for generated data.
    pub path: Option<PathBuf>,
    /// Share of the conversations that is held out.
    pub heldout: f64,
    /// Messages a prompt keeps, counted from its end.
    pub prompt_turns: usize,
    /// Conversations to generate (generated data only).
    pub conversations: usize,
}

/// A byte-level BPE tokenizer to be trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenizerPlan {
    /// Texts it is trained on.
    pub data: Source,
    /// Tokens, special ones included.
    pub vocab_size: usize,
}

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

/// What to do with data that is longer than the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlong {
    /// Stop, naming the example.
    Error,
    /// Leave the example out, and count it.
    Drop,
    /// Cut tokens off its left side, and count it.
    Left,
}

/// Base pretraining.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PretrainPlan {
    /// Texts.
    pub data: Source,
    /// The tokenizer's folder.
    pub tokenizer: Source,
    /// The model to be made.
    pub model: ModelShape,
    /// Tokens per row.
    pub context: usize,
    /// The loop.
    pub train: TrainPlan,
}

/// Supervised fine-tuning on demonstrations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SftPlan {
    /// The model it starts from; its tokenizer comes along.
    pub model: Source,
    /// Shape of that model.
    pub shape: ModelShape,
    /// Demonstrations.
    pub data: Source,
    /// Tokens per dialogue at most.
    pub context: usize,
    /// What happens to longer ones.
    pub overlong: Overlong,
    /// The loop.
    pub train: TrainPlan,
}

/// Sampling of responses, ranked by a labeler.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LabelPlan {
    /// The model that responds.
    pub model: Source,
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
    /// The loop; a batch counts prompts.
    pub train: TrainPlan,
}

/// Proximal policy optimisation against one or more reward models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PpoPlan {
    /// Policy and reference start here.
    pub model: Source,
    /// Shape of the policy.
    pub shape: ModelShape,
    /// Reward models; their weighted sum is the score. The value model starts from the first.
    pub reward: Vec<RewardSource>,
    /// Shape of the value model.
    pub value_shape: ModelShape,
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
    /// Score of a response that made no EOS, in place of the reward model's; `None`: no rule.
    pub no_eos_score: Option<f64>,
    /// Decay of the exponential moving average of the policy; `None`: off.
    pub ema: Option<f64>,
    /// Pretraining gradients mixed into each update (PPO-ptx).
    pub ptx: Option<PtxPlan>,
    /// Optimizer of the policy.
    pub policy_optimizer: OptimizerPlan,
    /// Optimizer of the value model.
    pub value_optimizer: OptimizerPlan,
    /// Iterations between two evaluations on held-out prompts.
    pub eval_every: u64,
    /// Held-out prompts per evaluation, at most.
    pub eval_prompts: usize,
    /// A rule that is evaluated beside the score and used for nothing else.
    pub gold: Option<GoldRule>,
    /// Largest allowed gap between sampled and recomputed log-probabilities (nats).
    pub max_logprob_gap: f64,
    /// Updates with non-finite numbers that may be skipped before the run stops.
    pub nonfinite_skip: u64,
}

/// A reward model and its weight in the score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RewardSource {
    /// The reward model.
    pub model: Source,
    /// Its weight.
    pub weight: f64,
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
