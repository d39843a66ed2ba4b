//! `rlhf-worker`: the one executable that links libtorch. `rlhf` starts it, for one stage or one
//! request, and reads its events; nobody types its commands.
//!
//! In: a run folder and a stage's name, or a request as JSON. Out: events as JSON lines on standard
//! output, logs on standard error.
//!
//! *Architecture invariant*: it decides nothing about a pipeline (what is done, what comes next); it
//! ends when its front does.
//!
//! Reading order: this file, `stage`, then a file per request.

mod chat;
mod compute;
mod control;
mod convert;
mod evaluate;
mod generate;
mod gpu_check;
mod inspect;
mod probe;
mod retrieval;
mod rows;
mod score;
mod stage;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use runtime::events::{Event, LOST_OTHERS, emit};
use runtime::logging::in_words;
use trainer::Patience;

/// Started by `rlhf`; use that instead.
#[derive(Debug, Parser)]
#[command(name = "rlhf-worker", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one stage of the plan in a run folder.
    Stage {
        #[arg(long)]
        run_dir: PathBuf,
        #[arg(long)]
        stage: String,
        #[arg(long, default_value = "auto")]
        device: String,
        #[arg(long)]
        deterministic: bool,
        /// Of what the stage is made: ranks must agree.
        #[arg(long, default_value = "")]
        hash: String,
        #[arg(long, default_value_t = 300)]
        join_timeout: u64,
        #[arg(long, default_value_t = 1800)]
        timeout: u64,
    },
    /// Sample.
    Generate { request: String },
    /// Log-probabilities or rewards.
    Score { request: String },
    /// Write a model again, in another type or other files.
    Convert { request: String },
    /// List what lies in a model's files.
    Show { request: String },
    /// Compare the files of two models.
    Diff { request: String },
    /// Answer the lines that arrive on standard input.
    Chat { request: String },
    /// Compare a pipeline's checkpoints on held-out prompts.
    Eval { request: String },
    /// Hide a number in long texts, and ask for it.
    Retrieval { request: String },
    /// Say what libtorch and devices there are.
    Probe,
    /// Measure a device, make a model, or time sampling.
    GpuCheck { request: String },
}

fn main() -> ExitCode {
    runtime::logging::init(None, false);
    match run(&Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            let error = in_words(error.as_ref());
            tracing::error!("{error}");
            emit(&Event::Failed { error });
            if trainer::ranks::lost_others() {
                ExitCode::from(LOST_OTHERS)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// In the environment, which kernels run, for comparisons: `plain` for libtorch's operators in place of ours (not
/// of products with codes, which have no other form), `emulated` for those of the GPU on the CPU, very slowly.
const KERNELS: &str = "RLHF_KERNELS";

fn choose_kernels() -> anyhow::Result<()> {
    let Ok(value) = std::env::var(KERNELS) else {
        return Ok(());
    };
    match value.as_str() {
        "plain" => torch_ext::use_plain_operators(),
        "emulated" => torch_ext::use_emulated_kernels()?,
        _ => bail!("{KERNELS}={value}: expected plain or emulated\n  hint: `unset {KERNELS}`"),
    }
    tracing::info!("{KERNELS}={value}");
    Ok(())
}

fn run(command: &Command) -> anyhow::Result<ExitCode> {
    choose_kernels()?;
    runtime::interrupt::install().context("cannot listen for signals")?;
    let lines = control::listen();
    match command {
        Command::Stage {
            run_dir,
            stage,
            device,
            deterministic,
            hash,
            join_timeout,
            timeout,
        } => {
            let patience = Patience {
                join: Duration::from_secs(*join_timeout),
                operation: Duration::from_secs(*timeout),
            };
            let launch = stage::Launch {
                device,
                deterministic: *deterministic,
                hash,
                patience,
            };
            return stage::run(run_dir, stage, &launch);
        }
        Command::Generate { request } => generate::run(&parse(request)?)?,
        Command::Score { request } => score::run(&parse(request)?)?,
        Command::Convert { request } => convert::run(&parse(request)?)?,
        Command::Show { request } => inspect::show(&parse(request)?)?,
        Command::Diff { request } => inspect::diff(&parse(request)?)?,
        Command::Chat { request } => chat::run(&parse(request)?, &lines)?,
        Command::Eval { request } => evaluate::run(&parse(request)?)?,
        Command::Retrieval { request } => retrieval::run(&parse(request)?)?,
        Command::Probe => probe::run()?,
        Command::GpuCheck { request } => gpu_check::run(&parse(request)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn parse<T: serde::de::DeserializeOwned>(request: &str) -> anyhow::Result<T> {
    serde_json::from_str(request).context("rlhf and rlhf-worker are of different versions")
}
