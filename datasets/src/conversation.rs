//! A conversation of two people, and what can be learned from it.

use crate::rows::{Demonstration, Message, Prompt, Text};
use crate::tokenizer_train::SPECIAL_TOKENS;

/// Shorter conversations hardly got started.
const MIN_TURNS: usize = 4;
/// Messages of a demonstration, at most: two exchanges. Conversations of hundreds of turns would
/// otherwise be cut to what a context holds, their last words.
const DEMONSTRATION_MESSAGES: usize = 4;

/// What two people said, in turns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conversation {
    pub id: String,
    pub source: &'static str,
    pub turns: Vec<String>,
}

impl Conversation {
    /// Why it is left out, if it is.
    pub fn flaw(&self) -> Option<&'static str> {
        let holds_special = |turn: &String| SPECIAL_TOKENS.iter().any(|token| turn.contains(token));
        if self.turns.len() < MIN_TURNS {
            Some("fewer than 4 turns")
        } else if self.turns.iter().any(holds_special) {
            Some("contains a special token")
        } else {
            None
        }
    }

    /// The turns from `side` on (0 or 1), the first of them the user's.
    fn messages(&self, side: usize) -> Vec<Message> {
        let roles = ["user", "assistant"].into_iter().cycle();
        self.turns[side..]
            .iter()
            .zip(roles)
            .map(|(turn, role)| Message::new(role, turn))
            .collect()
    }

    /// The whole as a document, written as our chat template writes it, so that a base model
    /// learns the format of dialogue with the language.
    pub fn text(&self) -> Text {
        let mut text = String::new();
        for message in self.messages(0) {
            text.extend(["<|", &message.role, "|>", &message.content, "<|endoftext|>"]);
        }
        Text {
            id: self.id.clone(),
            text,
            source: self.source.to_owned(),
        }
    }

    /// Both speakers to be imitated: once the second one is the assistant, once the first one.
    /// Cut into pieces, so that every turn is learned from however long the conversation is.
    pub fn demonstrations(&self) -> Vec<Demonstration> {
        let mut demonstrations = Vec::new();
        for side in 0..2 {
            let messages = self.messages(side);
            for (piece, dialogue) in messages.chunks(DEMONSTRATION_MESSAGES).enumerate() {
                // What the user says last has no answer to learn from.
                let answered = dialogue.len() - dialogue.len() % 2;
                if answered > 0 {
                    let id = format!("{}/{side}/{piece}", self.id);
                    let messages = dialogue[..answered].to_vec();
                    demonstrations.push(Demonstration { id, messages });
                }
            }
        }
        demonstrations
    }

    /// A prompt before every turn but the first: the last `prompt_turns` messages before it.
    pub fn prompts(&self, prompt_turns: usize) -> Vec<Prompt> {
        let prompt = |turn: usize| {
            let side = 1 - turn % 2;
            let first = turn.saturating_sub(prompt_turns).max(side);
            let role = |t: usize| {
                if (t - side).is_multiple_of(2) {
                    "user"
                } else {
                    "assistant"
                }
            };
            let message = |t: usize| Message::new(role(t), &self.turns[t]);
            let messages = (first..turn).map(message).collect();
            Prompt {
                id: format!("{}/{side}/{turn}", self.id),
                messages,
            }
        };
        (1..self.turns.len()).map(prompt).collect()
    }
}

#[cfg(test)]
#[path = "conversation_tests.rs"]
mod tests;
