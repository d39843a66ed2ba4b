//! `rlhf-worker gpu-check`: what `rlhf gpu-check` measures within one process.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use datasets::Tokenizer;
use generation::{Request, SamplingOptions};
use model::weights::SHARD_BYTES;
use model::{Head, Model, write_folder};
use recipe::request::{Compute, DeviceReport, GpuRequest, SamplingReport};
use recipe::shape::ModelShape;
use runtime::events::{Event, emit};
use runtime::files::WholeFolder;
use runtime::seeds;
use serde::Serialize;
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::cuda::Cuda;
use trainer::Peak;
use trainer::context::kind_of;

use crate::compute;

/// Rounds that are timed; the fastest counts.
const ROUNDS: usize = 5;

/// Does what is asked; prints the answer as one JSON object. Fails where the device cannot be used or a number is
/// not finite.
pub fn run(request: &GpuRequest) -> Result<()> {
    match request {
        GpuRequest::Device { compute } => answer(&measure(compute)?),
        GpuRequest::RandomModel {
            shape,
            scalar,
            tokenizer,
            out,
            compute,
        } => {
            let head = if *scalar { Head::Scalar } else { Head::Token };
            random_model((shape, head), tokenizer, out, compute)
        }
        GpuRequest::Sample {
            model,
            prompts,
            prompt_tokens,
            new_tokens,
            turns,
            compute,
        } => {
            let sizes = [*prompts, *prompt_tokens, *new_tokens];
            answer(&sample(model, sizes, *turns, compute)?)
        }
    }
}

fn answer(report: &impl Serialize) -> Result<()> {
    let line = serde_json::to_string(report)?;
    emit(&Event::Output { line });
    Ok(())
}

/// CUDA's statistics where the device is a GPU.
fn cuda(device: Device) -> Result<Option<&'static Cuda>> {
    if device.is_cuda() {
        let cuda = torch_ext::cuda::load()?.context("no usable GPU")?;
        return Ok(Some(cuda));
    }
    Ok(None)
}

/// Seconds of the fastest round of `work`, after one that is not timed.
fn fastest(cuda: Option<&Cuda>, mut work: impl FnMut()) -> Result<f64> {
    let mut least = f64::INFINITY;
    for round in 0..=ROUNDS {
        let started = Instant::now();
        work();
        if let Some(cuda) = cuda {
            cuda.synchronize(0)?;
        }
        if round > 0 {
            least = least.min(started.elapsed().as_secs_f64());
        }
    }
    Ok(least)
}

fn measure(compute: &Compute) -> Result<DeviceReport> {
    let (device, kind) = (compute::device(&compute.device)?, kind_of(compute.dtype));
    let cuda = cuda(device)?;
    // More than any cache.
    let bytes = if cuda.is_some() { 2 << 30 } else { 128 << 20 };
    let from = Tensor::ones([bytes], (Kind::Uint8, device));
    let mut to = from.empty_like();
    let copy_s = fastest(cuda, || to.copy_(&from))?;
    let properties = cuda.map(|cuda| cuda.properties(0)).transpose()?;
    Ok(DeviceReport {
        memory_bytes: properties.as_ref().map(|it| it.total_bytes),
        name: properties.map(|it| it.name),
        flops_per_second: Peak::measure(device, kind).flops_per_second,
        bytes_per_second: 2.0 * bytes as f64 / copy_s,
    })
}

fn random_model(
    (shape, head): (&ModelShape, Head),
    tokenizer: &Path,
    out: &Path,
    compute: &Compute,
) -> Result<()> {
    let (device, kind) = (compute::device(&compute.device)?, kind_of(compute.dtype));
    let tokenizer = Tokenizer::load(tokenizer)?;
    let model = Model::init(shape, head, 1, device, kind);
    let folder = WholeFolder::create(out)?;
    write_folder(folder.path(), &model, &tokenizer, SHARD_BYTES)?;
    folder.commit()?;
    Ok(())
}

fn random_prompt(episode: u64, count: usize, vocab_size: usize) -> Vec<u32> {
    let id = |position| seeds::key(1, "gpu check", episode, position) % vocab_size as u64;
    (0..count as u64)
        .map(|position| id(position) as u32)
        .collect()
}

fn sample(
    dir: &Path,
    [prompts, prompt_tokens, new_tokens]: [usize; 3],
    turns: usize,
    compute: &Compute,
) -> Result<SamplingReport> {
    let model = compute::load(dir, None, compute)?;
    let cuda = cuda(model.device())?;
    let options = SamplingOptions {
        max_new_tokens: new_tokens,
        ignore_eos: true,
        seed: 1,
        purpose: "gpu check",
        max_batch: compute.batch,
        ..SamplingOptions::default()
    };
    let mut seconds = Vec::new();
    for turn in 0..=turns as u64 {
        let requests: Vec<Request> = (turn * prompts as u64..)
            .take(prompts)
            .map(|episode| Request {
                prompt_ids: random_prompt(episode, prompt_tokens, model.shape.vocab_size),
                episode,
            })
            .collect();
        let started = Instant::now();
        // The tokens are on the host when it returns.
        let samples = no_grad(|| generation::generate(&model, &requests, &options))?;
        if turn > 0 {
            seconds.push(started.elapsed().as_secs_f64());
        }
        for (request, sample) in samples.iter().enumerate() {
            let made = sample.output_ids.len();
            ensure!(
                made == new_tokens,
                "response {request} of {} has {made} tokens, not {new_tokens}",
                dir.display()
            );
        }
    }
    let peak_bytes = cuda.map(|cuda| cuda.peak_bytes(0)).transpose()?;
    Ok(SamplingReport {
        seconds,
        peak_bytes,
    })
}
