//! The command line: what may be said, with a help text and an example for each command.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use recipe::request::{Compute, Sampling};

pub use crate::cli_model::{ConvertArgs, DiffArgs, MergeArgs, ModelCommand, ShowArgs};
use crate::commands::bench::BenchArgs;
use crate::commands::cancel::CancelArgs;
use crate::commands::conduct::ConductArgs;
use crate::commands::doctor::DoctorArgs;
use crate::commands::gpu_check::GpuCheckArgs;
use crate::commands::launch::LaunchArgs;
use crate::commands::plan::PlanArgs;
use crate::commands::retrieval::RetrievalArgs;
use crate::commands::status::StatusArgs;
use crate::commands::submit::SubmitArgs;
use crate::inspect::InspectArgs;
use crate::values::{
    Device, DtypeArg, QuantizeArg, at_least_one, finite, parse_override, probability, temperature,
};

/// Trains language models from human feedback: a base model, supervised fine-tuning, a reward model,
/// and PPO.
#[derive(Debug, Parser)]
#[command(
    name = "rlhf",
    version,
    arg_required_else_help = true,
    after_help = "\
Exit codes: 0 done, 1 the run failed, 2 the command or its configuration is wrong, 130 interrupted
(everything is saved). Data goes to standard output, everything else to standard error.

Start here:
  rlhf doctor
  rlhf plan experiments/tiny/pipeline.toml
  rlhf run experiments/tiny/pipeline.toml"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a pipeline's stages that are not done yet; an interrupted stage continues by itself.
    #[command(after_help = "\
Examples:
  rlhf run experiments/demo/pipeline.toml
  rlhf run experiments/demo/pipeline.toml --until sft --set stages.sft.optimizer.lr=1e-4
  rlhf run experiments/demo/pipeline.toml --restart ppo
  rlhf run runs/demo/plan.toml --only ppo --run-dir runs/demo

A plan.toml is what a run was made of, whatever has become of its configuration. With --only, others may run other
stages of the same run folder meanwhile. Ctrl-C saves a snapshot and ends; the same command continues from it.")]
    Run(RunArgs),
    /// Run a pipeline as several processes, one for each device, on one or several machines.
    #[command(after_help = "\
Examples:
  rlhf launch --ranks 2 -- run experiments/demo/pipeline.toml
  rlhf launch --ranks 8 --nodes 2 --node-rank 0 --master node1:29500 -- run big.toml
  srun --ntasks-per-node=1 rlhf launch --ranks 8 -- run big.toml

Every machine is told the same but for --node-rank, and sees the same run folder. Batches are of all processes
together, so the curve is that of one process; `sharding` says what each keeps a part of.")]
    Launch(LaunchArgs),
    /// Check a configuration and print every resolved number, or what it would take on a cluster; starts nothing.
    #[command(after_help = "\
Examples:
  rlhf plan experiments/demo/pipeline.toml --set stages.ppo.batch=128
  rlhf plan experiments/cluster/pipeline.toml --gpus 64 --gpu h100-80g

With --gpus: for each stage the least sharding that fits, memory of a rank, tokens/s and hours, by a cost model whose rates
are assumed (experiments/cluster/README.md says which), not measured.")]
    Plan(PlanArgs),
    Submit(SubmitArgs),
    Status(StatusArgs),
    Cancel(CancelArgs),
    Conduct(ConductArgs),
    /// Show curves and numbers of one or several runs.
    Inspect(InspectArgs),
    /// Sample from a language model.
    #[command(after_help = "\
Examples:
  rlhf generate --model runs/demo/sft/final --prompt 'How are you?' --max-new-tokens 32
  rlhf generate --model runs/demo/ppo/final --data prompts.jsonl --num-samples 4 > samples.jsonl
  rlhf generate --model runs/demo/sft/final --prompt 'How are you?' --beams 4

--data: JSON lines or Parquet with `input_ids`, `prompt` (raw text) or `messages` (through the chat
template). Out, a JSON line a sample: index, sample, output_ids, text, logprobs, finish_reason.")]
    Generate(GenerateArgs),
    /// Log-probabilities (language model) or rewards (reward model) of given texts.
    #[command(after_help = "\
