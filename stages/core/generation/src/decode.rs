//! The loop over a batch: prefill, then a token for every row per step.
//!
//! Shapes: `b` rows of the batch (finished rows leave it), `p` prompt columns, `t` input columns of a step
//! (`p` in the first, then 1), `m` columns of the cache, `n` steps between two looks at the tokens, `d`
//! width, `v` vocabulary.

use std::cmp::Reverse;
use std::collections::HashMap;

use datasets::collate::{Side, pad};
use model::{KvCache, Model};
use runtime::seeds;
use tch::{Device, Kind, Tensor};

use crate::options::{Finish, GenerationError, Request, Sample, SamplingOptions, validate};
use crate::sampler::{invert_cdf, log_distribution};

/// Steps between two copies of tokens to the host on a GPU, each of which waits for the device. Rows
/// that end in between run on to the next copy, and what they made is dropped.
const GPU_STEPS_PER_LOOK: usize = 8;

/// Continues every prompt; samples come in the order of their requests.
///
/// Requests of like prompt length are decoded together, at most `max_batch` at a time, with a KV cache
/// and without gradients. Prompts are padded on their left, so that a step is the same column in every
/// row. Finished rows leave the batch as soon as they are a quarter of it.
///
/// # Errors
/// When the model has no token head; an option is out of its bounds; a prompt is empty, has unknown
/// tokens or leaves no room for `max_new_tokens`; or the model's probabilities are not finite.
pub fn generate(
    model: &Model,
    requests: &[Request],
    options: &SamplingOptions,
) -> Result<Vec<Sample>, GenerationError> {
    let steps_per_look = if model.device().is_cuda() {
        GPU_STEPS_PER_LOOK
    } else {
        1
    };
    generate_looking_every(steps_per_look, model, requests, options)
}

fn generate_looking_every(
    steps_per_look: usize,
    model: &Model,
    requests: &[Request],
    options: &SamplingOptions,
) -> Result<Vec<Sample>, GenerationError> {
    validate(model, requests, options)?;
    let empty = Sample {
        output_ids: Vec::new(),
        logprobs: Vec::new(),
        finish: Finish::Length,
    };
    let mut samples = vec![empty; requests.len()];
    let mut order: Vec<usize> = (0..requests.len()).collect();
    // Longest first: what does not fit into memory fails at once.
    order.sort_by_key(|&request| Reverse(requests[request].prompt_ids.len()));
    for members in order.chunks(options.max_batch) {
        tch::no_grad(|| {
            let batch = Batch::new(model, requests, members, options);
            batch.run(steps_per_look, &mut samples)
        })?;
    }
    Ok(samples)
}

/// Rows that are decoded together.
struct Batch<'a> {
    model: &'a Model,
    requests: &'a [Request],
    options: &'a SamplingOptions,
    /// The request of each row.
    members: Vec<usize>,
    /// The prompt that each row continues; `None` where they are as many, and once they are read.
    prompt_of_row: Option<Tensor>,
    /// What the next step reads: the prompts, then the last token of each row.
    ids_bt: Tensor,
    /// Positions of those, counted without padding.
    positions_bt: Tensor,
    /// Which columns of the cache hold tokens, those yet to come included; `None` without padding.
    valid_bm: Option<Tensor>,
    cache: KvCache,
}

impl<'a> Batch<'a> {
    /// A batch before its first step. Requests that share a prompt share the reading of it.
    fn new(
        model: &'a Model,
        requests: &'a [Request],
        members: &[usize],
        options: &'a SamplingOptions,
    ) -> Self {
        let device = model.device();
        let (prompts, prompt_of_row) = distinct_prompts(requests, members);
        let padded = pad(&prompts, Side::Left, 0, None);
        let dims = [padded.rows as i64, padded.cols as i64];
        let valid_bp = Tensor::from_slice(&padded.valid)
            .view(dims)
            .to_device(device);
        // Tokens of the response that are read again: all but the last.
        let num_read = options.max_new_tokens - 1;
        let valid_bm = padded.valid.contains(&false).then(|| {
            let to_come = valid_bp.new_ones([dims[0], num_read as i64], (Kind::Bool, device));
            Tensor::cat(&[&valid_bp, &to_come], 1)
        });
        Self {
            model,
            requests,
            options,
            members: members.to_vec(),
            prompt_of_row: (prompts.len() < members.len())
                .then(|| Tensor::from_slice(&prompt_of_row).to_device(device)),
            ids_bt: Tensor::from_slice(&padded.ids).view(dims).to_device(device),
            positions_bt: (valid_bp.cumsum(1, Kind::Int64) - 1).clamp_min(0),
            valid_bm,
            cache: KvCache::new(model, padded.rows, padded.cols + num_read),
        }
    }

