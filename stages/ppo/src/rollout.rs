//! Episodes: collected, scored, shaped, and estimated.
//!
//! The invariant of every response-shaped tensor: *column r is the token made at step r; its
//! log-probability comes from the logits one position earlier* (that off-by-one lives in
//! `model::losses`). Prompts are padded on the left, so that all responses start in one column.
//!
//! Shapes: `b` episodes, `t` columns of prompt and response, `r` response columns.

use datasets::collate::{PromptExample, pad_pairs};
use datasets::{Message, Reply};
use generation::{Finish, Request, Sample, SamplingOptions};
use judge::likelihood::truncated;
use model::{Input, Model};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use torch_ext::wide_kind;
use trainer::Ranks;

use crate::PpoError;
use crate::advantage::{Moments, gae, token_rewards, whiten};
use crate::data::Models;

/// One episode: a prompt, the response that the policy made, and all that was computed of it.
/// The lists have the response's true length, its EOS included.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Episode {
    /// The prompt's id.
    pub id: String,
    /// The prompt's messages, as they were encoded.
    pub prompt: Vec<Message>,
    /// The episode's number, counted over the whole run; the key of its randomness.
    pub episode: u64,
    /// The prompt's tokens.
    pub prompt_ids: Vec<u32>,
    /// The response's tokens.
    pub response_ids: Vec<u32>,
    /// The prompt's text.
    pub prompt_text: String,
    /// The response's text.
    pub response_text: String,
    /// The response ended itself.
    pub has_eos: bool,
    /// The reward models' weighted sum.
    pub score_raw: f64,
    /// The same after normalisation and the EOS rule.
    pub score: f64,
    /// The response token that carries the score.
    pub score_index: usize,
    /// Log-probabilities under the policy, as sampled.
    pub logprobs: Vec<f64>,
    /// Log-probabilities under the reference.
    pub reference_logprobs: Vec<f64>,
    /// Values before each token.
    pub values: Vec<f64>,
    /// Rewards of each token.
    pub rewards: Vec<f64>,
    /// Advantages before whitening.
    pub advantages: Vec<f64>,
    /// Returns.
    pub returns: Vec<f64>,
}

impl Episode {
    /// KL to the reference by the k1 estimator: the sum of `ln pi - ln pi_ref` (nats).
    pub fn kl(&self) -> f64 {
        self.log_ratios().sum()
    }

    /// KL by the k3 estimator, `sum of exp(-d) - 1 + d` with `d = ln pi - ln pi_ref`: never negative.
    pub fn kl_k3(&self) -> f64 {
        self.log_ratios().map(|d| (-d).exp() - 1.0 + d).sum()
    }

    /// Prompt and response, whose last token is EOS also where the response was cut off.
    pub(crate) fn ended(&self, eos_id: u32) -> Vec<u32> {
        let eos = (!self.has_eos).then_some(eos_id);
        let ids = self.prompt_ids.iter().chain(&self.response_ids).copied();
        ids.chain(eos).collect()
    }

    /// What a reward model of another tokenizer is shown.
    pub(crate) fn reply(&self) -> Reply<'_> {
        Reply {
            id: &self.id,
            prompt: &self.prompt,
            content: &self.response_text,
        }
    }

    fn log_ratios(&self) -> impl Iterator<Item = f64> {
        self.logprobs
            .iter()
            .zip(&self.reference_logprobs)
            .map(|(pi, reference)| pi - reference)
    }
}

/// The tensors of a set of episodes, ready for a forward pass.
pub struct EpisodeBatch {
    /// Prompts (left-padded) and responses (right-padded), with their mask.
    pub input: Input,
    /// First response column.
    pub response_start: i64,
    /// 1 on response tokens.
    pub mask_br: Tensor,
    /// Behaviour log-probabilities.
    pub logprobs_br: Tensor,
    /// Values at the time of sampling.
    pub values_br: Tensor,
    /// Advantages as the update uses them.
    pub advantages_br: Tensor,
    /// Returns.
    pub returns_br: Tensor,
}

