//! The loop over rows: each step reads the new tokens of all rows in one pass, and makes one more for each.
//!
//! Shapes: `b` live rows, `n` new tokens of all rows (a whole prompt of those that begin, one of the
//! others), `s` steps between two looks at the tokens, `d` width, `v` vocabulary.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::ops::Range;

use model::{CachedRow, KvCache, Model};
use recipe::memory::PROMPT_TOKENS_PER_STEP;
use runtime::seeds;
use tch::{Kind, Tensor};

use crate::options::{Finish, GenerationError, Request, Sample, SamplingOptions, validate};
use crate::recorded::{Made, RecordedSteps, Stepping, Stretch};
use crate::sampler::{choose_rows, to_host};

/// Continues every prompt; samples come in the order of their requests.
///
/// At most `max_batch` rows are decoded at a time. Finished rows leave and waiting prompts take their
/// places, so a batch of uneven lengths costs what its tokens cost: nothing is padded. Samples of one
/// prompt that begin together share the reading of it, and its place in the KV cache.
///
/// # Errors
/// When the model has no token head; an option is out of its bounds; a prompt is empty, has unknown
/// tokens or leaves no room for `max_new_tokens`; the model's probabilities are not finite; or a GPU refuses.
pub fn generate(
    model: &Model,
    requests: &[Request],
    options: &SamplingOptions,
) -> Result<Vec<Sample>, GenerationError> {
    generate_by(Stepping::of(model), (model, None), requests, options)
}

/// The same with [`Sample::values`]: what the scalar head of `value`, a model on the same trunk, says of the hidden states
/// that each token is sampled from. They cost no pass of their own.
///
/// # Errors
/// As [`generate`].
///
/// # Panics
/// When `value` has a token head, or hidden states of another width.
pub fn generate_with_values(
    model: &Model,
    value: &Model,
    requests: &[Request],
    options: &SamplingOptions,
) -> Result<Vec<Sample>, GenerationError> {
    generate_by(Stepping::of(model), (model, Some(value)), requests, options)
}

fn generate_by(
    stepping: Stepping,
    (model, value): (&Model, Option<&Model>),
    requests: &[Request],
    options: &SamplingOptions,
) -> Result<Vec<Sample>, GenerationError> {
    validate(model, requests, options)?;
    if requests.is_empty() {
        return Ok(Vec::new());
    }
    let rows = options.max_batch.min(requests.len());
    let model = tch::no_grad(|| model.for_inference(rows));
    let mut engine = Engine {
        value,
        ..Engine::new(&model, requests, options, stepping)
    };
    tch::no_grad(|| {
        while !engine.is_done() {
            engine.admit();
            engine.look()?;
        }
        Ok(engine.samples)
    })
}

/// A row that is decoded.
#[derive(Debug)]
struct Row {
    request: usize,
    /// Tokens made so far.
    made: usize,
    cached: CachedRow,
}

/// All rows, live and waiting.
struct Engine<'a> {
    model: &'a Model,
    /// Whose head says the values.
    value: Option<&'a Model>,
    requests: &'a [Request],
    options: &'a SamplingOptions,
    stepping: Stepping,
    /// Requests that have not begun.
    waiting: VecDeque<usize>,
    live: Vec<Row>,
    /// The last token of each live row, int64 `[b]`.
    ids_b: Tensor,
    /// Rows whose prompts are read in the next step. Behind each those that share its prompt.
    beginning: Vec<Vec<Row>>,
    cache: KvCache,
    /// Steps whose tables stay in their places, by the number of their rows.
    recorded: BTreeMap<usize, RecordedSteps<'a>>,
    /// Tokens of a row, at most.
    positions: usize,
    samples: Vec<Sample>,
}

impl<'a> Engine<'a> {
    fn new(
        model: &'a Model,
        requests: &'a [Request],
        options: &'a SamplingOptions,
        stepping: Stepping,
    ) -> Self {
        let empty = Sample {
            output_ids: Vec::new(),
            logprobs: Vec::new(),
            values: Vec::new(),
            finish: Finish::Length,
        };
        let mut waiting: Vec<usize> = (0..requests.len()).collect();
        // Longest first: what does not fit into memory fails at once.
        waiting.sort_by_key(|&request| Reverse(requests[request].prompt_ids.len()));
        // The last token of a response is not read again.
        let blocks = |request: &usize| {
            let prompt = requests[*request].prompt_ids.len();
            KvCache::blocks_for(prompt + options.max_new_tokens - 1)
        };
        let num_blocks: usize = waiting.iter().take(options.max_batch).map(blocks).sum();
        // A block of fillers for each number of rows: the powers of two up to the batch.
        let fillers = options
            .max_batch
            .min(requests.len())
            .next_power_of_two()
            .ilog2() as usize
            + 1;
        let num_blocks = num_blocks + if stepping.in_tables { fillers } else { 0 };
        let longest = waiting
            .first()
            .map_or(0, |&request| requests[request].prompt_ids.len());
        Self {
            model,
            value: None,
            requests,
            options,
            stepping,
            waiting: waiting.into(),
            live: Vec::new(),
            ids_b: Tensor::empty([0], (Kind::Int64, model.device())),
            beginning: Vec::new(),
            cache: KvCache::new(model, num_blocks),
            recorded: BTreeMap::new(),
            positions: longest + options.max_new_tokens,
            samples: vec![empty; requests.len()],
        }
    }

