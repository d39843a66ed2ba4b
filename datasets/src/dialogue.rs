//! Dialogues as token ids: which tokens the assistant says, and where its turns lie.

use std::ops::Range;

use crate::error::TokenizerError;
use crate::rows::Message;
use crate::template::Rendered;
use crate::tokenizer::{Tokenizer, WithOffsets};

/// A rendered and encoded dialogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dialogue {
    /// Token ids of the whole dialogue.
    pub ids: Vec<u32>,
    /// True on the tokens the assistant says, the EOS of its turns included.
    pub loss: Vec<bool>,
}

/// Which of a turn's stop tokens ends it.
#[derive(Debug, Clone, Copy)]
enum End {
    /// The first: a sampler would have stopped there.
    First,
    /// The last, which the template writes: what is before it is text.
    Last,
}

impl Tokenizer {
    /// Encodes a dialogue; the assistant's tokens and the EOS that ends each of its turns carry
    /// loss, everything else does not. A template with `{% generation %}` says itself what carries loss.
    ///
    /// # Errors
    /// A template that refuses the dialogue, is not prefix-stable, or ends no turn with EOS.
    pub fn encode_dialogue(&self, messages: &[Message]) -> Result<Dialogue, TokenizerError> {
        let rendered = self.render_marked(messages)?;
        let encoded = self.encode_with_offsets(&rendered.text)?;
        self.dialogue_of(messages, &rendered, encoded)
    }

    /// [`Tokenizer::encode_dialogue`] of messages that are rendered and encoded already.
    pub(crate) fn dialogue_of(
        &self,
        messages: &[Message],
        rendered: &Rendered,
        encoded: WithOffsets,
    ) -> Result<Dialogue, TokenizerError> {
        if let Some(generated) = &rendered.generated {
            return Ok(marked_dialogue(generated, encoded));
        }
        let (ids, spans) = self.turns_of(messages, &rendered.text, encoded, End::First)?;
        let mut loss = vec![false; ids.len()];
        for span in spans {
            loss[span].fill(true);
        }
        Ok(Dialogue { ids, loss })
    }

    /// The tokens that the assistant would have sampled to say `content` after `prompt`, EOS
    /// included.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_dialogue`].
    pub fn encode_response(
        &self,
        prompt: &[Message],
        content: &str,
    ) -> Result<Vec<u32>, TokenizerError> {
        self.encode_last(prompt, content, End::First)
    }

    /// [`Tokenizer::encode_response`] of what the sampler of another tokenizer said: where the text spells
    /// this one's EOS, the turn goes on to the EOS that the template writes.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_dialogue`].
    pub(crate) fn encode_foreign(
        &self,
        prompt: &[Message],
        content: &str,
    ) -> Result<Vec<u32>, TokenizerError> {
        self.encode_last(prompt, content, End::Last)
    }

    fn encode_last(
        &self,
        prompt: &[Message],
        content: &str,
        end: End,
    ) -> Result<Vec<u32>, TokenizerError> {
        let mut messages = prompt.to_vec();
        messages.push(Message::new("assistant", content));
        let text = self.render(&messages, false)?;
        let encoded = self.encode_with_offsets(&text)?;
        let (ids, spans) = self.turns_of(&messages, &text, encoded, end)?;
        let last = spans.last().cloned().unwrap_or_default();
        Ok(ids[last].to_vec())
    }