/// Samples one response per prompt, each with the number of its episode. Where values come from a head on the
/// policy's trunk, the pass that samples gives them, too.
///
/// # Errors
/// Where sampling or decoding fails.
pub fn collect(
    models: &Models,
    prompts: &[(PromptExample, u64)],
    options: &SamplingOptions,
) -> Result<Vec<Episode>, PpoError> {
    let requests: Vec<Request> = prompts
        .iter()
        .map(|(prompt, episode)| Request {
            prompt_ids: prompt.ids.clone(),
            episode: *episode,
        })
        .collect();
    let _whole = models.policy.whole()?;
    let samples = if models.value_on_trunk {
        generation::generate_with_values(&models.policy, &models.value, &requests, options)?
    } else {
        generation::generate(&models.policy, &requests, options)?
    };
    let with_prompts = prompts.iter().zip(samples);
    with_prompts
        .map(|((prompt, episode), sample)| new_episode(models, prompt, *episode, sample))
        .collect()
}

/// This rank's share of prompts whose episodes are numbered from `first_episode`.
pub fn share(
    ranks: &Ranks,
    prompts: Vec<PromptExample>,
    first_episode: u64,
) -> Vec<(PromptExample, u64)> {
    let mut numbered: Vec<_> = prompts.into_iter().zip(first_episode..).collect();
    numbered.sort_by_key(|(prompt, _)| prompt.ids.len());
    ranks.share(&numbered)
}

/// The episodes of all ranks, by number.
///
/// # Errors
/// Where another rank fails.
pub fn gather(ranks: &Ranks, own: Vec<Episode>) -> Result<Vec<Episode>, PpoError> {
    let mut all = ranks.gather(own)?;
    all.sort_by_key(|episode| episode.episode);
    Ok(all)
}

fn new_episode(
    models: &Models,
    prompt: &PromptExample,
    episode: u64,
    sample: Sample,
) -> Result<Episode, PpoError> {
    let shift = models.value.reward_shift;
    Ok(Episode {
        id: prompt.id.clone(),
        prompt: prompt.messages.clone(),
        episode,
        prompt_ids: prompt.ids.clone(),
        prompt_text: models.tokenizer.decode(&prompt.ids)?,
        response_text: models.tokenizer.decode(&sample.output_ids)?,
        has_eos: sample.finish == Finish::Stop,
        score_index: sample.output_ids.len().saturating_sub(1),
        response_ids: sample.output_ids,
        logprobs: sample.logprobs,
        values: sample.values.iter().map(|v| v + shift).collect(),
        score_raw: 0.0,
        score: 0.0,
        reference_logprobs: Vec::new(),
        rewards: Vec::new(),
        advantages: Vec::new(),
        returns: Vec::new(),
    })
}

/// The value before token r stands where the logits of token r do: one position earlier. It predicts
/// the normalised score, so it carries its reward model's shift; without it the critic would begin
/// wrong by that constant, and clipped value updates would take many iterations to close the gap.
pub fn response_values(value: &Model, hidden_btd: &Tensor, response_start: i64) -> Tensor {
    let num_response = hidden_btd.size()[1] - response_start;
    value.scalar(&hidden_btd.narrow(1, response_start - 1, num_response)) + value.reward_shift
}

