//! What frozen models and the critic say of episodes: scores, log-probabilities under the reference, values.

use datasets::Overlong;
use judge::likelihood::of_responses;
use recipe::plan::EosRule;

use crate::PpoError;
use crate::data::Models;
use crate::rollout::{Episode, pairs, response_values};

/// How episodes are scored.
#[derive(Debug, Clone, Copy)]
pub struct ScoreOptions {
    /// What becomes of the score of a response that made no EOS.
    pub eos_rule: EosRule,
    /// What happens where a reward model of another tokenizer cannot hold prompt and response:
    /// [`Overlong::Error`] stops, the others shorten the prompt.
    pub overlong: Overlong,
    /// Rows per forward pass, at most.
    pub micro_batch: usize,
}

/// Scores by the reward models: `score_raw`, and `score` after each model's normalising shift and
/// the EOS rule.
///
/// A response that was cut off is scored with EOS behind it: a reward model has learned to read its
/// score at the end of a turn, and at any other token its number has no meaning.
///
/// # Errors
/// Where a reward model fails.
pub fn score(
    models: &Models,
    episodes: &mut [Episode],
    options: &ScoreOptions,
) -> Result<(), PpoError> {
    for (index, reward) in models.rewards.iter().enumerate() {
        let _whole = reward.judge.model().whole()?;
        let (raw, num_shortened) = reward.score(episodes, &models.tokenizer, options)?;
        if num_shortened > 0 {
            tracing::warn!(
                "reward[{index}]: {num_shortened} of {} prompts were shortened to fit into it",
                episodes.len()
            );
        }
        for (episode, raw) in episodes.iter_mut().zip(raw) {
            episode.score_raw += reward.weight * raw;
            episode.score += reward.weight * reward.judge.model().normalized(raw);
        }
    }
    for episode in episodes.iter_mut().filter(|e| !e.has_eos) {
        episode.score = options.eos_rule.without_eos(episode.score);
    }
    Ok(())
}

/// Log-probabilities under the reference, for every response token.
///
/// # Errors
/// Where the model is divided and another rank fails.
pub fn reference_logprobs(
    models: &Models,
    episodes: &mut [Episode],
    temperature: f64,
    micro_batch: usize,
) -> Result<(), PpoError> {
    let _whole = models.reference.whole()?;
    let rows = judge::response_logprobs(
        &models.reference,
        &pairs(episodes),
        models.tokenizer.pad_id(),
        temperature,
        micro_batch,
    );
    for (episode, row) in episodes.iter_mut().zip(rows) {
        episode.reference_logprobs = row;
    }
    Ok(())
}

/// Values before each response token, by a value model of its own.
///
/// # Errors
/// As [`reference_logprobs`].
pub fn values(
    models: &Models,
    episodes: &mut [Episode],
    micro_batch: usize,
) -> Result<(), PpoError> {
    let _whole = models.value.whole()?;
    let rows = of_responses(
        &models.value,
        &pairs(episodes),
        models.tokenizer.pad_id(),
        micro_batch,
        |value, hidden_btd, _, start| response_values(value, hidden_btd, start),
    );
    for (episode, row) in episodes.iter_mut().zip(rows) {
        episode.values = row;
    }
    Ok(())
}
