//! Rows as training examples: token ids with what each stage needs to know about them.

use serde::{Deserialize, Serialize};

use crate::dialogue::Dialogue;
use crate::error::DataError;
use crate::fit::{fit_dialogue, fit_prompt};
use crate::parallel;
use crate::rows::{Comparison, Demonstration, Message, Prompt};
use crate::stats::Lengths;
use crate::tokenizer::Tokenizer;

/// What happens to an example that is longer than its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlong {
    /// Stop, naming the example.
    Error,
    /// Leave it out, and count it.
    Drop,
    /// Shorten it from the left, and count it: whole messages first, then tokens.
    Left,
}

/// Examples that were too long.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlongCount {
    /// Left out.
    pub dropped: usize,
    /// Shortened.
    pub truncated: usize,
}

/// A dialogue to be imitated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SftExample {
    /// Token ids.
    pub ids: Vec<u32>,
    /// True on what the assistant says, the EOS of its turns included.
    pub loss: Vec<bool>,
}

/// The responses to one prompt, with the judged pairs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComparisonExample {
    /// The comparison's id.
    pub id: String,
    /// Prompt, response and EOS, one row per response; all rows begin with the same prompt.
    pub responses: Vec<Vec<u32>>,
    /// Tokens of the prompt.
    pub prompt_len: usize,
    /// `(better, worse)` indices of responses.
    pub pairs: Vec<(usize, usize)>,
    /// Pairs of responses that are equally good.
    pub ties: usize,
}

/// A prompt to be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptExample {
    /// The prompt's id.
    pub id: String,
    /// Token ids, the generation prompt at their end.
    pub ids: Vec<u32>,
    /// The messages behind the ids, shortened as they are.
    pub messages: Vec<Message>,
}

/// What became of one row.
enum Outcome<T> {
    Fits(T),
    Truncated(T),
    Dropped,
}

/// What the rows are and what limits them, for errors.
#[derive(Clone, Copy)]
struct Limit {
    tokens: usize,
    overlong: Overlong,
    knob: &'static str,
}

impl Limit {
    /// The error or outcome of an example that is too long and not to be shortened; `None` when
    /// it is to be shortened.
    fn refuse<T>(self, id: &str, tokens: usize) -> Option<Result<Outcome<T>, DataError>> {
        match self.overlong {
            Overlong::Error => Some(Err(DataError::Overlong {
                id: id.to_owned(),
                tokens,
                limit: self.tokens,
                knob: self.knob,
            })),
            Overlong::Drop => Some(Ok(Outcome::Dropped)),
            Overlong::Left => None,
        }
    }

    /// Makes all examples in parallel, in the order of the rows, and counts.
    fn make<R: Sync, T: Send>(
        self,
        kind: &'static str,
        rows: &[R],
        make: impl Fn(&R) -> Result<Outcome<T>, DataError> + Sync + Send,
        length: impl Fn(&T) -> usize,
    ) -> Result<(Vec<T>, OverlongCount), DataError> {
        let outcomes = parallel::try_map(rows, make)?;
        let mut count = OverlongCount::default();
        let mut examples = Vec::with_capacity(outcomes.len());
        for outcome in outcomes {
            match outcome {
                Outcome::Fits(example) => examples.push(example),
                Outcome::Truncated(example) => {
                    count.truncated += 1;
                    examples.push(example);
                }
                Outcome::Dropped => count.dropped += 1,
            }
        }
        if examples.is_empty() {
            let (limit, knob) = (self.tokens, self.knob);
            return Err(DataError::NothingLeft {
                examples: rows.len(),
                kind,
                limit,
                knob,
            });
        }
        let lengths: Vec<usize> = examples.iter().map(length).collect();
        let lengths = Lengths::of(&lengths)?;
        tracing::info!(
            kind,
            examples = lengths.count,
            tokens = lengths.total,
            median = lengths.p50,
            p99 = lengths.p99,
            max = lengths.max,
            dropped = count.dropped,
            truncated = count.truncated,
            "tokenized"
        );
        Ok((examples, count))
    }
}

/// Demonstrations as token ids of at most `context` tokens.
///
/// # Errors
/// A template that refuses a dialogue or ends no turn with EOS; a demonstration without an
/// assistant's message; one that is too long, under [`Overlong::Error`]; none left.
pub fn sft_examples(
    demonstrations: &[Demonstration],
    tokenizer: &Tokenizer,
    context: usize,
    overlong: Overlong,
) -> Result<(Vec<SftExample>, OverlongCount), DataError> {
    let limit = Limit {
        tokens: context,
        overlong,
        knob: "`context`",
    };
    let make = |row: &Demonstration| sft_example(row, tokenizer, limit);
    limit.make("demonstrations", demonstrations, make, |example| {
        example.ids.len()
    })
}

