//! `rlhf eval retrieval`: whether a model finds a number hidden in long texts.

use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::Args;
use recipe::request::{RetrievalReport, RetrievalRequest};

use super::{ask, print, text_model};
use crate::cli::ComputeArgs;
use crate::failure::{Failure, Outcome};
use crate::values::{at_least_one, probability};

/// `rlhf eval retrieval`.
#[derive(Debug, Clone, Args)]
pub struct RetrievalArgs {
    /// A language model's folder (Hugging Face format), or hub:ORG/NAME.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Tokens of a text and its answer at most, separated by commas.
    #[arg(long, value_name = "N,...", required = true, value_delimiter = ',', value_parser = at_least_one)]
    pub lengths: Vec<usize>,
    /// Places of the number, evenly spaced from the start of the text to its end.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least_one)]
    pub depths: usize,
    /// Numbers hidden at each place.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = at_least_one)]
    pub samples: usize,
    /// The share of the numbers to be found at every length.
    #[arg(long, value_name = "SHARE", value_parser = probability)]
    pub at_least: Option<f64>,
    /// From which the numbers derive.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// How it is computed.
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// Puts the request to the worker, prints its report, and checks it against `--at-least`.
///
/// # Errors
/// A model that is not there, no libtorch, what the worker says, or a length at which too few are found.
pub fn run(args: &RetrievalArgs) -> Outcome {
    let request = RetrievalRequest {
        model: text_model(&args.model, None)?,
        lengths: args.lengths.clone(),
        depths: args.depths,
        samples: args.samples,
        seed: args.seed,
        compute: args.compute.resolve(),
    };
    let line = ask("retrieval", &request)?;
    let report: RetrievalReport = serde_json::from_str(&line)
        .context("the worker's answer")
        .map_err(Failure::Run)?;
    let _ = print(&line);
    let least = args.at_least.unwrap_or(0.0);
    let failed = report.lengths.iter().find(|it| it.accuracy < least);
    match failed {
        None => Ok(()),
        Some(failed) => Err(Failure::Run(anyhow!(
            "of the numbers in {} tokens {:.1} % are found, less than --at-least {least}\n  \
             hint: lengthen the model with a stage that continues it: rope = {{ scaling = \"yarn\", factor = 2 }}",
            failed.length,
            100.0 * failed.accuracy
        ))),
    }
}