/// Rewards, advantages and returns of every episode, in `f64`.
pub fn estimate(episodes: &mut [Episode], kl_coef: f64, gamma: f64, lambda: f64) {
    let mask_br = response_mask(episodes, (Kind::Double, Device::Cpu));
    let column = |f: fn(&Episode) -> &[f64]| response_tensor(episodes, f);
    let (logprobs_br, reference_br, values_br) = (
        column(|e| &e.logprobs),
        column(|e| &e.reference_logprobs),
        column(|e| &e.values),
    );
    let score_b = Tensor::from_slice(&episodes.iter().map(|e| e.score).collect::<Vec<_>>());
    let index_b = episodes
        .iter()
        .map(|e| e.score_index as i64)
        .collect::<Vec<_>>();
    let index_b = Tensor::from_slice(&index_b);
    let rewards_br = token_rewards(
        &logprobs_br,
        &reference_br,
        &mask_br,
        &score_b,
        &index_b,
        kl_coef,
    );
    let (advantages_br, returns_br) = gae(&rewards_br, &values_br, &mask_br, gamma, lambda);
    let lengths: Vec<usize> = episodes.iter().map(|e| e.response_ids.len()).collect();
    let rows = |x_br: &Tensor| truncated(x_br, lengths.iter().copied());
    let columns = rows(&rewards_br)
        .into_iter()
        .zip(rows(&advantages_br))
        .zip(rows(&returns_br));
    for (episode, ((rewards, advantages), returns)) in episodes.iter_mut().zip(columns) {
        (episode.rewards, episode.advantages, episode.returns) = (rewards, advantages, returns);
    }
}

/// The tensors of some episodes for the update of `model`; advantages are whitened by the given
/// moments, or stay as they are.
pub fn to_batch(
    episodes: &[Episode],
    pad_id: u32,
    model: &Model,
    whitening: Option<&Moments>,
) -> EpisodeBatch {
    let (input, response_start) = model_input(episodes, pad_id, model);
    let options = (wide_kind(model.kind()), model.device());
    let column = |f: fn(&Episode) -> &[f64]| {
        response_tensor(episodes, f)
            .to_device(options.1)
            .to_kind(options.0)
    };
    let mask_br = response_mask(episodes, options);
    let advantages_br = column(|e| &e.advantages);
    let advantages_br = match whitening {
        Some(moments) => whiten(&advantages_br, &mask_br, moments),
        None => advantages_br,
    };
    EpisodeBatch {
        input,
        response_start,
        advantages_br,
        logprobs_br: column(|e| &e.logprobs),
        values_br: column(|e| &e.values),
        returns_br: column(|e| &e.returns),
        mask_br,
    }
}

pub(crate) fn pairs(episodes: &[Episode]) -> Vec<(&[u32], &[u32])> {
    episodes
        .iter()
        .map(|e| (&e.prompt_ids[..], &e.response_ids[..]))
        .collect()
}

fn model_input(episodes: &[Episode], pad_id: u32, model: &Model) -> (Input, i64) {
    let (padded, start) = pad_pairs(&pairs(episodes), pad_id);
    let start = start as i64;
    let input = Input::from_padded(&padded, model.device()).wanted_from(start - 1);
    (input, start)
}

fn longest_response(episodes: &[Episode]) -> usize {
    episodes
        .iter()
        .map(|e| e.response_ids.len())
        .max()
        .unwrap_or(0)
}

/// 1 on the tokens that each episode made, 0 behind them.
pub fn response_mask(episodes: &[Episode], options: (Kind, Device)) -> Tensor {
    let lengths: Vec<i64> = episodes
        .iter()
        .map(|e| e.response_ids.len() as i64)
        .collect();
    let lengths_b1 = Tensor::from_slice(&lengths).unsqueeze(1);
    let columns_r = Tensor::arange(
        longest_response(episodes) as i64,
        (Kind::Int64, Device::Cpu),
    );
    columns_r
        .unsqueeze(0)
        .lt_tensor(&lengths_b1)
        .to_device(options.1)
        .to_kind(options.0)
}

/// A list of each episode as rows of one tensor, 0 behind their ends; `f64` on the CPU.
pub fn response_tensor(episodes: &[Episode], f: fn(&Episode) -> &[f64]) -> Tensor {
    let num_columns = longest_response(episodes);
    let mut flat = vec![0.0; episodes.len() * num_columns];
    for (row, episode) in flat.chunks_mut(num_columns.max(1)).zip(episodes) {
        row[..f(episode).len()].copy_from_slice(f(episode));
    }
    Tensor::from_slice(&flat).view([episodes.len() as i64, num_columns as i64])
}