    fn is_done(&self) -> bool {
        self.live.is_empty() && self.waiting.is_empty()
    }

    /// Takes waiting requests into free places, once an eighth of the places is free.
    fn admit(&mut self) {
        let mut free = self.options.max_batch - self.live.len();
        if free < self.options.max_batch.div_ceil(8) {
            return;
        }
        let mut tokens = 0;
        while free > 0
            && let Some(request) = self.waiting.pop_front()
        {
            let prompt = &self.requests[request].prompt_ids;
            let row = Row {
                request,
                made: 0,
                cached: CachedRow::default(),
            };
            free -= 1;
            match self.beginning.last_mut() {
                Some(group) if self.requests[group[0].request].prompt_ids == *prompt => {
                    group.push(row);
                }
                Some(_) if tokens + prompt.len() > PROMPT_TOKENS_PER_STEP => {
                    return self.waiting.push_front(request);
                }
                _ => {
                    tokens += prompt.len();
                    self.beginning.push(vec![row]);
                }
            }
        }
    }

    /// Some steps, after which the tokens are looked at and finished rows leave.
    fn look(&mut self) -> Result<(), GenerationError> {
        let rows = self.live.iter().chain(self.beginning.iter().flatten());
        let most_made = rows.map(|row| row.made).max().unwrap_or(0);
        let num_steps = (self.options.max_new_tokens - most_made).min(self.stepping.per_look);
        let (mut ids, mut logprobs, mut values) = (Vec::new(), Vec::new(), Vec::new());
        let mut num_made = 0;
        while num_made < num_steps {
            let made = if self.stepping.in_tables && self.beginning.is_empty() {
                self.recorded_steps(num_made..num_steps)?
            } else {
                self.one_step(num_made)
            };
            let steps = made.ids.size()[1];
            self.ids_b = made.ids.select(1, steps - 1);
            num_made += steps as usize;
            ids.push(made.ids);
            logprobs.push(made.logprobs);
            values.extend(made.values);
        }
        let ids = to_host(&Tensor::cat(&ids, 1), Kind::Int64);
        let logprobs = to_host(&Tensor::cat(&logprobs, 1), Kind::Double);
        let values: Vec<f64> = match self.value {
            Some(_) => to_host(&Tensor::cat(&values, 1), Kind::Double),
            None => Vec::new(),
        };
        let mut goes_on = Vec::with_capacity(self.live.len());
        for row in 0..self.live.len() {
            let made = row * num_steps..(row + 1) * num_steps;
            let values = values.get(made.clone()).unwrap_or_default();
            goes_on.push(self.record(row, &ids[made.clone()], &logprobs[made], values)?);
        }
        self.retire(&goes_on);
        Ok(())
    }

    /// Reads the tokens that are new, and makes one more for each row.
    fn one_step(&mut self, step: usize) -> Made {
        let hidden_bd = if self.beginning.is_empty() {
            self.decode()
        } else {
            self.begin()
        };
        let uniform_b = (!self.options.greedy)
            .then(|| Tensor::from_slice(&self.uniforms(step)).to_device(self.model.device()));
        let (ids_b, logprobs_b) =
            choose_rows(self.model, &hidden_bd, uniform_b.as_ref(), self.options);
        let column = |of_b: Tensor| of_b.unsqueeze(1);
        Made {
            ids: column(ids_b),
            logprobs: column(logprobs_b),
            values: self.value.map(|value| column(value.scalar(&hidden_bd))),
        }
    }

