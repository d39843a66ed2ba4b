//! `rlhf-worker gpu-check`: one bf16 training step and one sampling run of a 1.3B model on the GPU.

use std::time::Instant;

use anyhow::{Result, bail, ensure};
use generation::{Request, SamplingOptions};
use model::{Head, Model};
use recipe::families::Sizes;
use recipe::plan::{OptimizerPlan, Schedule};
use recipe::shape::{Family, ModelShape};
use runtime::events::{Event, emit};
use runtime::seeds;
use serde_json::json;
use tch::Kind;
use trainer::{LmOptions, LmRow, Stepper, lm_backward};

use crate::compute;

const BATCH: usize = 8;
const CONTEXT: usize = 1024;
const PROMPTS: u64 = 128;
const PROMPT_TOKENS: usize = 256;
const NEW_TOKENS: usize = 256;

/// Prints one JSON object of measurements. Fails where no GPU can be used or a number is not finite.
pub fn run() -> Result<()> {
    let device = compute::device("cuda")?;
    let Some(cuda) = torch_ext::cuda::load()? else {
        bail!("no usable GPU")
    };
    let shape = shape();
    let model = Model::init(&shape, Head::Token, 1, device, Kind::BFloat16);
    let train_s = training_steps(&model, &shape)?;
    let peak_training_bytes = cuda.peak_bytes(0)?;
    cuda.reset_peak(0)?;
    let (sample_s, tokens) = sampling(&model, &shape)?;
    let line = json!({
        "device": cuda.properties(0)?.name,
        "parameters": model.num_params(),
        "train_first_step_s": train_s[0],
        "train_step_s": train_s[1],
        "train_tokens_per_s": (BATCH * CONTEXT) as f64 / train_s[1],
        "train_peak_bytes": peak_training_bytes,
        "sample_s": sample_s,
        "sample_tokens_per_s": tokens as f64 / sample_s,
        "sample_peak_bytes": cuda.peak_bytes(0)?,
    });
    emit(&Event::Output {
        line: line.to_string(),
    });
    Ok(())
}

/// GPT-3 XL's size in the Llama shape.
fn shape() -> ModelShape {
    ModelShape {
        mlp_width: 5504,
        tie_embeddings: true,
        ..Family::Llama.shape(&Sizes {
            vocab_size: 50_304,
            max_positions: 2048,
            layers: 24,
            width: 2048,
            heads: 16,
        })
    }
}

fn tokens(row: u64, count: usize, vocab_size: usize) -> Vec<u32> {
    let id = |position| seeds::key(1, "gpu check", row, position) % vocab_size as u64;
    (0..count as u64)
        .map(|position| id(position) as u32)
        .collect()
}

/// Seconds of two updates; the first one also loads kernels.
fn training_steps(model: &Model, shape: &ModelShape) -> Result<[f64; 2]> {
    let optimizer = OptimizerPlan {
        lr: 1e-5,
        betas: [0.9, 0.95],
        eps: 1e-8,
        weight_decay: 0.0,
        schedule: Schedule::Constant,
        floor: 0.0,
        warmup: 0,
        warmup_from: 0.0,
        clip: 1.0,
    };
    let mut stepper = Stepper::new(model, &optimizer, 2);
    let rows: Vec<LmRow> = (0..BATCH as u64)
        .map(|row| LmRow::plain(tokens(row, CONTEXT, shape.vocab_size)))
        .collect();
    let options = LmOptions {
        micro_batch: BATCH,
        pad_id: 0,
        coef: 1.0,
        checkpointing: false,
        dropout: 0.0,
        dropout_key: 0,
    };
    let mut seconds = [0.0; 2];
    for (step, seconds) in (0..).zip(&mut seconds) {
        let started = Instant::now();
        let loss = lm_backward(model, &mut stepper, &rows, &options)?.mean();
        let update = stepper.update(step)?;
        ensure!(
            loss.is_finite() && update.grad_norm > 0.0,
            "loss {loss}, {update:?}"
        );
        *seconds = started.elapsed().as_secs_f64();
    }
    Ok(seconds)
}

fn sampling(model: &Model, shape: &ModelShape) -> Result<(f64, usize)> {
    let requests: Vec<Request> = (0..PROMPTS)
        .map(|episode| Request {
            prompt_ids: tokens(1000 + episode, PROMPT_TOKENS, shape.vocab_size),
            episode,
        })
        .collect();
    let options = SamplingOptions {
        max_new_tokens: NEW_TOKENS,
        seed: 1,
        purpose: "gpu check",
        max_batch: PROMPTS as usize,
        ..SamplingOptions::default()
    };
    let started = Instant::now();
    let samples = generation::generate(model, &requests, &options)?;
    let tokens = samples.iter().map(|sample| sample.output_ids.len()).sum();
    let finite = samples
        .iter()
        .flat_map(|s| &s.logprobs)
        .all(|logprob| logprob.is_finite());
    ensure!(finite, "a sampled log-probability is not finite");
    Ok((started.elapsed().as_secs_f64(), tokens))
}
