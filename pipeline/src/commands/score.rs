//! `rlhf score`: log-probabilities or rewards of given texts.

use recipe::request::ScoreRequest;

use super::{check_data, relay, text_model};
use crate::cli::ScoreArgs;
use crate::failure::Outcome;

/// Checks the arguments and puts the request to the worker.
///
/// # Errors
/// A model or file that is not there, no libtorch, or what the worker says.
pub fn run(args: &ScoreArgs) -> Outcome {
    let model = text_model(&args.model, args.adapter.as_deref())?;
    check_data(&args.data)?;
    let request = ScoreRequest {
        model,
        adapter: args.adapter.clone(),
        data: args.data.clone(),
        compute: args.compute.resolve(),
    };
    relay("score", &request)
}
