//! What will be done: every stage with every number resolved. Saved as `plan.toml` with the run.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use crate::job_plan::{
    ClusterPlan, Container, ContainerRuntime, JobSize, KubernetesJob, KubernetesPlan, SlurmJob,
};
pub use crate::lora::LoraPlan;
pub use crate::plan_sampled::{
    EosRule, GoldRule, KlPlan, LabelPlan, Labeler, PpoLora, PpoPlan, PtxPlan, RewardSource,
    SamplingPlan,
};
pub use crate::plan_supervised::{
    Duration, MixPlan, OptimizerPlan, PretrainPlan, RewardPlan, Schedule, SftPlan, TrainPlan,
};
pub use datasets::{Objective, Overlong};

/// Under this key a portable config has the hash of an input's content, in place of its path.
pub const CONTENT_KEY: &str = "content";

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
    /// How stages become jobs of a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterPlan>,
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
    /// Sequences decoded together, on each rank; 1 where nothing is sampled.
    pub sample_batch: usize,
    /// Recompute each block's activations in the backward pass instead of keeping them.
    pub checkpointing: bool,
    /// What each of several ranks keeps a part of.
    #[serde(default)]
    pub sharding: Sharding,
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

/// What each rank of a training stage keeps a part of; all else is on every rank (Rajbhandari et al. 2020, `ZeRO`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sharding {
    /// Nothing: gradients are summed over ranks (`DistributedDataParallel`).
    #[default]
    None,
    /// Master weights and moments (stage 1).
    Optimizer,
    /// These and gradients (stage 2).
    Gradients,
    /// These and the weights themselves (stage 3), also those of models that only score: a block's are gathered for its
    /// pass. A policy that samples is gathered as a whole.
    Parameters,
}

impl Sharding {
    /// All, from the least on.
    pub const ALL: [Self; 4] = [
        Self::None,
        Self::Optimizer,
        Self::Gradients,
        Self::Parameters,
    ];

    /// As a configuration says it.
    pub fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Optimizer => "optimizer",
            Self::Gradients => "gradients",
            Self::Parameters => "parameters",
        }
    }
}

/// How the matrices of a model that is not trained are kept: fewer bits a weight, made of the folder's
/// numbers when they are read. Embeddings, norms, biases and the head stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quantization {
    /// 8 bits, and a scale for each output.
    Int8,
    /// 4 bits, and scale and minimum for each group of [`Quantization::GROUP`] along the inputs.
    Int4,
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
    /// `"hub:ORG/NAME@REVISION"`: a model on the Hugging Face hub, at the commit that was found.
    Hub {
        /// `ORG/NAME`.
        repo: String,
        /// The branch, tag or commit that was asked for.
        revision: String,
        /// The commit: 40 hexadecimal digits.
        commit: String,
        /// Where its files are on this machine.
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
    /// Conversations or documents to generate (generated data only).
    pub conversations: usize,
    /// Sentences of filler in a document at most; `None` for all formats but `passkey`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sentences: Option<usize>,
}

/// A byte-level BPE tokenizer to be trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenizerPlan {
    /// Texts it is trained on.
    pub data: Source,
    /// Tokens, special ones included.
    pub vocab_size: usize,
    /// Special tokens beside the usual ones: what the objectives of pretraining need.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub special_tokens: Vec<String>,
}