    /// Decodes until every row has finished.
    fn run(mut self, steps_per_look: usize, samples: &mut [Sample]) -> Result<(), GenerationError> {
        let max_new_tokens = self.options.max_new_tokens;
        let mut is_live = vec![true; self.members.len()];
        let mut position = 0;
        while position < max_new_tokens && is_live.contains(&true) {
            is_live = self.retire(is_live);
            let num_steps = steps_per_look.min(max_new_tokens - position);
            let (ids_bn, logprobs_bn) = self.steps(position, num_steps);
            for (row, is_live) in is_live.iter_mut().enumerate().filter(|(_, it)| **it) {
                let made = row * num_steps..(row + 1) * num_steps;
                let request = self.members[row];
                let tokens = ids_bn[made.clone()].iter().zip(&logprobs_bn[made]);
                *is_live = self.record(request, tokens, &mut samples[request])?;
            }
            position += num_steps;
        }
        Ok(())
    }

    /// Adds what a row made to its sample, up to EOS; returns whether the row goes on.
    fn record<'t>(
        &self,
        request: usize,
        tokens: impl Iterator<Item = (&'t i64, &'t f64)>,
        sample: &mut Sample,
    ) -> Result<bool, GenerationError> {
        for (&id, &logprob) in tokens {
            if !logprob.is_finite() {
                let position = sample.output_ids.len();
                return Err(GenerationError::NonFinite {
                    request,
                    position,
                    logprob,
                });
            }
            sample.output_ids.push(id as u32);
            sample.logprobs.push(logprob);
            if !self.options.ignore_eos && self.options.eos_ids.contains(&(id as u32)) {
                sample.finish = Finish::Stop;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// `n` steps, the first of which makes response token `position`: ids and log-probs, row-major.
    fn steps(&mut self, position: usize, n: usize) -> (Vec<i64>, Vec<f64>) {
        let uniform_bn = (!self.options.greedy).then(|| self.uniforms(position, n));
        let (mut ids, mut logprobs) = (Vec::with_capacity(n), Vec::with_capacity(n));
        for step in 0..n as i64 {
            let hidden_bd = self.forward();
            let logprobs_bv = log_distribution(&self.model.logits(&hidden_bd), self.options);
            let ids_b1 = match &uniform_bn {
                Some(uniform_bn) => invert_cdf(&logprobs_bv, &uniform_bn.narrow(1, step, 1)),
                None => logprobs_bv.argmax(-1, true),
            };
            logprobs.push(logprobs_bv.gather(-1, &ids_b1, false));
            let last = self.positions_bt.size()[1] - 1;
            self.positions_bt = self.positions_bt.narrow(1, last, 1) + 1;
            self.ids_bt = ids_b1.shallow_clone();
            ids.push(ids_b1);
        }
        (
            to_host(&Tensor::cat(&ids, 1), Kind::Int64),
            to_host(&Tensor::cat(&logprobs, 1), Kind::Double),
        )
    }

    /// One random number per row and step, from the keys of the rows' episodes.
    fn uniforms(&self, position: usize, n: usize) -> Tensor {
        let SamplingOptions { seed, purpose, .. } = *self.options;
        let numbers: Vec<f64> = self
            .members
            .iter()
            .flat_map(|&request| {
                let episode = self.requests[request].episode;
                let steps = position as u64..(position + n) as u64;
                steps.map(move |t| seeds::uniform(seed, purpose, episode, t))
            })
            .collect();
        Tensor::from_slice(&numbers)
            .view([-1, n as i64])
            .to_device(self.model.device())
    }

    /// Hidden states of the last column, with the new columns added to the cache.
    fn forward(&mut self) -> Tensor {
        let new = self.ids_bt.size()[1];
        let cols = self.cache.len() as i64 + new;
        let valid_bs = self
            .valid_bm
            .as_ref()
            .map(|valid_bm| valid_bm.narrow(1, 0, cols));
        let hidden_btd = self.model.forward_cached(
            &self.ids_bt,
            &self.positions_bt,
            &mut self.cache,
            valid_bs.as_ref(),
        );
        let hidden_bd = hidden_btd.select(1, new - 1);
        let Some(prompt_of_row) = self.prompt_of_row.take() else {
            return hidden_bd;
        };
        self.select(&prompt_of_row);
        hidden_bd.index_select(0, &prompt_of_row)
    }

    /// Drops finished rows once they are a quarter of the batch; returns who of the rest is live.
    fn retire(&mut self, is_live: Vec<bool>) -> Vec<bool> {
        let live: Vec<i64> = (0..)
            .zip(&is_live)
            .filter(|(_, it)| **it)
            .map(|(row, _)| row)
            .collect();
        let num_finished = is_live.len() - live.len();
        if num_finished == 0 || num_finished * 4 < is_live.len() {
            return is_live;
        }
        self.members = live.iter().map(|&row| self.members[row as usize]).collect();
        self.select(&Tensor::from_slice(&live).to_device(self.model.device()));
        vec![true; live.len()]
    }

    /// Makes the given rows the batch.
    fn select(&mut self, rows: &Tensor) {
        self.ids_bt = self.ids_bt.index_select(0, rows);
        self.positions_bt = self.positions_bt.index_select(0, rows);
        self.valid_bm = self
            .valid_bm
            .as_ref()
            .map(|valid_bm| valid_bm.index_select(0, rows));
        self.cache.retain(rows);
    }
}

/// The prompts of the given requests, each once, and the index of each request's prompt among them.
fn distinct_prompts<'a>(requests: &'a [Request], members: &[usize]) -> (Vec<&'a [u32]>, Vec<i64>) {
    let mut prompts: Vec<&[u32]> = Vec::with_capacity(members.len());
    let mut index = HashMap::with_capacity(members.len());
    let prompt_of_row = members
        .iter()
        .map(|&member| {
            let prompt = &requests[member].prompt_ids[..];
            *index.entry(prompt).or_insert_with(|| {
                prompts.push(prompt);
                prompts.len() as i64 - 1
            })
        })
        .collect();
    (prompts, prompt_of_row)
}

fn to_host<T: tch::kind::Element + Copy + Default>(values: &Tensor, kind: Kind) -> Vec<T> {
    let values = values.to_device(Device::Cpu).to_kind(kind).contiguous();
    let mut host = vec![T::default(); values.numel()];
    values.copy_data(&mut host, values.numel());
    host
}

#[cfg(test)]
mod tests {
    use model::Head;
    use recipe::families::Sizes;
    use recipe::shape::{Family, ModelShape};

    use super::*;

    fn model() -> Model {
        let shape = ModelShape {
            kv_heads: 1,
            mlp_width: 16,
            ..Family::Llama.shape(&Sizes {
                vocab_size: 13,
                max_positions: 40,
                layers: 1,
                width: 8,
                heads: 2,
            })
        };
        Model::init(&shape, Head::Token, 3, Device::Cpu, Kind::Double)
    }

    fn options() -> SamplingOptions {
        SamplingOptions {
            max_new_tokens: 21,
            temperature: 1.0,
            top_k: None,
            top_p: None,
            greedy: false,
            ignore_eos: false,
            seed: 11,
            purpose: "test",
            eos_ids: vec![0, 5],
            max_batch: 16,
        }
    }

    fn requests() -> Vec<Request> {
        let prompt = |i| (1..=1 + i as u32 % 5).collect();
        (0..16)
            .map(|i| Request {
                prompt_ids: prompt(i),
                episode: i,
            })
            .collect()
    }

    #[test]
    fn steps_between_looks_change_nothing() {
        let (model, requests) = (model(), requests());
        let every = |n| generate_looking_every(n, &model, &requests, &options()).expect("samples");
        let one = every(1);
        assert!(one.iter().any(|it| it.finish == Finish::Stop));
        for (one, eight) in one.iter().zip(every(8)) {
            assert_eq!(
                (&one.output_ids, one.finish),
                (&eight.output_ids, eight.finish)
            );
            for (a, b) in one.logprobs.iter().zip(&eight.logprobs) {
                assert!((a - b).abs() < 1e-9, "{a} {b}");
            }
        }
    }

    #[test]
    fn a_quarter_of_finished_rows_leaves_the_batch() {
        let (model, requests, options) = (model(), requests(), options());
        let mut batch = Batch::new(&model, &requests, &[4, 3, 2, 1, 0], &options);
        batch.steps(0, 1);
        let one_finished = vec![true, true, false, true, true];
        assert_eq!(batch.retire(one_finished.clone()), one_finished);
        assert_eq!(
            batch.retire(vec![true, false, false, true, true]),
            vec![true; 3]
        );
        assert_eq!(batch.members, [4, 1, 0]);
        let (ids, logprobs) = batch.steps(1, 2);
        assert_eq!((ids.len(), logprobs.len()), (6, 6));
    }

    #[test]
    fn a_shared_prompt_is_read_once() {
        let (model, options) = (model(), options());
        let request = |ids: &[u32], episode| Request {
            prompt_ids: ids.to_vec(),
            episode,
        };
        let requests = [request(&[1, 2], 0), request(&[3], 1), request(&[1, 2], 2)];
        let mut batch = Batch::new(&model, &requests, &[0, 2, 1], &options);
        assert_eq!(batch.ids_bt.size(), [2, 2]);
        let (ids, _) = batch.steps(0, 1);
        assert_eq!(ids.len(), 3);
        assert_eq!(batch.ids_bt.size(), [3, 1]);
    }
}