    /// The same for several steps, in which no row begins.
    fn recorded_steps(&mut self, steps: Range<usize>) -> Result<Made, GenerationError> {
        let uniforms =
            (!self.options.greedy).then(|| steps.clone().map(|s| self.uniforms(s)).collect());
        let stretch = Stretch {
            ids_b: &self.ids_b,
            rows: self.live.iter_mut().map(|row| &mut row.cached).collect(),
            uniforms,
            steps: steps.len(),
        };
        let rows = stretch.rows.len().next_power_of_two();
        let sizes = [rows, self.positions, self.stepping.per_look];
        let (models, options, cache) = ((self.model, self.value), self.options, &mut self.cache);
        let records = self.stepping.recorded;
        let new = || RecordedSteps::new(models, options, cache, sizes, records);
        let recorded = self.recorded.entry(rows).or_insert_with(new);
        Ok(recorded.run(stretch, &mut self.cache)?)
    }

    /// Reads the last token of each live row: hidden states `[b, d]`.
    fn decode(&mut self) -> Tensor {
        let mut rows: Vec<_> = self
            .live
            .iter_mut()
            .map(|row| (&mut row.cached, 1))
            .collect();
        self.model
            .forward_cached(&self.ids_b, &mut rows, &mut self.cache)
    }

    /// The same, and the prompts of the rows that begin, which are live from then on.
    fn begin(&mut self) -> Tensor {
        let mut groups = mem::take(&mut self.beginning);
        let prompts = groups
            .iter()
            .map(|group| &self.requests[group[0].request].prompt_ids);
        let lengths: Vec<usize> = prompts.clone().map(Vec::len).collect();
        let prompt_ids: Vec<i64> = prompts.flatten().map(|&id| i64::from(id)).collect();
        let prompt_ids = Tensor::from_slice(&prompt_ids).to_device(self.model.device());
        let ids_n = Tensor::cat(&[&self.ids_b, &prompt_ids], 0);
        let live = self.live.iter_mut().map(|row| (&mut row.cached, 1));
        let first = groups.iter_mut().map(|group| &mut group[0].cached);
        let mut rows: Vec<_> = live.chain(first.zip(lengths)).collect();
        let hidden_bd = self
            .model
            .forward_cached(&ids_n, &mut rows, &mut self.cache);
        let mut state_of_row: Vec<i64> = (0..self.live.len() as i64).collect();
        for (mut group, state) in groups.into_iter().zip(self.live.len() as i64..) {
            state_of_row.extend(group.iter().map(|_| state));
            for index in 1..group.len() {
                group[index].cached = self.cache.fork(&group[0].cached);
            }
            self.live.extend(group);
        }
        if state_of_row.len() as i64 == hidden_bd.size()[0] {
            return hidden_bd;
        }
        let state_of_row = Tensor::from_slice(&state_of_row).to_device(self.model.device());
        hidden_bd.index_select(0, &state_of_row)
    }

    /// A random number for each row, from the key of its episode and its next token but `step`.
    fn uniforms(&self, step: usize) -> Vec<f64> {
        let SamplingOptions { seed, purpose, .. } = *self.options;
        let of_row = |row: &Row| {
            let episode = self.requests[row.request].episode;
            seeds::uniform(seed, purpose, episode, (row.made + step) as u64)
        };
        self.live.iter().map(of_row).collect()
    }

    /// Adds what a row made to its sample, up to EOS; returns whether the row goes on.
    fn record(
        &mut self,
        row: usize,
        ids: &[i64],
        logprobs: &[f64],
        values: &[f64],
    ) -> Result<bool, GenerationError> {
        let row = &mut self.live[row];
        let sample = &mut self.samples[row.request];
        for (step, (&id, &logprob)) in ids.iter().zip(logprobs).enumerate() {
            if !logprob.is_finite() {
                return Err(GenerationError::NonFinite {
                    request: row.request,
                    position: sample.output_ids.len(),
                    logprob,
                });
            }
            row.made += 1;
            sample.output_ids.push(id as u32);
            sample.logprobs.push(logprob);
            sample.values.extend(values.get(step));
            if !self.options.ignore_eos && self.options.eos_ids.contains(&(id as u32)) {
                sample.finish = Finish::Stop;
                return Ok(false);
            }
        }
        Ok(row.made < self.options.max_new_tokens)
    }

    /// Lets finished rows go.
    fn retire(&mut self, goes_on: &[bool]) {
        if !goes_on.contains(&false) {
            return;
        }
        let mut kept: Vec<i64> = Vec::with_capacity(goes_on.len());
        for (index, row) in mem::take(&mut self.live).into_iter().enumerate() {
            if goes_on[index] {
                kept.push(index as i64);
                self.live.push(row);
            } else {
                self.cache.release(row.cached);
            }
        }
        let kept = Tensor::from_slice(&kept).to_device(self.model.device());
        self.ids_b = self.ids_b.index_select(0, &kept);
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