fn sft_example(
    row: &Demonstration,
    tokenizer: &Tokenizer,
    limit: Limit,
) -> Result<Outcome<SftExample>, DataError> {
    if !row.messages.iter().any(Message::is_assistant) {
        return Err(DataError::NoLoss { id: row.id.clone() });
    }
    let in_example = |source| DataError::Example {
        id: row.id.clone(),
        source,
    };
    // Finding the turns renders every prefix, so a long dialogue is measured first.
    let rendered = tokenizer.render_marked(&row.messages).map_err(in_example)?;
    let encoded = tokenizer
        .encode_with_offsets(&rendered.text)
        .map_err(in_example)?;
    let mut tokens = encoded.0.len();
    if tokens <= limit.tokens {
        let dialogue = tokenizer
            .dialogue_of(&row.messages, &rendered, encoded)
            .map_err(in_example)?;
        tokens = dialogue.ids.len();
        if tokens <= limit.tokens {
            if !is_learned(&dialogue) {
                return Err(DataError::NoLoss { id: row.id.clone() });
            }
            return Ok(Outcome::Fits(SftExample {
                ids: dialogue.ids,
                loss: dialogue.loss,
            }));
        }
    }
    if let Some(refused) = limit.refuse(&row.id, tokens) {
        return refused;
    }
    let short = fit_dialogue(tokenizer, &row.messages, limit.tokens).map_err(in_example)?;
    if !is_learned(&short) {
        return Ok(Outcome::Dropped);
    }
    Ok(Outcome::Truncated(SftExample {
        ids: short.ids,
        loss: short.loss,
    }))
}

/// The first token is never predicted; without any other loss nothing would be learned.
fn is_learned(dialogue: &Dialogue) -> bool {
    dialogue.loss.iter().skip(1).any(|&learned| learned)
}

/// Comparisons as token ids, at most `context` tokens for prompt, response and EOS together, with
/// the number of ties in all. A comparison of which only ties remain has no pairs.
///
/// # Errors
/// As [`sft_examples`].
pub fn comparison_examples(
    comparisons: &[Comparison],
    tokenizer: &Tokenizer,
    context: usize,
    overlong: Overlong,
) -> Result<(Vec<ComparisonExample>, OverlongCount, usize), DataError> {
    let limit = Limit {
        tokens: context,
        overlong,
        knob: "`context`",
    };
    let make = |row: &Comparison| comparison_example(row, tokenizer, limit);
    let longest = |e: &ComparisonExample| e.responses.iter().map(Vec::len).max().unwrap_or(0);
    let (examples, count) = limit.make("comparisons", comparisons, make, longest)?;
    let ties = examples.iter().map(|example| example.ties).sum();
    Ok((examples, count, ties))
}

fn comparison_example(
    row: &Comparison,
    tokenizer: &Tokenizer,
    limit: Limit,
) -> Result<Outcome<ComparisonExample>, DataError> {
    let in_example = |source| DataError::Example {
        id: row.id.clone(),
        source,
    };
    let responses: Vec<Vec<u32>> = row
        .responses
        .iter()
        .map(|response| tokenizer.encode_response(&row.prompt, &response.content))
        .collect::<Result<_, _>>()
        .map_err(in_example)?;
    let longest = responses.iter().map(Vec::len).max().unwrap_or(0);
    let (pairs, ties) = row.ordered_pairs();
    let example = |prompt: &[u32]| ComparisonExample {
        id: row.id.clone(),
        responses: responses
            .iter()
            .map(|response| [prompt, response].concat())
            .collect(),
        prompt_len: prompt.len(),
        pairs,
        ties,
    };
    let prompt = tokenizer.encode_prompt(&row.prompt).map_err(in_example)?;
    let tokens = prompt.len() + longest;
    if tokens <= limit.tokens {
        return Ok(Outcome::Fits(example(&prompt)));
    }
    if let Some(refused) = limit.refuse(&row.id, tokens) {
        return refused;
    }
    let room = limit.tokens.saturating_sub(longest);
    match fit_prompt(tokenizer, &row.prompt, prompt.len(), room).map_err(in_example)? {
        Some(short) => Ok(Outcome::Truncated(example(&short.ids))),
        None => Ok(Outcome::Dropped),
    }
}

/// Prompts as token ids of at most `max_prompt_tokens`, the generation prompt included.
///
/// # Errors
/// As [`sft_examples`].
pub fn prompt_examples(
    prompts: &[Prompt],
    tokenizer: &Tokenizer,
    max_prompt_tokens: usize,
    overlong: Overlong,
) -> Result<(Vec<PromptExample>, OverlongCount), DataError> {
    let limit = Limit {
        tokens: max_prompt_tokens,
        overlong,
        knob: "`max_prompt_tokens`",
    };
    let make = |row: &Prompt| prompt_example(row, tokenizer, limit);
    limit.make("prompts", prompts, make, |example| example.ids.len())
}

fn prompt_example(
    row: &Prompt,
    tokenizer: &Tokenizer,
    limit: Limit,
) -> Result<Outcome<PromptExample>, DataError> {
    let in_example = |source| DataError::Example {
        id: row.id.clone(),
        source,
    };
    let ids = tokenizer.encode_prompt(&row.messages).map_err(in_example)?;
    let example = |ids, messages| PromptExample {
        id: row.id.clone(),
        ids,
        messages,
    };
    let tokens = ids.len();
    if tokens <= limit.tokens {
        return Ok(Outcome::Fits(example(ids, row.messages.clone())));
    }
    if let Some(refused) = limit.refuse(&row.id, tokens) {
        return refused;
    }
    match fit_prompt(tokenizer, &row.messages, tokens, limit.tokens).map_err(in_example)? {
        Some(short) => Ok(Outcome::Truncated(example(short.ids, short.messages))),
        None => Ok(Outcome::Dropped),
    }
}

#[cfg(test)]
#[path = "examples_tests.rs"]
mod tests;
