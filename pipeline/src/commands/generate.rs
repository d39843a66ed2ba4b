//! `rlhf generate`: samples from a language model.

use std::path::PathBuf;

use anyhow::anyhow;
use recipe::request::{Beams, GenerateInput, GenerateRequest};

use super::{check_data, relay, text_model};
use crate::cli::GenerateArgs;
use crate::failure::{Failure, Outcome};

/// Checks the arguments and puts the request to the worker.
///
/// # Errors
/// A model or file that is not there, no libtorch, or what the worker says.
pub fn run(args: &GenerateArgs) -> Outcome {
    let model = text_model(&args.model, args.adapter.as_deref())?;
    let input = match &args.prompt {
        Some(text) => GenerateInput::Prompt { text: text.clone() },
        None => GenerateInput::Data { path: data(args)? },
    };
    let request = GenerateRequest {
        model,
        adapter: args.adapter.clone(),
        input,
        num_samples: args.num_samples,
        sampling: args.sampling.resolve(args.ignore_eos),
        beams: beams(args)?,
        compute: args.compute.resolve(),
    };
    relay("generate", &request)
}

fn beams(args: &GenerateArgs) -> Outcome<Option<Beams>> {
    let Some(beams) = args.beams else {
        return Ok(None);
    };
    if args.num_samples > beams {
        return Err(Failure::Usage(anyhow!(
            "--num-samples is {}, and {beams} beams give at most {beams}\n  hint: --beams {}",
            args.num_samples,
            args.num_samples
        )));
    }
    Ok(Some(Beams {
        beams,
        length_penalty: args.length_penalty,
    }))
}

/// The command line has either a prompt or a file.
fn data(args: &GenerateArgs) -> Outcome<PathBuf> {
    let path = args.data.clone().unwrap_or_default();
    check_data(&path)?;
    Ok(path)
}
