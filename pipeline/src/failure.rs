//! How a command fails, and what the process says and returns then.

use std::process::ExitCode;

use runtime::logging::in_words;

/// Why a command did not do what was asked.
#[derive(Debug)]
pub enum Failure {
    /// The command line, the configuration or the input data is wrong; nothing was started.
    Usage(anyhow::Error),
    /// The work was started and failed.
    Run(anyhow::Error),
    /// The work was started, and a process of it, or of another machine, was lost; run again, it may well succeed. With the
    /// exit code.
    Killed(anyhow::Error, u8),
    /// The work was started, and failed because of what befell another machine, which reports it.
    Elsewhere(anyhow::Error),
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

    /// Says on standard error what happened, and gives the exit code: 1, 2, or 130; after a kill the one
    /// that was asked for, or 1.
    pub fn report(&self) -> ExitCode {
        match self {
            Self::Usage(error) => {
                eprintln!("error: {}", in_words(error.as_ref()));
                ExitCode::from(2)
            }
            Self::Run(error) | Self::Elsewhere(error) => {
                eprintln!("error: {}", in_words(error.as_ref()));
                ExitCode::FAILURE
            }
            Self::Killed(error, code) => {
                eprintln!("error: {}", in_words(error.as_ref()));
                ExitCode::from(*code)
            }
            Self::Interrupted(how_to_continue) => {
                eprintln!("interrupted: {how_to_continue}");
                ExitCode::from(130)
            }
        }
    }
}
