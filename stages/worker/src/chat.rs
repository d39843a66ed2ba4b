//! `rlhf chat`: one conversation, a line a message.

use std::sync::mpsc::Receiver;

use anyhow::{Result, bail};
use datasets::{Message, Tokenizer};
use generation::Request;
use recipe::request::{ChatRequest, Command};
use runtime::events::{Event, emit};

use crate::{compute, generate};

/// Answers each thing that is said with one line, remembering what fits into the context.
pub fn run(request: &ChatRequest, lines: &Receiver<Command>) -> Result<()> {
    let model = compute::load(&request.model, request.adapter.as_deref(), &request.compute)?;
    let tokenizer = Tokenizer::load(&request.model)?;
    let options = generate::options(&request.sampling, &tokenizer, 1)?;
    let system: Vec<Message> = request
        .system
        .iter()
        .map(|text| Message::new("system", text.as_str()))
        .collect();
    let mut history: Vec<Message> = Vec::new();
    let mut episode = 0;
    while let Ok(Command::Say(text)) = lines.recv() {
        history.push(Message::new("user", text));
        let room = model
            .shape
            .max_positions
            .saturating_sub(options.max_new_tokens);
        let prompt_ids = fit(&tokenizer, &system, &mut history, room)?;
        let samples = generation::generate(
            &model,
            &[Request {
                prompt_ids,
                episode,
            }],
            &options,
        )?;
        let answer = tokenizer.decode(&samples[0].output_ids)?;
        emit(&Event::Output {
            line: answer.trim().to_owned(),
        });
        history.push(Message::new("assistant", answer));
        episode += 1;
    }
    Ok(())
}

/// Forgets the oldest exchange until the rest fits.
fn fit(
    tokenizer: &Tokenizer,
    system: &[Message],
    history: &mut Vec<Message>,
    room: usize,
) -> Result<Vec<u32>> {
    loop {
        let ids = tokenizer.encode_prompt(&[system, history].concat())?;
        if ids.len() <= room {
            return Ok(ids);
        }
        if history.len() < 3 {
            bail!(
                "this message makes a prompt of {} tokens, the context has room for {room}\n  hint: \
                 say less at once, or lower --max-new-tokens",
                ids.len()
            );
        }
        history.drain(..2);
    }
}
