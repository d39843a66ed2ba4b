//! `rlhf bench`: this machine's speed, ours and that of what people use today, alternately.
//!
//! Ours is measured on the commands that users type (`rlhf run`, `rlhf generate`), theirs by the scripts in
//! `experiments/benchmarks/peers`, which load the same model folders. Compute is timed after a warm-up on both
//! sides; the start of a process is a row of its own.

mod ours;
mod report;
mod theirs;

use std::path::PathBuf;

use clap::Args;

use super::measured::replace_folder;
use crate::failure::{Failure, Outcome};
use crate::values::{DtypeArg, at_least_one};
use ours::Ours;
use report::Report;
use theirs::Peers;

/// Prompts of the sampling rows.
const PROMPTS: usize = 1024;
/// Tokens of each prompt, of each response, and of each training row.
const PROMPT_TOKENS: usize = 32;
const NEW_TOKENS: usize = 64;
const ROW_TOKENS: usize = 128;
/// Rows of an update, episodes of an iteration.
const TRAIN_BATCH: usize = 16;
const PPO_BATCH: usize = 64;
/// Rows that are decoded together: ours, and those of each of their tries.
const SAMPLE_BATCH: usize = 256;
const PEER_SAMPLE_BATCHES: [usize; 2] = [64, 256];

/// `rlhf bench`.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// Where its runs go; what an earlier benchmark left there is replaced.
    #[arg(long, value_name = "DIR", default_value = "runs/benchmarks")]
    pub run_dir: PathBuf,
    /// The environment of the other side (see `make bench`); without it ours runs alone.
    #[arg(long, value_name = "DIR")]
    pub peers: Option<PathBuf>,
    /// How often each side runs.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = at_least_one)]
    pub repeats: usize,
    /// Types of weights, separated by commas: each is compared with itself.
    #[arg(
        long,
        value_name = "DTYPE,...",
        default_value = "f32,bf16",
        value_delimiter = ','
    )]
    pub dtypes: Vec<DtypeArg>,
    /// Write results as cpu.json and cpu.md into this folder.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    Train,
    SampleGpt2,
    SampleLlama,
    Ppo,
    Start,
}

impl Work {
    const ALL: [Self; 5] = [
        Self::Train,
        Self::SampleGpt2,
        Self::SampleLlama,
        Self::Ppo,
        Self::Start,
    ];

    fn words(self) -> String {
        match self {
            Self::Train => format!("train, {TRAIN_BATCH} x {ROW_TOKENS}"),
            Self::SampleGpt2 => {
                format!("sample {PROMPTS}, {PROMPT_TOKENS} + {NEW_TOKENS}, GPT-2 shape")
            }
            Self::SampleLlama => {
                format!("sample {PROMPTS}, {PROMPT_TOKENS} + {NEW_TOKENS}, Llama shape")
            }
            Self::Ppo => format!("PPO, {PPO_BATCH} episodes, {PROMPT_TOKENS} + {NEW_TOKENS}"),
            Self::Start => "start to first step".to_owned(),
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Train | Self::SampleGpt2 | Self::SampleLlama => "tokens/s",
            Self::Ppo => "response tokens/s",
            Self::Start => "s",
        }
    }
}

/// One side's numbers for one kind of work in one turn; `start` in seconds, all else a second.
#[derive(Debug, Clone, PartialEq)]
struct Measurement {
    work: Work,
    dtype: &'static str,
    turn: usize,
    /// Who; ours is [`OURS`].
    side: String,
    values: Vec<f64>,
    /// Model FLOPs over the measured peak of the machine, where it is ours.
    utilisation: Option<f64>,
}

const OURS: &str = "rlhf";

/// Runs both sides in turn, and prints and writes the table.
///
/// # Errors
/// A configuration that is not there, or a run of ours that fails, behind what was measured before. A script of the
/// other side that fails is left out of the table, which says so.
pub fn run(args: &BenchArgs) -> Outcome {
    let config = super::default_file(None, "experiments/benchmarks/pipeline.toml")?;
    let peers = args
        .peers
        .as_deref()
        .map(|environment| Peers::open(environment, &config))
        .transpose()?;
    if peers.is_none() {
        eprintln!("the other side is not measured: no --peers");
    }
    replace_folder(&args.run_dir, "benchmark")?;
    let mut report = Report::default();
    for turn in 0..args.repeats {
        for dtype in args.dtypes.iter().map(|dtype| dtype.word()) {
            eprintln!("turn {} of {}, {dtype}: rlhf", turn + 1, args.repeats);
            let ours = Ours {
                config: &config,
                run_dir: args.run_dir.join(format!("{dtype}-{}", turn + 1)),
                dtype,
                turn,
            };
            match ours.measure() {
                Ok(measurements) => report.extend(measurements),
                Err(error) => {
                    // What was measured so far is kept.
                    conclude(args, &report)?;
                    return Err(Failure::Run(error));
                }
            }
            if let Some(peers) = &peers {
                peers.measure(&ours.run_dir, dtype, turn, &mut report);
            }
        }
    }
    conclude(args, &report)
}

fn conclude(args: &BenchArgs, report: &Report) -> Outcome {
    let table = report.table();
    print!("{table}");
    if let Some(out) = &args.out {
        report.write(out, &table).map_err(Failure::Run)?;
    }
    Ok(())
}
