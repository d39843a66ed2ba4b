//! What the front asks of the worker beside training: requests that travel as JSON in an argument,
//! commands that travel as lines on the worker's standard input, and the answer to a probe.

use std::path::PathBuf;

use runtime::manifest::Manifest;
use serde::{Deserialize, Serialize};

use crate::plan::{Dtype, GoldRule, Quantization, SamplingPlan};
pub use crate::request_gpu::{DeviceReport, GpuRequest, SamplingReport};
pub use crate::request_retrieval::{DepthReport, LengthReport, RetrievalReport, RetrievalRequest};

/// How a request is computed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compute {
    /// `auto`, `cpu` or `cuda`.
    pub device: String,
    /// Type of weights and activations.
    pub dtype: Dtype,
    /// How the matrices are kept; `None`: in `dtype`.
    pub quantize: Option<Quantization>,
    /// Rows computed together; changes no result beyond rounding.
    pub batch: usize,
}

/// How tokens are chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Tokens of a response at most, EOS included.
    pub max_new_tokens: usize,
    /// Logits are divided by this.
    pub temperature: f64,
    /// Only the k likeliest tokens.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens that together have this probability.
    pub top_p: Option<f64>,
    /// Always the likeliest token.
    pub greedy: bool,
    /// EOS ends nothing.
    pub ignore_eos: bool,
    /// From which all randomness derives.
    pub seed: u64,
}

/// A beam search.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Beams {
    /// Beginnings kept side by side.
    pub beams: usize,
    /// The power of a response's length that its sum of log-probabilities is divided by.
    pub length_penalty: f64,
}

/// What is to be continued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum GenerateInput {
    /// One raw text; the answer is plain text.
    Prompt {
        /// The text; the tokenizer adds its special tokens, no template does.
        text: String,
    },
    /// Rows of `input_ids`, `prompt` or `messages`; the answer is JSON lines.
    Data {
        /// A `.jsonl` or `.parquet` file.
        path: PathBuf,
    },
}

/// `rlhf generate`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerateRequest {
    /// A language model's folder.
    pub model: PathBuf,
    /// A folder of adapters (peft) on that model.
    pub adapter: Option<PathBuf>,
    /// What is to be continued.
    pub input: GenerateInput,
    /// Samples of each prompt; adjacent in the output.
    pub num_samples: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// The likeliest responses, in place of samples.
    pub beams: Option<Beams>,
    /// How it is computed.
    pub compute: Compute,
}

/// `rlhf score`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScoreRequest {
    /// A language model's or a reward model's folder.
    pub model: PathBuf,
    /// A folder of adapters (peft) on that model.
    pub adapter: Option<PathBuf>,
    /// A `.jsonl` or `.parquet` file.
    pub data: PathBuf,
    /// How it is computed.
    pub compute: Compute,
}

/// `rlhf model convert` and `rlhf model merge`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConvertRequest {
    /// The folder that is read.
    pub model: PathBuf,
    /// A folder of adapters (peft) that are merged into it.
    pub adapter: Option<PathBuf>,
    /// The folder that is made.
    pub out: PathBuf,
    /// Type of the weights; `None`: as they are stored.
    pub dtype: Option<Dtype>,
    /// Bytes of a file of weights at most.
    pub shard_bytes: u64,
}

/// `rlhf model show`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShowRequest {
    /// A folder, or a file of tensors.
    pub model: PathBuf,
}

/// The answer to a [`ShowRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShowReport {
    /// All tensors, sorted by name.
    pub tensors: Vec<ShownTensor>,
    /// Tokens, the ids that end a reply and the padding id; `None` where there is no tokenizer.
    pub tokenizer: Option<(usize, Vec<u32>, u32)>,
    /// What the folder says of itself, where it does.
    pub manifest: Option<Manifest>,
}

/// A stored tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownTensor {
    /// The name that it is stored under.
    pub name: String,
    /// Its size along each dimension.
    pub dims: Vec<i64>,
    /// Its type, as the format names it.
    pub dtype: String,
    /// The name of its file.
    pub file: String,
}

/// `rlhf model diff`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffRequest {
    /// A folder, or a file of tensors.
    pub one: PathBuf,
    /// Another one.
    pub other: PathBuf,
}

/// The answer to a [`DiffRequest`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DiffReport {
    /// Keys of `config.json` whose values differ.
    pub config: Vec<String>,
    /// Whether both have the same tokenizer, or none.
    pub same_tokenizer: bool,
    /// Tensors that the other lacks.
    pub only_in_one: Vec<String>,
    /// Tensors that the first lacks.
    pub only_in_other: Vec<String>,
    /// Tensors of different sizes.
    pub shapes: Vec<(String, Vec<i64>, Vec<i64>)>,
    /// Tensors with different numbers.
    pub values: Vec<ValueDiff>,
    /// How many tensors hold the same numbers.
    pub equal: usize,
}

/// How far two tensors are apart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ValueDiff {
    /// Their name.
    pub name: String,
    /// The largest difference of two numbers.
    pub max_abs: f64,
    /// The norm of the difference over that of the first.
    pub relative: f64,
}