    /// Token ids, and the tokens of each assistant turn, EOS included.
    fn turns_of(
        &self,
        messages: &[Message],
        text: &str,
        encoded: WithOffsets,
        end: End,
    ) -> Result<(Vec<u32>, Vec<Range<usize>>), TokenizerError> {
        self.require_eos()?;
        let assistant = messages
            .iter()
            .enumerate()
            .filter(|(_, m)| m.is_assistant());
        let turns: Vec<(usize, Range<usize>)> = assistant
            .map(|(k, _)| Ok((k, self.turn_bytes(messages, k, text)?)))
            .collect::<Result<_, TokenizerError>>()?;
        let cuts: Vec<usize> = turns.iter().map(|(_, bytes)| bytes.start).collect();
        let (ids, offsets) = self.with_cuts(text, &cuts, encoded)?;
        let mut spans = Vec::with_capacity(turns.len());
        for (k, bytes) in turns {
            let start = offsets.partition_point(|&(from, _)| from < bytes.start);
            let behind = offsets.partition_point(|&(from, _)| from < bytes.end);
            let is_end = |id: &u32| self.stop_ids().contains(id);
            let turn = &ids[start..behind];
            let eos = match end {
                End::First => turn.iter().position(is_end),
                End::Last => turn.iter().rposition(is_end),
            };
            let eos = eos.ok_or_else(|| TokenizerError::NoEos {
                message: k,
                eos: self.eos_token().to_owned(),
                turn: text[bytes].to_owned(),
            })?;
            spans.push(start..start + eos + 1);
        }
        Ok((ids, spans))
    }

    /// Where assistant message `k` stands in the rendered `text`, by rendering what is before it
    /// (with the generation prompt) and what is up to it.
    fn turn_bytes(
        &self,
        messages: &[Message],
        k: usize,
        text: &str,
    ) -> Result<Range<usize>, TokenizerError> {
        let before = self.render(&messages[..k], true)?;
        let through = self.render(&messages[..=k], false)?;
        for (prefix, longer) in [(&before, through.as_str()), (&through, text)] {
            if !longer.starts_with(prefix.as_str()) {
                return Err(not_stable(k, prefix, longer));
            }
        }
        Ok(before.len()..through.len())
    }

    /// The encoding of `text`, changed such that no token spans a cut: what lies before a cut is
    /// what a sampler has been given, so its tokens must not depend on what follows.
    fn with_cuts(
        &self,
        text: &str,
        cuts: &[usize],
        encoded: WithOffsets,
    ) -> Result<WithOffsets, TokenizerError> {
        let spans = |cut: usize| encoded.1.iter().any(|&(from, to)| from < cut && cut < to);
        let Some(&cut) = cuts.iter().find(|&&cut| spans(cut)) else {
            return Ok(encoded);
        };
        let (mut ids, mut offsets) = self.encode_with_offsets(&text[..cut])?;
        let rest = &text[cut..];
        let later: Vec<usize> = cuts.iter().filter(|&&c| c > cut).map(|c| c - cut).collect();
        let (rest_ids, rest_offsets) =
            self.with_cuts(rest, &later, self.encode_with_offsets(rest)?)?;
        ids.extend(rest_ids);
        offsets.extend(
            rest_offsets
                .into_iter()
                .map(|(from, to)| (from + cut, to + cut)),
        );
        Ok((ids, offsets))
    }
}

/// The dialogue of a template that marks itself what the assistant says: a token carries loss where a
/// part of it is marked, which is transformers' `return_assistant_tokens_mask`.
fn marked_dialogue(generated: &[Range<usize>], (ids, offsets): WithOffsets) -> Dialogue {
    let is_marked = |&(from, to): &(usize, usize)| {
        let overlaps = |bytes: &Range<usize>| from < bytes.end && bytes.start < to;
        generated.iter().any(overlaps)
    };
    let loss = offsets.iter().map(is_marked).collect();
    Dialogue { ids, loss }
}

/// Shows both texts from a little before the place where they part.
fn not_stable(message: usize, expected: &str, found: &str) -> TokenizerError {
    let same = expected
        .bytes()
        .zip(found.bytes())
        .take_while(|(a, b)| a == b)
        .count();
    let excerpt = |text: &str| {
        let mut skipped = 0;
        let tail = text.chars().skip_while(|c| {
            skipped += c.len_utf8();
            skipped + 20 < same
        });
        tail.take(60).collect()
    };
    TokenizerError::NotPrefixStable {
        message,
        expected: excerpt(expected),
        found: excerpt(found),
    }
}
