//! `rlhf model`: its commands, with a help text and an example for each.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::commands::pull::PullArgs;
use crate::values::{DtypeArg, byte_size};

/// The commands on models.
#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// List the named sizes (`model = { size = "…" }`) with their shapes and exact parameter counts.
    #[command(after_help = "\
Example:
  rlhf model sizes | grep pythia")]
    Sizes,
    /// Fetch a model from the Hugging Face hub; what is there already is not fetched again.
    #[command(after_help = "\
Examples:
  rlhf model pull HuggingFaceTB/SmolLM2-135M
  rlhf model pull HuggingFaceTB/SmolLM2-135M --revision v1.0 --out smollm2

Prints the folder: that of the cache which huggingface_hub uses too, or --out. `hub:ORG/NAME` (or
hub:ORG/NAME@REVISION) stands for a model's folder in a pipeline's file and wherever a command takes a
model. Variables, as everywhere: HF_ENDPOINT, HF_TOKEN (for private and gated models), HF_HOME,
HF_HUB_CACHE, HF_HUB_OFFLINE (the cache alone is used), HF_HUB_DOWNLOAD_TIMEOUT and
HF_HUB_ETAG_TIMEOUT (seconds of silence).")]
    Pull(PullArgs),
    /// Read a model folder and write it again: in another type, or in files of another size.
    #[command(after_help = "\
Example:
  rlhf model convert --model runs/demo/ppo/final --out demo-bf16 --dtype bf16 --shard-size 2GB
  rlhf model convert --model SmolLM2-135M-Instruct.Q4_1.gguf --out smollm2")]
    Convert(ConvertArgs),
    /// Add adapters (in the format of peft) into the weights that they stand on, and write the model.
    #[command(after_help = "\
Example:
  rlhf model merge --model runs/demo/sft/final --adapter runs/demo/ppo/final/adapter --out merged")]
    Merge(MergeArgs),
    /// Say what a model is: family, shape, files, tokenizer, what it was made from.
    #[command(after_help = "\
Example:
  rlhf model show runs/demo/ppo/final --tensors")]
    Show(ShowArgs),
    /// Compare two models: configuration, tokenizer, and every number.
    #[command(after_help = "\
Example:
  rlhf model diff runs/demo/sft/final runs/demo/ppo/final

Exit code 1 if they differ.")]
    Diff(DiffArgs),
}

/// `rlhf model show`.
#[derive(Debug, Clone, Args)]
pub struct ShowArgs {
    /// A model's folder, a file of weights (.safetensors, .bin, .gguf), or hub:ORG/NAME.
    pub model: PathBuf,
    /// Every tensor with its type and shape.
    #[arg(long)]
    pub tensors: bool,
}

/// `rlhf model diff`.
#[derive(Debug, Clone, Args)]
pub struct DiffArgs {
    /// A model's folder, a file of weights, or hub:ORG/NAME.
    pub one: PathBuf,
    /// Another one.
    pub other: PathBuf,
}

/// `rlhf model convert`.
#[derive(Debug, Clone, Args)]
pub struct ConvertArgs {
    /// A language model's or reward model's folder (Hugging Face format), hub:ORG/NAME, or a .gguf file
    /// of the Llama family.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// The folder to make.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Type of the weights; as they are stored where it is not given (f32 for quantized ones).
    #[arg(long, value_enum)]
    pub dtype: Option<DtypeArg>,
    /// Size of a file of weights at most, in bytes, KB, MB or GB.
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = byte_size)]
    pub shard_size: u64,
}

/// `rlhf model merge`.
#[derive(Debug, Clone, Args)]
pub struct MergeArgs {
    /// The folder of the model that the adapters were trained on (Hugging Face format), or hub:ORG/NAME.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// The folder of the adapters.
    #[arg(long, value_name = "DIR")]
    pub adapter: PathBuf,
    /// The folder to make.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Type of the weights; as the model's are stored where it is not given.
    #[arg(long, value_enum)]
    pub dtype: Option<DtypeArg>,
    /// Size of a file of weights at most, in bytes, KB, MB or GB.
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = byte_size)]
    pub shard_size: u64,
}
