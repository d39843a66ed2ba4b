//! Logging through `tracing`, and errors in words. The worker logs to its standard error, which the front writes to the
//! run folder; other programs may name a file.

use std::error::Error;
use std::fs::{self, OpenOptions};
use std::iter;
use std::path::Path;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;

/// Installs the process's subscriber: to `file` (appended to) or else to standard error, from level
/// `info` up, or `debug` if `verbose`; the environment variable `RUST_LOG` wins. A file that cannot
/// be opened is reported on standard error, which is then used instead. Only the first call counts.
pub fn init(file: Option<&Path>, verbose: bool) {
    let default = if verbose { "debug" } else { "info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false);
    let opened = file.map(|path| {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        OpenOptions::new().create(true).append(true).open(path)
    });
    // A second call finds a subscriber in place and leaves it.
    match opened {
        Some(Ok(file)) => {
            let _ = builder
                .with_ansi(false)
                .with_writer(Mutex::new(file))
                .try_init();
        }
        failed => {
            let _ = builder
                .with_ansi(false)
                .with_writer(std::io::stderr)
                .try_init();
            if let Some(Err(error)) = failed {
                let path = file.map(Path::display);
                tracing::warn!(
                    "cannot log to {}: {error}",
                    path.map_or(String::new(), |p| p.to_string())
                );
            }
        }
    }
}

/// An error and its causes on one line, then each `hint:` on a line of its own. A cause that the message
/// before it quotes already is not repeated.
pub fn in_words(error: &(dyn Error + 'static)) -> String {
    let mut message = String::new();
    let mut hints = String::new();
    for cause in iter::successors(Some(error), |&error| error.source()) {
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
    message + &hints
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

    /// A message and its cause.
    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Said {
        text: &'static str,
        source: Option<Box<Said>>,
    }

    #[test]
    fn causes_are_joined_and_hints_come_last() {
        let said = |texts: &[&'static str]| {
            let outer = texts.iter().rev().fold(None, |source, &text| {
                let source = source.map(Box::new);
                Some(Said { text, source })
            });
            outer.map_or(String::new(), |error| in_words(&error))
        };
        let texts = [
            "stage `sft`",
            "gone: cannot read a.txt: gone",
            "cannot read a.txt: gone\n  hint: make it",
        ];
        assert_eq!(
            said(&texts),
            "stage `sft`: gone: cannot read a.txt: gone\n  hint: make it"
        );
        // What a message quotes before its hint is not said again after it.
        assert_eq!(
            said(&["template: no end\n  hint: end it", "no end"]),
            "template: no end\n  hint: end it"
        );
        let several = "f:1: a: bad\n  hint: x\nf:2: b: bad\n  hint: y";
        assert_eq!(said(&[several]), several);
    }

    #[test]
    fn lines_reach_the_file() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("logs/sft.log");
        init(Some(&path), false);
        tracing::info!(step = 3, "saved");
        tracing::debug!("not at this level");
        let text = fs::read_to_string(&path)?;
        assert!(
            text.contains("saved step=3") && !text.contains("not at"),
            "{text}"
        );
        Ok(())
    }
}
