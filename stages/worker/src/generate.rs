//! `rlhf generate`.

use anyhow::Result;
use datasets::Tokenizer;
use generation::{BeamOptions, Request, Sample, SamplingOptions};
use model::Model;
use recipe::request::{Beams, GenerateInput, GenerateRequest, Sampling};
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
    let samples = match &request.beams {
        Some(beams) => searched(request, beams, &model, &tokenizer, &prompts)?,
        None => sampled(request, &model, &tokenizer, &prompts)?,
    };
    for (index, of_prompt) in samples.iter().enumerate() {
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

/// The samples of each prompt.
fn sampled(
    request: &GenerateRequest,
    model: &Model,
    tokenizer: &Tokenizer,
    prompts: &[Vec<u32>],
) -> Result<Vec<Vec<Sample>>> {
    let options = options(&request.sampling, tokenizer, request.compute.batch)?;
    let copies = request.num_samples.max(1);
    let of_prompt = |ids| std::iter::repeat_n(ids, copies);
    let requests: Vec<Request> = (0..)
        .zip(prompts.iter().flat_map(of_prompt))
        .map(|(episode, ids)| Request {
            prompt_ids: ids.clone(),
            episode,
        })
        .collect();
    let samples = generation::generate(model, &requests, &options)?;
    Ok(samples.chunks(copies).map(<[Sample]>::to_vec).collect())
}

/// The likeliest responses to each prompt.
fn searched(
    request: &GenerateRequest,
    beams: &Beams,
    model: &Model,
    tokenizer: &Tokenizer,
    prompts: &[Vec<u32>],
) -> Result<Vec<Vec<Sample>>> {
    let sampling = options(&request.sampling, tokenizer, request.compute.batch)?;
    let options = BeamOptions {
        beams: beams.beams,
        length_penalty: beams.length_penalty,
        returned: request.num_samples,
        max_new_tokens: sampling.max_new_tokens,
        eos_ids: if sampling.ignore_eos {
            Vec::new()
        } else {
            sampling.eos_ids
        },
        max_batch: sampling.max_batch,
    };
    Ok(generation::beam_search(model, prompts, &options)?)
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
