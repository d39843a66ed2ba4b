//! How a command fails, and what the process says and returns then.

use std::process::ExitCode;

/// Why a command did not do what was asked.
#[derive(Debug)]
pub enum Failure {
    /// The command line, the configuration or the input data is wrong; nothing was started.
    Usage(anyhow::Error),
    /// The work was started and failed.
    Run(anyhow::Error),
    /// The user stopped it; everything is saved. Says how to continue.
    Interrupted(String),
}

/// The result of a command.
pub type Outcome<T = ()> = Result<T, Failure>;

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Run(error)
    }
}

impl Failure {
    /// For `map_err`: the user's mistake.
    pub fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self::Usage(error.into())
    }

    /// For `map_err`: the run's fault.
    pub fn run(error: impl Into<anyhow::Error>) -> Self {
        Self::Run(error.into())
    }

    /// Says on standard error what happened, and gives the exit code: 1, 2, or 130.
    pub fn report(&self) -> ExitCode {
        match self {
            Self::Usage(error) => {
                eprintln!("{}", in_words(error));
                ExitCode::from(2)
            }
            Self::Run(error) => {
                eprintln!("{}", in_words(error));
                ExitCode::FAILURE
            }
            Self::Interrupted(how_to_continue) => {
                eprintln!("interrupted: {how_to_continue}");
                ExitCode::from(130)
            }
        }
    }
}

/// `error: ` and the chain of causes on one line, then each `hint:` on a line of its own. A cause
/// that the message before it quotes already is not repeated.
fn in_words(error: &anyhow::Error) -> String {
    let mut message = String::new();
    let mut hints = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let (body, hint) = split_hint(&text);
        if !message.contains(body) {
            if !message.is_empty() {
                message.push_str(": ");
            }
            message.push_str(body);
        }
        if !hints.contains(hint) {
            hints.push_str(hint);
        }
    }
    format!("error: {message}{hints}")
}

/// Cuts off a hint at the end. A list of mistakes, each with its hint, stays as it is.
fn split_hint(text: &str) -> (&str, &str) {
    const MARK: &str = "\n  hint: ";
    match text.find(MARK) {
        Some(at) if text.matches(MARK).count() == 1 => text.split_at(at),
        _ => (text, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn causes_are_joined_and_hints_come_last() {
        let error = anyhow!("cannot read a.txt: gone\n  hint: make it")
            .context("gone: cannot read a.txt: gone")
            .context("stage `sft`");
        assert_eq!(
            in_words(&error),
            "error: stage `sft`: gone: cannot read a.txt: gone\n  hint: make it"
        );
        let several = "f:1: a: bad\n  hint: x\nf:2: b: bad\n  hint: y";
        assert_eq!(in_words(&anyhow!(several)), format!("error: {several}"));
    }
}