Examples:
  rlhf score --model runs/demo/reward/final --data dialogues.jsonl > rewards.jsonl
  rlhf score --model runs/demo/sft/final --data texts.jsonl --quantize int4 > logprobs.jsonl

--data: JSON lines or Parquet with `input_ids`, `text`, `prompt` + `completion`, or `messages`.
Out, a JSON line a row: input_ids, and logprobs or reward and reward_normalized.")]
    Score(ScoreArgs),
    /// Talk to a model.
    #[command(after_help = "\
Example:
  rlhf chat --model runs/demo/ppo/final

One line is one message; Ctrl-D ends the conversation.")]
    Chat(ChatArgs),
    /// Compare base, SFT and PPO of a run on held-out prompts, and check that the text was kept.
    #[command(after_help = "\
Example:
  rlhf eval runs/demo --samples 512
  rlhf eval retrieval --model runs/demo/sft/final --lengths 256,1024

Also writes eval.json into the PPO stage's folder; `rlhf inspect` shows it.")]
    Eval(EvalArgs),
    /// The named sizes; models fetched, looked at, and written again.
    #[command(after_help = "\
Example:
  rlhf model sizes")]
    Model {
        /// What to show.
        #[command(subcommand)]
        command: ModelCommand,
    },
    /// Measure training, sampling and PPO on this machine's CPU, beside transformers and TRL.
    #[command(after_help = "\
Examples:
  make bench
  rlhf bench --repeats 1 --dtypes f32

Without --peers ours runs alone.")]
    Bench(BenchArgs),
    /// Compare a GPU with the CPU stage by stage, and time it on models of 124M to 1.3B.
    #[command(after_help = "\
Examples:
  rlhf gpu-check
  rlhf gpu-check --parts agree-f32,twice
  rlhf gpu-check --device cpu --no-peers

JSON lines as it goes, then tables; both are in gpu-check.json and gpu-check.md too. A part that fails does not stop
the others; one that the time does not allow is marked `not run`. Exit code 1 where no GPU can be used, a part fails or
a number differs.")]
    GpuCheck(GpuCheckArgs),
    Doctor(DoctorArgs),
}

/// A pipeline's file and what is said over it.
#[derive(Debug, Clone, Args)]
pub struct ConfigArgs {
    /// The pipeline's file.
    pub config: PathBuf,
    /// Set a key of the file, as in `--set stages.sft.batch=32`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = parse_override)]
    pub overrides: Vec<(String, String)>,
}

/// `rlhf run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// What to run.
    #[command(flatten)]
    pub source: ConfigArgs,
    /// Run this stage alone; what it needs must be done.
    #[arg(long, value_name = "STAGE", conflicts_with_all = ["kind", "until"])]
    pub only: Option<String>,
    /// Run the stages of this kind, and what they need that is not done yet.
    #[arg(long, value_name = "KIND", conflicts_with = "until")]
    pub kind: Option<String>,
    /// Run this stage and all that it needs.
    #[arg(long, value_name = "STAGE")]
    pub until: Option<String>,
    /// Move this stage and all that depend on it to STAGE.old-N, and run them anew; may be repeated.
    #[arg(long, value_name = "STAGE")]
    pub restart: Vec<String>,
    /// The run folder [default: runs/NAME, where NAME stands in the file].
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Where to compute; auto is the first GPU where there is one.
    #[arg(long, value_enum, default_value_t)]
    pub device: Device,
    /// The same bits in every run on one kind of GPU, too (a CPU's always are, at one number of threads): slower
    /// algorithms where the usual ones add in any order.
    #[arg(long)]
    pub deterministic: bool,
}

