//! Beam search: the likeliest responses, as far as a number of beginnings kept side by side shows them.
//!
//! The algorithm is that of transformers' `generate` with `early_stopping=False`, so that its results are
//! comparable: of each prompt the `beams` best beginnings go on, what ends competes by its score, and the search
//! ends when the best beginning's present score is no better than the worst of `beams` ends.
//!
//! Shapes: `b` rows (all beams of all live searches), `k` candidates of a row, `v` vocabulary.

use std::cmp::Ordering;

use model::{CachedRow, KvCache, Model};
use tch::{Kind, Tensor};

use crate::options::{Finish, GenerationError, Request, Sample, SamplingOptions, validate};
use crate::sampler::{plain_log_distribution, to_host};

/// How beams are searched.
#[derive(Debug, Clone, PartialEq)]
pub struct BeamOptions {
    /// Beginnings that are kept side by side; 1 or more.
    pub beams: usize,
    /// The score of a response of `n` tokens is the sum of its log-probabilities over `n` to this power: above 0
    /// longer ones win more often, at 0 the sum alone counts.
    pub length_penalty: f64,
    /// Responses of each prompt, best first; at most `beams`.
    pub returned: usize,
    /// Tokens of a response at most, EOS included; 1 or more.
    pub max_new_tokens: usize,
    /// Tokens that end a response; empty: none does.
    pub eos_ids: Vec<u32>,
    /// Rows decoded together, or the beams of one prompt where they are more; bounds memory, and changes no
    /// result.
    pub max_batch: usize,
}

/// The best responses to each prompt, best first (fewer than asked for only where the vocabulary has no more).
/// Their log-probabilities are those of the plain distribution.
///
/// # Errors
/// As [`crate::generate`], or where more responses are asked for than there are beams.
pub fn beam_search(
    model: &Model,
    prompts: &[Vec<u32>],
    options: &BeamOptions,
) -> Result<Vec<Vec<Sample>>, GenerationError> {
    check(model, prompts, options)?;
    let at_once = (options.max_batch / options.beams).max(1);
    let mut responses = Vec::with_capacity(prompts.len());
    tch::no_grad(|| {
        let model = model.for_inference(at_once * options.beams);
        for prompts in prompts.chunks(at_once) {
            let first = responses.len();
            responses.extend(Searches::run(&model, prompts, options, first)?);
        }
        Ok(responses)
    })
}

fn check(
    model: &Model,
    prompts: &[Vec<u32>],
    options: &BeamOptions,
) -> Result<(), GenerationError> {
    let (beams, returned) = (options.beams, options.returned);
    if beams == 0 {
        let hint = "with 1 the search is greedy decoding";
        return Err(GenerationError::Zero {
            option: "beams",
            hint,
        });
    }
    if !(1..=beams).contains(&returned) {
        return Err(GenerationError::TooFewBeams { returned, beams });
    }
    let requests: Vec<Request> = prompts
        .iter()
        .map(|prompt| Request {
            prompt_ids: prompt.clone(),
            episode: 0,
        })
        .collect();
    let sampling = SamplingOptions {
        max_new_tokens: options.max_new_tokens,
        greedy: true,
        max_batch: options.max_batch,
        ..SamplingOptions::default()
    };
    validate(model, &requests, &sampling)
}

/// The beginning of a response.
#[derive(Debug, Default)]
struct Beam {
    cached: CachedRow,
    ids: Vec<u32>,
    logprobs: Vec<f64>,
    sum: f64,
}

/// A beam's next token.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    beam: usize,
    id: u32,
    logprob: f64,
    sum: f64,
}

/// The search for one prompt.
#[derive(Debug)]
struct Search {
    prompt: usize,
    running: Vec<Beam>,
    /// The best ends so far with their scores, best first.
    ended: Vec<(f64, Sample)>,
}

struct Searches<'a> {
    model: &'a Model,
    options: &'a BeamOptions,
    cache: KvCache,
    live: Vec<Search>,
}

impl<'a> Searches<'a> {
    /// Searches for some prompts together; `first` is the number of the first of them.
    fn run(
        model: &'a Model,
        prompts: &[Vec<u32>],
        options: &'a BeamOptions,
        first: usize,
    ) -> Result<Vec<Vec<Sample>>, GenerationError> {
        // While beams divide, each may hold a last block twice.
        let blocks = |prompt: &Vec<u32>| {
            let tokens = prompt.len() + options.max_new_tokens;
            options.beams * (KvCache::blocks_for(tokens) + 1)
        };
        let search = |prompt| Search {
            prompt,
            running: vec![Beam::default()],
            ended: Vec::new(),
        };
        let mut searches = Self {
            model,
            options,
            cache: KvCache::new(model, prompts.iter().map(blocks).sum()),
            live: (0..prompts.len()).map(search).collect(),
        };
        let mut responses = vec![Vec::new(); prompts.len()];
        for made in 0..options.max_new_tokens {
            let candidates = searches.candidates(prompts, made, first)?;
            let mut candidates = candidates.into_iter();
            for search in std::mem::take(&mut searches.live) {
                let of_search = candidates.next().unwrap_or_default();
                match searches.advance(search, of_search, made + 1) {
                    Ok(search) => searches.live.push(search),
                    Err((prompt, ended)) => responses[prompt] = ended,
                }
            }
            if searches.live.is_empty() {
                break;
            }
        }
        Ok(responses)
    }

