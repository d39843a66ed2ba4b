//! The worker's death in words: exit codes, signals, and what they mostly mean.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

/// Kinds of death, for the hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// Killed without warning, as the system does when memory runs out.
    OutOfMemory,
    /// An invariant of the program broke.
    Panic,
    /// A shared library did not load.
    Loader,
    /// Anything else.
    Other,
}

/// How the worker died, by its exit status and the last lines of its log.
pub fn cause_of_death(status: ExitStatus, tail: &[String]) -> (String, Death) {
    let log_says = |words: &str| tail.iter().any(|line| line.contains(words));
    match (status.signal(), status.code()) {
        (Some(9), _) => {
            let words = "was killed (signal 9, SIGKILL): most likely the system ran out of memory";
            (words.into(), Death::OutOfMemory)
        }
        (Some(signal), _) => {
            let dumped = if status.core_dumped() {
                ", core dumped"
            } else {
                ""
            };
            let words = format!("died of signal {signal} ({}){dumped}", signal_name(signal));
            (
                words,
                if log_says("bad_alloc") {
                    Death::OutOfMemory
                } else {
                    Death::Other
                },
            )
        }
        (None, Some(101)) if log_says("panicked at") => {
            ("panicked (exit code 101)".into(), Death::Panic)
        }
        (None, Some(code)) if log_says("error while loading shared libraries") => (
            format!("could not load its libraries (exit code {code})"),
            Death::Loader,
        ),
        (None, code) => {
            let code = code.map_or("an unknown code".into(), |code| format!("exit code {code}"));
            let memory = log_says("out of memory") || log_says("can't allocate memory");
            let kind = if memory {
                Death::OutOfMemory
            } else {
                Death::Other
            };
            (
                format!("ended with {code} and no word of explanation"),
                kind,
            )
        }
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        1 => "SIGHUP: its terminal is gone",
        2 => "SIGINT",
        4 => "SIGILL: this processor lacks an instruction",
        6 => "SIGABRT: it aborted itself",
        7 => "SIGBUS: a file shrank or the disk is full",
        8 => "SIGFPE",
        11 => "SIGSEGV: it touched memory that is not its own",
        15 => "SIGTERM: someone stopped it",
        24 => "SIGXCPU: its time limit",
        25 => "SIGXFSZ: its file size limit",
        _ => "see `man 7 signal`",
    }
}

/// The end of the log, for a report.
pub fn last_lines(tail: &[String], log: Option<&Path>) -> String {
    let place = log
        .map(|log| format!(" ({})", log.display()))
        .unwrap_or_default();
    if tail.is_empty() {
        return format!("; its log is empty{place}");
    }
    format!(
        "; the last lines of its log{place}:\n    {}",
        tail.join("\n    ")
    )
}

/// What to do about it.
pub fn death_hint(kind: Death) -> &'static str {
    match kind {
        Death::OutOfMemory => {
            "\n  hint: lower the stage's micro_batch or set checkpointing = true; `rlhf plan` \
             shows the predicted peak memory. Run again to continue from the last snapshot"
        }
        Death::Panic => {
            "\n  hint: a bug of this program; please report it with the log. Run again to \
             continue from the last snapshot"
        }
        Death::Loader => "\n  hint: `rlhf doctor` says what is missing",
        Death::Other => "\n  hint: run again to continue from the last snapshot",
    }
}
