//! Standard input: commands of the front, and the sign that it lives.

use std::io::BufRead;
use std::sync::mpsc::{Receiver, channel};

use recipe::request::Command;

/// Listens in a thread of its own. `stop` asks the running stage to save and end; what is said in a
/// chat comes out of the receiver. The end of the input means that the front is gone, however it
/// died: the process ends at once, and what was saved so far is what there is.
pub fn listen() -> Receiver<Command> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            match Command::parse(&line) {
                Some(Command::Stop) => runtime::interrupt::request(),
                Some(command) => drop(sender.send(command)),
                None => tracing::warn!(line, "not a command"),
            }
        }
        // No word to the log: it went through the front.
        runtime::interrupt::end_at_once()
    });
    receiver
}