/// `rlhf chat`. The user's lines arrive as [`Command::Say`]; the worker answers each with one
/// `Event::Output`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatRequest {
    /// A language model's folder.
    pub model: PathBuf,
    /// A folder of adapters (peft) on that model.
    pub adapter: Option<PathBuf>,
    /// A first message of role `system`.
    pub system: Option<String>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// How it is computed.
    pub compute: Compute,
}

/// `rlhf eval`: the checkpoints of a PPO stage's lineage, compared on held-out prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalRequest {
    /// The base model's folder: it judges fluency.
    pub base: PathBuf,
    /// The SFT model's folder: KL is measured to it.
    pub reference: PathBuf,
    /// The PPO policy's folder.
    pub policy: PathBuf,
    /// Where held-out prompts are (a file, or a folder with splits).
    pub prompts: PathBuf,
    /// Where held-out pretraining text is.
    pub text: Option<PathBuf>,
    /// Where its tokens may be kept.
    pub cache: PathBuf,
    /// Prompts, one sample each.
    pub samples: usize,
    /// From which all randomness derives.
    pub seed: u64,
    /// Lengths and temperature.
    pub sampling: SamplingPlan,
    /// The gold rule.
    pub gold: Option<GoldRule>,
    /// Conversations to show.
    pub show: usize,
    /// How it is computed.
    pub compute: Compute,
}

/// The answer to an [`EvalRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalReport {
    /// The three models.
    pub models: EvalModels,
    /// Some prompts with the replies to them.
    pub conversations: Vec<Conversation>,
}

/// A report of each model of a PPO stage's lineage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalModels {
    /// The pretrained model.
    pub base: ModelReport,
    /// The reference of PPO.
    pub sft: ModelReport,
    /// The policy.
    pub ppo: ModelReport,
}

/// What was measured of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelReport {
    /// Replies.
    pub samples: usize,
    /// Mean gold score.
    pub gold: Option<f64>,
    /// Standard error of that mean.
    pub gold_se: Option<f64>,
    /// Mean over replies of the sum of `ln pi - ln pi_ref`, nats.
    pub kl: f64,
    /// Share of replies that end themselves.
    pub eos_rate: f64,
    /// Mean tokens of a reply.
    pub length: f64,
    /// Different bigrams among all bigrams of the replies, in groups of 512.
    pub distinct_2: f64,
    /// Share of trigrams that the same reply had before.
    pub repeated_trigrams: f64,
    /// Share of the most frequent reply.
    pub most_frequent_share: f64,
    /// The base model's perplexity of the replies, given their prompts.
    pub base_perplexity: f64,
    /// How often the base model finds a reply likelier after its own prompt than after another one:
    /// each reply is tried with the prompts of the next few replies.
    pub true_prompt_preferred: f64,
    /// Loss on held-out pretraining text, nats a token; `None` where there is no such text.
    pub pretraining_loss: Option<f64>,
}

/// A prompt and two replies to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversation {
    /// The user's last message.
    pub prompt: String,
    /// The SFT model's reply.
    pub sft: String,
    /// The policy's reply.
    pub ppo: String,
}

/// A line on the worker's standard input. The end of that input means that the front is dead, and
/// the worker ends at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `stop`: save a snapshot and end.
    Stop,
    /// `say "TEXT"` (a JSON string): the user's next message in a chat.
    Say(String),
    /// `end`: nothing more will be said; answer what was, then end.
    End,
}

impl Command {
    /// The line, without its line end.
    pub fn to_line(&self) -> String {
        match self {
            Self::Stop => "stop".to_owned(),
            Self::Say(text) => format!("say {}", serde_json::Value::from(text.as_str())),
            Self::End => "end".to_owned(),
        }
    }

    /// Reads a line; `None` if it is no command.
    pub fn parse(line: &str) -> Option<Self> {
        let line = line.trim_end_matches(['\r', '\n']);
        match line {
            "stop" => Some(Self::Stop),
            "end" => Some(Self::End),
            _ => serde_json::from_str(line.strip_prefix("say ")?)
                .ok()
                .map(Self::Say),
        }
    }
}

/// What the worker finds on its machine: the one output line of `rlhf-worker probe`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// libtorch's version, as it says itself.
    pub libtorch_version: String,
    /// The folder from which libtorch was loaded.
    pub libtorch_dir: PathBuf,
    /// Threads that libtorch computes with on the CPU.
    pub num_threads: usize,
    /// GPUs that can be used.
    pub gpus: Vec<GpuReport>,
    /// Why CUDA cannot be used; `None` if it can.
    pub cuda_problem: Option<String>,
    /// There is a sign of a GPU (a driver, a device node), so that an unusable CUDA is a fault.
    pub gpu_expected: bool,
    /// Why `librlhf_cuda.so` is not loaded; `None` if it is, or if no GPU needs it.
    pub extension_problem: Option<String>,
}

/// A GPU that can be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuReport {
    /// Its name.
    pub name: String,
    /// Its compute capability, as `9.0`.
    pub capability: String,
    /// Its memory.
    pub memory_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_survive_the_journey_on_one_line() {
        let said = Command::Say("two\nlines, \"quoted\"".into());
        assert!(!said.to_line().contains('\n'));
        for command in [Command::Stop, Command::End, said] {
            assert_eq!(
                Command::parse(&format!("{}\n", command.to_line())),
                Some(command)
            );
        }
        assert_eq!(Command::parse("say hello"), None);
        assert_eq!(Command::parse("sto"), None);
    }
}
