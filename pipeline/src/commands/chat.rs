//! `rlhf chat`: the user's lines go to the worker, its answers come back.

use std::io::{self, BufRead, IsTerminal, Write};
use std::sync::mpsc::Sender;
use std::thread;

use recipe::request::{ChatRequest, Command};
use runtime::Event;

use super::{TICK, print, start, text_model};
use crate::cli::ChatArgs;
use crate::failure::{Failure, Outcome};
use crate::worker::Incoming;

/// Talks until the user's input ends and every line is answered.
///
/// # Errors
/// A model that is not there, no libtorch, or what the worker says.
pub fn run(args: &ChatArgs) -> Outcome {
    let model = text_model(&args.model, args.adapter.as_deref())?;
    let request = ChatRequest {
        model,
        adapter: args.adapter.clone(),
        system: args.system.clone(),
        sampling: args.sampling.resolve(false),
        compute: args.compute.resolve(),
    };
    let mut worker = start("chat", &request)?;
    let lines = worker.sender();
    thread::spawn(move || forward_lines(&lines));
    invite();
    loop {
        match worker.receive(TICK) {
            Some(Incoming::Line(line)) if line.trim().is_empty() => invite(),
            Some(Incoming::Line(line)) => worker.send(&Command::Say(line)),
            Some(Incoming::LinesEnded) => worker.send(&Command::End),
            Some(Incoming::Event(Event::Output { line })) => {
                if print(&line).is_err() {
                    return Ok(());
                }
                invite();
            }
            Some(Incoming::Event(Event::Note { text })) => eprintln!("{text}"),
            Some(Incoming::Closed) => return worker.finish().map_err(Failure::run),
            _ => {}
        }
    }
}

fn forward_lines(to: &Sender<Incoming>) {
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        if to.send(Incoming::Line(line)).is_err() {
            return;
        }
    }
    // Nobody listens any more when the worker has died first.
    let _ = to.send(Incoming::LinesEnded);
}

/// Shows that it is the user's turn, where there is one to see it.
fn invite() {
    if io::stdin().is_terminal() {
        let mut err = io::stderr().lock();
        let _ = write!(err, "> ").and_then(|()| err.flush());
    }
}
