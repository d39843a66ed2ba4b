//! What can be wrong with a configuration, in words that say where and what to do.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// A configuration that cannot become a plan.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {source}\n  hint: give the path of a pipeline.toml", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error(
        "{location}: not valid TOML: {message}\n  hint: strings need quotes; a table starts with [stages.NAME]"
    )]
    Syntax {
        /// `FILE:LINE:COL`.
        location: String,
        /// The parser's words.
        message: String,
    },
    /// The file is TOML, and what it says cannot be done.
    #[error("{}", lines(problems))]
    Invalid {
        /// Everything found; at least one.
        problems: Vec<Problem>,
    },
}

impl From<Problem> for ConfigError {
    fn from(problem: Problem) -> Self {
        Self::Invalid {
            problems: vec![problem],
        }
    }
}

/// One mistake in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `FILE:LINE:COL`, or the `--set` that said it.
    pub location: String,
    /// The key's full path, such as `stages.sft.batch`.
    pub key: String,
    /// The bound and the value.
    pub message: String,
    /// What to do.
    pub hint: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            location,
            key,
            message,
            hint,
        } = self;
        write!(f, "{location}: {key}: {message}\n  hint: {hint}")
    }
}

fn lines(problems: &[Problem]) -> String {
    let texts: Vec<String> = problems.iter().map(Problem::to_string).collect();
    texts.join("\n")
}

/// A saved plan that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The text is no plan.
    #[error(
        "not a plan: {source}\n  hint: plan.toml is written by `rlhf run`; delete it to have it written anew"
    )]
    Read {
        /// The parser's words.
        source: Box<toml::de::Error>,
    },
    /// Another version of the format.
    #[error(
        "format_version is {found}, this program reads {expected}\n  hint: use the version of rlhf that started the run"
    )]
    Version {
        /// Found in the text.
        found: u32,
        /// Understood here.
        expected: u32,
    },
    /// The plan does not fit TOML (an integer above 2^63 - 1).
    #[error("the plan cannot be written as TOML: {source}\n  hint: keep every number below 2^63")]
    Write {
        /// The writer's words.
        source: Box<toml::ser::Error>,
    },
}

/// A `config.json` whose model is not one of ours; whoever read the file names it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// A key is absent.
    #[error(
        "{key}: missing\n  hint: the folder must hold a Hugging Face model of type {model_type}"
    )]
    Missing {
        /// The key.
        key: &'static str,
        /// The model type it belongs to.
        model_type: &'static str,
    },
    /// A key holds something else than a number, text or flag.
    #[error(
        "{key}: must be {expected}, is {found}\n  hint: check that the folder's config.json is whole"
    )]
    Type {
        /// The key.
        key: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A family that this program does not know.
    #[error("model_type: {found} is unknown\n  hint: known model types: {known}")]
    Family {
        /// What it is.
        found: String,
        /// The known ones.
        known: String,
    },
    /// No family is stated.
    #[error(
        "model_type: missing\n  hint: the folder must hold a Hugging Face model of one of the types {known}"
    )]
    NoFamily {
        /// The known ones.
        known: String,
    },
    /// A feature that this program does not compute.
    #[error("{key}: {found} is not supported\n  hint: supported: {supported}")]
    Unsupported {
        /// The key.
        key: String,
        /// What it is.
        found: String,
        /// What it may be.
        supported: String,
    },
    /// Numbers that do not fit together.
    #[error("model shape: {what}\n  hint: {hint}")]
    Inconsistent {
        /// The numbers and the rule that they break.
        what: String,
        /// What to do.
        hint: &'static str,
    },
}