/// `rlhf generate`.
#[derive(Debug, Clone, Args)]
pub struct GenerateArgs {
    /// A language model's folder (Hugging Face format), or hub:ORG/NAME.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// A folder of adapters (in the format of peft) on that model.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Continue this raw text, and print plain text.
    #[arg(
        long,
        value_name = "TEXT",
        required_unless_present = "data",
        conflicts_with = "data"
    )]
    pub prompt: Option<String>,
    /// Continue every row of this file, and print JSON lines.
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Samples of each prompt.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    pub num_samples: usize,
    /// How tokens are chosen.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Every response has --max-new-tokens tokens.
    #[arg(long)]
    pub ignore_eos: bool,
    /// The likeliest responses by beam search with N beams, --num-samples of them, best first.
    #[arg(long, value_name = "N", value_parser = at_least_one,
          conflicts_with_all = ["temperature", "top_k", "top_p", "greedy", "seed"])]
    pub beams: Option<usize>,
    /// A response of n tokens scores the sum of its log-probabilities over n^P.
    #[arg(long, value_name = "P", default_value_t = 1.0, requires = "beams", allow_negative_numbers = true,
          value_parser = finite)]
    pub length_penalty: f64,
    /// How it is computed.
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// `rlhf score`.
#[derive(Debug, Clone, Args)]
pub struct ScoreArgs {
    /// A language model's or reward model's folder (Hugging Face format), or hub:ORG/NAME.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// A folder of adapters (in the format of peft) on that model.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// What to score.
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// How it is computed.
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// `rlhf chat`.
#[derive(Debug, Clone, Args)]
pub struct ChatArgs {
    /// A language model's folder (Hugging Face format), or hub:ORG/NAME.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// A folder of adapters (in the format of peft) on that model.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// A first message of role `system`.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// How tokens are chosen.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// How it is computed.
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// The evaluations of one model.
#[derive(Debug, Clone, Subcommand)]
pub enum EvalCommand {
    /// Hide a number in texts of several lengths, and see whether a model finds it (passkey retrieval).
    #[command(after_help = "\
Example:
  rlhf eval retrieval --model runs/demo/sft/final --lengths 256,1024 --at-least 0.9

Out, a JSON object: max_positions, samples, seed, and lengths with the accuracy over all depths and at each.
A model with rotary positions is read beyond its own longest sequence too. Exit code 1 where a length is below
--at-least.")]
    Retrieval(RetrievalArgs),
}

/// `rlhf eval`.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct EvalArgs {
    /// Another evaluation, of one model.
    #[command(subcommand)]
    pub command: Option<EvalCommand>,
    /// The run folder; its plan.toml says what was run.
    #[arg(value_name = "RUN", required = true)]
    pub run: Option<PathBuf>,
    /// Held-out prompts, one reply each.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_one)]
    pub samples: usize,
    /// Conversations to show.
    #[arg(long, value_name = "N", default_value_t = 6)]
    pub show: usize,
    /// From which all randomness derives.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// How it is computed.
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// How tokens are chosen.
#[derive(Debug, Clone, Args)]
pub struct SamplingArgs {
    /// Tokens of a response at most.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = at_least_one)]
    pub max_new_tokens: usize,
    /// Logits are divided by this.
    #[arg(long, value_name = "T", default_value_t = 1.0, value_parser = temperature)]
    pub temperature: f64,
    /// Only the K likeliest tokens.
    #[arg(long, value_name = "K", value_parser = at_least_one)]
    pub top_k: Option<usize>,
    /// Only the likeliest tokens that together have probability P.
    #[arg(long, value_name = "P", value_parser = probability)]
    pub top_p: Option<f64>,
    /// Always the likeliest token.
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p"])]
    pub greedy: bool,
    /// From which all randomness derives.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

impl SamplingArgs {
    /// As the worker reads it.
    pub fn resolve(&self, ignore_eos: bool) -> Sampling {
        Sampling {
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            greedy: self.greedy,
            ignore_eos,
            seed: self.seed,
        }
    }
}

/// How it is computed.
#[derive(Debug, Clone, Args)]
pub struct ComputeArgs {
    /// Where to compute; auto is the first GPU where there is one.
    #[arg(long, value_enum, default_value_t)]
    pub device: Device,
    /// Type of weights and activations.
    #[arg(long, value_enum, default_value_t)]
    pub dtype: DtypeArg,
    /// Keep the blocks' matrices in 8 or 4 bits a weight, to save memory; all else stays in --dtype.
    #[arg(long, value_enum)]
    pub quantize: Option<QuantizeArg>,
    /// Rows computed together.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = at_least_one)]
    pub batch: usize,
}

impl ComputeArgs {
    /// As the worker reads it.
    pub fn resolve(&self) -> Compute {
        let dtype = self.dtype.resolve();
        Compute {
            device: self.device.as_str().to_owned(),
            dtype,
            quantize: self.quantize.map(QuantizeArg::resolve),
            batch: self.batch,
        }
    }
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
