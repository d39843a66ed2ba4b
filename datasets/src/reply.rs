//! Replies as a reward model reads them whose tokenizer is another than their author's.

use crate::error::DataError;
use crate::examples::Overlong;
use crate::fit::fit_prompt;
use crate::parallel;
use crate::rows::Message;
use crate::tokenizer::Tokenizer;

/// A reply that is to be scored.
#[derive(Debug, Clone, Copy)]
pub struct Reply<'a> {
    /// The prompt's id, for errors.
    pub id: &'a str,
    /// What is answered.
    pub prompt: &'a [Message],
    /// The answer's text, without special tokens.
    pub content: &'a str,
}

/// Each reply behind its prompt, written by the tokenizer's own template as for the training of a reward
/// model ([`crate::comparison_examples`]): one row of ids, of at most `context` tokens, whose last is this
/// tokenizer's EOS. The template closes every turn, also that of a reply that was cut off, and an EOS that is
/// spelled within a reply ends nothing. Returned with the number of rows whose prompt had to be
/// shortened from the left.
///
/// # Errors
/// A template that refuses a dialogue, or ends no turn with EOS; a row that is too long, under
/// [`Overlong::Error`] or where the reply alone is.
pub fn reply_rows(
    replies: &[Reply<'_>],
    tokenizer: &Tokenizer,
    context: usize,
    overlong: Overlong,
) -> Result<(Vec<Vec<u32>>, usize), DataError> {
    let row = |reply: &Reply<'_>| reply.row(tokenizer, context, overlong);
    let rows = parallel::try_map(replies, row)?;
    let num_shortened = rows
        .iter()
        .filter(|(_, is_shortened)| *is_shortened)
        .count();
    Ok((
        rows.into_iter().map(|(ids, _)| ids).collect(),
        num_shortened,
    ))
}

impl Reply<'_> {
    /// The row, and whether its prompt was shortened.
    fn row(
        &self,
        tokenizer: &Tokenizer,
        context: usize,
        overlong: Overlong,
    ) -> Result<(Vec<u32>, bool), DataError> {
        let in_example = |source| DataError::Example {
            id: self.id.to_owned(),
            source,
        };
        let response = tokenizer
            .encode_foreign(self.prompt, self.content)
            .map_err(in_example)?;
        let prompt = tokenizer.encode_prompt(self.prompt).map_err(in_example)?;
        let tokens = prompt.len() + response.len();
        if tokens <= context {
            return Ok(([prompt, response].concat(), false));
        }
        let room = context.saturating_sub(response.len());
        let short = match overlong {
            Overlong::Error => None,
            Overlong::Drop | Overlong::Left => {
                fit_prompt(tokenizer, self.prompt, prompt.len(), room).map_err(in_example)?
            }
        };
        let short = short.ok_or_else(|| DataError::LongReply {
            id: self.id.to_owned(),
            tokens,
            context,
        })?;
        Ok(([short.ids, response].concat(), true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer() -> Tokenizer {
        let texts = (0..200).map(|i| format!("the weather was {i} degrees, said the neighbour"));
        Tokenizer::train(texts, 300).expect("trained")
    }

    fn prompt() -> Vec<Message> {
        vec![
            Message::new("user", "the weather"),
            Message::new("assistant", "12 degrees"),
            Message::new("user", "said who?"),
        ]
    }

    fn rows(context: usize, overlong: Overlong) -> Result<(Vec<Vec<u32>>, usize), DataError> {
        let prompt = prompt();
        let reply = |content| Reply {
            id: "a/0",
            prompt: &prompt,
            content,
        };
        let replies = [reply("the neighbour"), reply("the")];
        reply_rows(&replies, &tokenizer(), context, overlong)
    }

    #[test]
    fn a_row_is_the_dialogue_up_to_the_eos_of_the_reply() {
        let tokenizer = tokenizer();
        let (rows, num_shortened) = rows(64, Overlong::Error).expect("rows");
        assert_eq!(num_shortened, 0);
        for (row, content) in rows.iter().zip(["the neighbour", "the"]) {
            let mut messages = prompt();
            messages.push(Message::new("assistant", content));
            let whole = tokenizer.encode_dialogue(&messages).expect("encoded").ids;
            assert_eq!(*row, whole);
            assert_eq!(row.last(), Some(&tokenizer.eos_id()));
        }
    }

    /// The author of a reply may spell another model's EOS; what is behind it is scored too.
    #[test]
    fn an_eos_that_is_spelled_in_a_reply_ends_nothing() {
        let (tokenizer, prompt) = (tokenizer(), prompt());
        for content in ["the<|endoftext|> neighbour", "the neighbour<|endoftext|>"] {
            let reply = Reply {
                id: "a/0",
                prompt: &prompt,
                content,
            };
            let (rows, _) = reply_rows(&[reply], &tokenizer, 64, Overlong::Error).expect("a row");
            let mut messages = prompt.clone();
            messages.push(Message::new("assistant", content));
            let text = tokenizer.render(&messages, false).expect("text");
            assert_eq!(rows[0], tokenizer.encode(&text).expect("encoded"));
        }
    }

    #[test]
    fn a_long_prompt_loses_its_beginning_or_is_refused() {
        let tokenizer = tokenizer();
        let (whole, _) = rows(64, Overlong::Error).expect("rows");
        let context = whole[0].len() - 1;
        let (short, num_shortened) = rows(context, Overlong::Left).expect("rows");
        assert_eq!(num_shortened, 1, "only the longer reply is too long");
        assert_eq!(short[1], whole[1]);
        assert!(short[0].len() <= context);
        let text = tokenizer.decode(&short[0]).expect("text");
        assert_eq!(text, "said who?the neighbour");
        for (context, overlong, tokens) in [
            (context, Overlong::Error, whole[0].len()),
            (3, Overlong::Left, whole[0].len()),
        ] {
            let error = rows(context, overlong).expect_err("too long").to_string();
            let expected = format!("`a/0` and its reply take {tokens} tokens");
            assert!(
                error.contains(&expected) && error.contains("hint:"),
                "{error}"
            );
        }
    }
}
