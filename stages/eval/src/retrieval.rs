//! Whether a model finds a number hidden in a long text.

use std::collections::BTreeMap;

use datasets::Tokenizer;
use datasets::passkey::Passkey;
use generation::{Request, SamplingOptions, generate};
use model::Model;
use recipe::request::{DepthReport, LengthReport};

use crate::EvalError;

/// What is asked of a model.
#[derive(Debug, Clone, Copy)]
pub struct Retrieval<'a> {
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Places of the number, evenly spaced from the start to the end; one place is the middle.
    pub depths: usize,
    /// Numbers hidden at each place.
    pub samples: usize,
    /// From which the numbers derive.
    pub seed: u64,
    /// Texts read together.
    pub max_batch: usize,
}

/// A text and what must follow it.
struct Probe {
    prompt_ids: Vec<u32>,
    answer_ids: Vec<u32>,
    depth: usize,
}

impl Retrieval<'_> {
    /// How often the model continues texts of at most `length` tokens, the answer's included, with the
    /// number that they hide: greedily, every token of it.
    ///
    /// # Errors
    /// When a text does not fit into `length`, the tokenizer does not keep question and answer apart, or
    /// sampling fails.
    pub fn at(&self, model: &Model, length: usize) -> Result<LengthReport, EvalError> {
        // Texts of equal length are read together, so that none is padded: without a mask, attention takes
        // memory that grows with the length, and not with its square.
        let mut by_tokens: BTreeMap<(usize, usize), Vec<Probe>> = BTreeMap::new();
        for index in 0..self.depths * self.samples {
            let probe = self.probe(length, index)?;
            let tokens = (probe.prompt_ids.len(), probe.answer_ids.len());
            by_tokens.entry(tokens).or_default().push(probe);
        }
        let mut found = vec![0; self.depths];
        for probes in by_tokens.values() {
            for (probe, right) in probes.iter().zip(self.ask(model, probes)?) {
                found[probe.depth] += usize::from(right);
            }
        }
        let depths: Vec<DepthReport> = (0..self.depths)
            .map(|index| DepthReport {
                depth: self.depth(index),
                accuracy: found[index] as f64 / self.samples as f64,
            })
            .collect();
        let accuracy = depths.iter().map(|it| it.accuracy).sum::<f64>() / self.depths as f64;
        Ok(LengthReport {
            length,
            accuracy,
            depths,
        })
    }

    /// Where the number of that depth stands, from 0 (the start) to 1 (the end).
    fn depth(&self, index: usize) -> f64 {
        if self.depths == 1 {
            return 0.5;
        }
        index as f64 / (self.depths - 1) as f64
    }

    /// The text with as much filler as fits.
    fn probe(&self, length: usize, index: usize) -> Result<Probe, EvalError> {
        let depth = index / self.samples;
        let with = |sentences: usize| {
            let passkey = Passkey {
                key: Passkey::key(self.seed, index as u64),
                sentences,
                before: (self.depth(depth) * sentences as f64).round() as usize,
            };
            self.encode(&passkey, depth)
        };
        let tokens = |probe: &Probe| probe.prompt_ids.len() + probe.answer_ids.len();
        let mut best = with(0)?;
        if tokens(&best) > length {
            let needed = tokens(&best);
            return Err(EvalError::TooShort { length, needed });
        }
        // A sentence takes a token at least, so `length` of them never fit.
        let (mut fits, mut too_many) = (0, length);
        while fits + 1 < too_many {
            let middle = usize::midpoint(fits, too_many);
            let probe = with(middle)?;
            if tokens(&probe) <= length {
                (fits, best) = (middle, probe);
            } else {
                too_many = middle;
            }
        }
        Ok(best)
    }

    fn encode(&self, passkey: &Passkey, depth: usize) -> Result<Probe, EvalError> {
        let (question, answer) = (passkey.question(), passkey.answer());
        let plain_ids = self.tokenizer.encode(&question)?;
        let whole_ids = self.tokenizer.encode(&(question.clone() + &answer))?;
        match whole_ids.strip_prefix(&plain_ids[..]) {
            Some(answer_ids) if !answer_ids.is_empty() => Ok(Probe {
                prompt_ids: self.tokenizer.encode_with_special(&question)?,
                answer_ids: answer_ids.to_vec(),
                depth,
            }),
            _ => Err(EvalError::Joined { question, answer }),
        }
    }

    /// Whether each probe, all with the same counts of tokens, is answered.
    fn ask(&self, model: &Model, probes: &[Probe]) -> Result<Vec<bool>, EvalError> {
        let requests: Vec<Request> = probes
            .iter()
            .zip(0..)
            .map(|(probe, episode)| Request {
                prompt_ids: probe.prompt_ids.clone(),
                episode,
            })
            .collect();
        let options = SamplingOptions {
            max_new_tokens: probes[0].answer_ids.len(),
            greedy: true,
            ignore_eos: true,
            purpose: "retrieval",
            max_batch: self.max_batch,
            ..SamplingOptions::default()
        };
        let samples = generate(model, &requests, &options)?;
        let answers = probes.iter().map(|probe| &probe.answer_ids);
        Ok(samples
            .iter()
            .zip(answers)
            .map(|(sample, answer_ids)| sample.output_ids == *answer_ids)
            .collect())
    }
}