    /// Reads the last token of every beam (at first the prompts): the best next tokens of each search, best
    /// first.
    fn candidates(
        &mut self,
        prompts: &[Vec<u32>],
        made: usize,
        first: usize,
    ) -> Result<Vec<Vec<Candidate>>, GenerationError> {
        let (mut ids, mut counts) = (Vec::new(), Vec::new());
        for search in &self.live {
            for beam in &search.running {
                let new = match beam.ids.last() {
                    Some(last) => std::slice::from_ref(last),
                    None => &prompts[search.prompt][..],
                };
                ids.extend(new.iter().map(|&id| i64::from(id)));
                counts.push(new.len());
            }
        }
        let ids_n = Tensor::from_slice(&ids).to_device(self.model.device());
        let beams = self.live.iter_mut().flat_map(|it| &mut it.running);
        let mut rows: Vec<_> = beams.map(|beam| &mut beam.cached).zip(counts).collect();
        let hidden_bd = self
            .model
            .forward_cached(&ids_n, &mut rows, &mut self.cache);
        let logits_bv = self.model.logits(&hidden_bd);
        let k = self.num_candidates().min(self.model.shape.vocab_size) as i64;
        let (values_bk, ids_bk) = plain_log_distribution(&logits_bv).topk(k, -1, true, true);
        let values: Vec<f64> = to_host(&values_bk, Kind::Double);
        let ids: Vec<i64> = to_host(&ids_bk, Kind::Int64);
        let mut rows = values.chunks(k as usize).zip(ids.chunks(k as usize));
        let mut all = Vec::with_capacity(self.live.len());
        for search in &self.live {
            let mut of_search = Vec::new();
            for (index, beam) in search.running.iter().enumerate() {
                let Some((values, ids)) = rows.next() else {
                    unreachable!("a row for each beam")
                };
                for (&logprob, &id) in values.iter().zip(ids) {
                    if logprob.is_nan() {
                        return Err(GenerationError::NonFinite {
                            request: first + search.prompt,
                            position: made,
                            logprob,
                        });
                    }
                    of_search.push(Candidate {
                        beam: index,
                        id: id as u32,
                        logprob,
                        sum: beam.sum + logprob,
                    });
                }
            }
            of_search.sort_by(|a, b| b.sum.total_cmp(&a.sum));
            of_search.truncate(self.num_candidates());
            all.push(of_search);
        }
        Ok(all)
    }

    /// Enough for all beams to go on if every one of them ends with every EOS token.
    fn num_candidates(&self) -> usize {
        (self.options.eos_ids.len().max(1) + 1) * self.options.beams
    }

    /// The search with its beams a token longer, or, where it is over, its prompt and responses.
    fn advance(
        &mut self,
        mut search: Search,
        candidates: Vec<Candidate>,
        made: usize,
    ) -> Result<Search, (usize, Vec<Sample>)> {
        let options = self.options;
        let length = (made as f64).powf(options.length_penalty);
        let is_last = made == options.max_new_tokens;
        let mut chosen = Vec::with_capacity(options.beams);
        for (rank, candidate) in candidates.into_iter().enumerate() {
            let stops = options.eos_ids.contains(&candidate.id);
            if !stops && !is_last {
                if chosen.len() < options.beams {
                    chosen.push(candidate);
                }
            } else if rank < options.beams {
                let finish = if stops { Finish::Stop } else { Finish::Length };
                let sample = search.running[candidate.beam].ended(candidate, finish);
                search.ended.push((candidate.sum / length, sample));
            }
        }
        let better = |a: &(f64, Sample), b: &(f64, Sample)| -> Ordering { b.0.total_cmp(&a.0) };
        search.ended.sort_by(better);
        search.ended.truncate(options.beams);
        let parents = std::mem::take(&mut search.running);
        search.running = self.divide(parents, &chosen);
        let full = search.ended.len() == options.beams;
        let worst = search.ended.last().map(|(score, _)| *score);
        let best = search.running.first().map(|beam| beam.sum / length);
        if best.is_some_and(|best| !full || worst.is_none_or(|worst| best > worst)) {
            return Ok(search);
        }
        for beam in search.running {
            self.cache.release(beam.cached);
        }
        let ended = search.ended.into_iter().take(options.returned);
        Err((search.prompt, ended.map(|(_, sample)| sample).collect()))
    }

    /// The chosen continuations as beams; a parent's last child takes its place in the cache.
    fn divide(&mut self, parents: Vec<Beam>, chosen: &[Candidate]) -> Vec<Beam> {
        let mut children = vec![0; parents.len()];
        for candidate in chosen {
            children[candidate.beam] += 1;
        }
        let mut parents: Vec<Option<Beam>> = parents.into_iter().map(Some).collect();
        for (parent, _) in parents.iter_mut().zip(&children).filter(|(_, n)| **n == 0) {
            if let Some(parent) = parent.take() {
                self.cache.release(parent.cached);
            }
        }
        let mut beams = Vec::with_capacity(chosen.len());
        for candidate in chosen {
            children[candidate.beam] -= 1;
            let parent = &mut parents[candidate.beam];
            let beam = if children[candidate.beam] == 0 {
                parent.take()
            } else {
                parent.as_ref().map(|parent| Beam {
                    cached: self.cache.fork(&parent.cached),
                    ids: parent.ids.clone(),
                    logprobs: parent.logprobs.clone(),
                    sum: parent.sum,
                })
            };
            let Some(mut beam) = beam else {
                unreachable!("a parent stays until its last child")
            };
            beam.ids.push(candidate.id);
            beam.logprobs.push(candidate.logprob);
            beam.sum = candidate.sum;
            beams.push(beam);
        }
        beams
    }
}

impl Beam {
    fn ended(&self, candidate: Candidate, finish: Finish) -> Sample {
        Sample {
            output_ids: [&self.ids[..], &[candidate.id]].concat(),
            logprobs: [&self.logprobs[..], &[candidate.logprob]].concat(),
            values: Vec::new(),
            finish,
        }
    }
}
