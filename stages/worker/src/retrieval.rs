//! `rlhf eval retrieval`: a number hidden in texts of several lengths.

use anyhow::{Result, bail};
use datasets::Tokenizer;
use eval::Retrieval;
use model::{Head, Model};
use recipe::request::{RetrievalReport, RetrievalRequest};
use recipe::shape::ModelShape;
use runtime::events::{Event, emit};

use crate::compute;

/// Prints one JSON object: the accuracy at every length and depth.
pub fn run(request: &RetrievalRequest) -> Result<()> {
    let tokenizer = Tokenizer::load(&request.model)?;
    let model = compute::load(&request.model, None, &request.compute)?;
    let folder = request.model.display();
    if model.head != Head::Token {
        bail!("{folder}: is a reward model\n  hint: give a language model's folder");
    }
    let max_positions = model.shape.max_positions;
    let model = readable_up_to(model, longest(request))?;
    let retrieval = Retrieval {
        tokenizer: &tokenizer,
        depths: request.depths,
        samples: request.samples,
        seed: request.seed,
        max_batch: request.compute.batch,
    };
    let mut lengths = Vec::with_capacity(request.lengths.len());
    for &length in &request.lengths {
        let report = retrieval.at(&model, length)?;
        emit(&Event::Note {
            text: format!("{length} tokens: {:.1} % found", 100.0 * report.accuracy),
        });
        lengths.push(report);
    }
    let report = RetrievalReport {
        max_positions,
        samples: request.samples,
        seed: request.seed,
        lengths,
    };
    let line = serde_json::to_string(&report)?;
    emit(&Event::Output { line });
    Ok(())
}

fn longest(request: &RetrievalRequest) -> usize {
    request.lengths.iter().copied().max().unwrap_or_default()
}

/// Rotary angles go on beyond the longest sequence, so that it can be seen where a model fails; a table of
/// positions does not.
fn readable_up_to(model: Model, length: usize) -> Result<Model> {
    let max_positions = model.shape.max_positions;
    if length <= max_positions {
        return Ok(model);
    }
    if model.shape.rotary().is_none() {
        bail!(
            "a text of {length} tokens is longer than the model's {max_positions} positions, which are not rotary\n  \
             hint: ask for --lengths of at most {max_positions}"
        );
    }
    let shape = ModelShape {
        max_positions: length,
        ..model.shape.clone()
    };
    Ok(model.with_positions(&shape))
}
