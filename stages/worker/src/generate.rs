//! `rlhf generate`.

use anyhow::Result;
use datasets::Tokenizer;
use generation::{Request, Sample, SamplingOptions};
use recipe::request::{GenerateInput, GenerateRequest, Sampling};
use runtime::events::{Event, emit};
use serde::Serialize;

use crate::{compute, rows};

#[derive(Serialize)]
struct Line<'a> {
    index: usize,
    sample: usize,
    output_ids: &'a [u32],
    text: String,
    logprobs: &'a [f64],
    finish_reason: &'static str,
}

/// Continues every prompt; prints JSON lines for a file, plain text for one prompt.
pub fn run(request: &GenerateRequest) -> Result<()> {
    let model = compute::load(&request.model, request.adapter.as_deref(), &request.compute)?;
    let tokenizer = Tokenizer::load(&request.model)?;
    let prompts = match &request.input {
        GenerateInput::Prompt { text } => vec![tokenizer.encode_with_special(text)?],
        GenerateInput::Data { path } => rows::read(path)?
            .iter()
            .map(|row| row.ids_to_continue(&tokenizer))
            .collect::<Result<_>>()?,
    };
    let options = options(&request.sampling, &tokenizer, request.compute.batch)?;
    let copies = request.num_samples as u64;
    let requests: Vec<Request> = (0..)
        .zip(&prompts)
        .flat_map(|(index, ids)| {
            let episode = move |copy| index * copies + copy;
            (0..copies).map(move |c| Request {
                prompt_ids: ids.clone(),
                episode: episode(c),
            })
        })
        .collect();
    let samples = generation::generate(&model, &requests, &options)?;
    for (index, of_prompt) in samples.chunks(request.num_samples.max(1)).enumerate() {
        for (sample_index, sample) in of_prompt.iter().enumerate() {
            let text = tokenizer.decode(&sample.output_ids)?;
            let line = match &request.input {
                GenerateInput::Prompt { .. } => text,
                GenerateInput::Data { .. } => json_line(index, sample_index, sample, text)?,
            };
            emit(&Event::Output { line });
        }
    }
    Ok(())
}

fn json_line(index: usize, sample_index: usize, sample: &Sample, text: String) -> Result<String> {
    Ok(serde_json::to_string(&Line {
        index,
        sample: sample_index,
        output_ids: &sample.output_ids,
        text,
        logprobs: &sample.logprobs,
        finish_reason: sample.finish.as_str(),
    })?)
}

/// The options that a command line asks for.
pub fn options(
    sampling: &Sampling,
    tokenizer: &Tokenizer,
    max_batch: usize,
) -> Result<SamplingOptions> {
    if tokenizer.stop_ids().is_empty() && !sampling.ignore_eos {
        tokenizer.require_eos()?;
    }
    Ok(SamplingOptions {
        max_new_tokens: sampling.max_new_tokens,
        temperature: sampling.temperature,
        top_k: sampling.top_k,
        top_p: sampling.top_p,
        greedy: sampling.greedy,
        ignore_eos: sampling.ignore_eos,
        seed: sampling.seed,
        purpose: "generate",
        eos_ids: tokenizer.stop_ids().to_vec(),
        max_batch,
    })
}
