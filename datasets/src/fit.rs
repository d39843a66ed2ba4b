//! Shortening dialogues from the left until they fit: whole messages first, so that what remains
//! is still a dialogue as the template writes it.

use crate::dialogue::Dialogue;
use crate::error::TokenizerError;
use crate::rows::Message;
use crate::tokenizer::Tokenizer;

/// A prompt that fits.
pub(crate) struct ShortPrompt {
    pub ids: Vec<u32>,
    pub messages: Vec<Message>,
}

/// A prompt of `tokens` tokens, more than `limit`, without its oldest messages (a system message
/// stays), and if its last message alone is too long, without the beginning of that. The
/// generation prompt always stays. `None` when not even an empty last message fits.
pub(crate) fn fit_prompt(
    tokenizer: &Tokenizer,
    messages: &[Message],
    mut tokens: usize,
    limit: usize,
) -> Result<Option<ShortPrompt>, TokenizerError> {
    let tails = shorter_dialogues(messages);
    let encode = |messages: &[Message]| tokenizer.encode_prompt(messages);
    let fits = |ids: &Vec<u32>| ids.len() <= limit;
    if let Some((ids, messages)) = longest_that_fits(&tails, encode, fits)? {
        return Ok(Some(ShortPrompt { ids, messages }));
    }
    let mut messages = messages.to_vec();
    if let Some(shortest) = tails.into_iter().next_back() {
        tokens = tokenizer.encode_prompt(&shortest)?.len();
        messages = shortest;
    }
    while let Some(last) = messages.last_mut().filter(|last| !last.content.is_empty()) {
        last.content = without_first_tokens(tokenizer, &last.content, tokens - limit)?;
        let ids = tokenizer.encode_prompt(&messages)?;
        if ids.len() <= limit {
            return Ok(Some(ShortPrompt { ids, messages }));
        }
        tokens = ids.len();
    }
    Ok(None)
}

/// A dialogue that is too long, without its oldest messages (a system message stays), and if its
/// last turns alone are too long, without their first tokens.
pub(crate) fn fit_dialogue(
    tokenizer: &Tokenizer,
    messages: &[Message],
    limit: usize,
) -> Result<Dialogue, TokenizerError> {
    let mut tails = shorter_dialogues(messages);
    tails.retain(|tail| tail.iter().any(Message::is_assistant));
    let encode = |messages: &[Message]| tokenizer.encode(&tokenizer.render(messages, false)?);
    let fits = |ids: &Vec<u32>| ids.len() <= limit;
    let found = longest_that_fits(&tails, encode, fits)?;
    let shortest = || tails.last().map_or(messages, Vec::as_slice);
    let chosen = found
        .as_ref()
        .map_or_else(shortest, |(_, messages)| messages.as_slice());
    let mut dialogue = tokenizer.encode_dialogue(chosen)?;
    let excess = dialogue.ids.len().saturating_sub(limit);
    dialogue.ids.drain(..excess);
    dialogue.loss.drain(..excess);
    Ok(dialogue)
}

/// The ever shorter tails of a dialogue, each beginning with a user's message, after the system
/// message, if there is one. The whole is not among them.
fn shorter_dialogues(messages: &[Message]) -> Vec<Vec<Message>> {
    let num_system = messages.iter().take_while(|m| m.role == "system").count();
    let (system, turns) = messages.split_at(num_system);
    let starts = (1..turns.len()).filter(|&start| turns[start].role == "user");
    starts
        .map(|start| [system, &turns[start..]].concat())
        .collect()
}

/// The first candidate that fits; lengths fall from one candidate to the next, so a binary search
/// finds it in few encodings.
fn longest_that_fits<T>(
    candidates: &[Vec<Message>],
    encode: impl Fn(&[Message]) -> Result<T, TokenizerError>,
    fits: impl Fn(&T) -> bool,
) -> Result<Option<(T, Vec<Message>)>, TokenizerError> {
    let (mut low, mut high) = (0, candidates.len());
    let mut found = None;
    while low < high {
        let middle = usize::midpoint(low, high);
        let encoded = encode(&candidates[middle])?;
        if fits(&encoded) {
            found = Some((encoded, candidates[middle].clone()));
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Ok(found)
}

/// `text` without its first `count` tokens (at least without its first character).
fn without_first_tokens(
    tokenizer: &Tokenizer,
    text: &str,
    count: usize,
) -> Result<String, TokenizerError> {
    let (_, offsets) = tokenizer.encode_with_offsets(text)?;
    let first = text.chars().next().map_or(0, char::len_utf8);
    let mut start = offsets
        .get(count)
        .map_or(text.len(), |&(from, _)| from)
        .max(first);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    Ok(text[start..].trim_start().to_owned())
}
