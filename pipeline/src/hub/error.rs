//! What can go wrong between here and the hub, in words that say what to do.

use std::io;
use std::path::{Path, PathBuf};

use runtime::files::FileError;

/// Why a model did not come from the hub.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A variable of the environment holds what it cannot.
    #[error("{name} must be {expected}, is {value:?}\n  hint: correct it, or unset it")]
    Setting {
        /// The variable.
        name: &'static str,
        /// What it holds.
        value: String,
        /// What it may hold.
        expected: &'static str,
    },
    /// The token cannot be a token. It is not repeated.
    #[error(
        "the token of {origin} has characters that no token has\n  hint: set HF_TOKEN to a token alone"
    )]
    BadToken {
        /// Where it was read.
        origin: String,
    },
    /// No place for the cache is known.
    #[error("no folder for the hub's cache: HOME is not set\n  hint: set HF_HOME to a folder")]
    NoHome,
    /// The network is not to be used, and the cache lacks something.
    #[error(
        "{what} is not in {}, and HF_HUB_OFFLINE is set\n  \
         hint: unset HF_HUB_OFFLINE, or fill the cache before: rlhf model pull {pull}", cache.display()
    )]
    Offline {
        /// What is missing.
        what: String,
        /// The cache.
        cache: PathBuf,
        /// What fills it.
        pull: String,
    },
    /// No such repository, or a private one.
    #[error("{repo}: {endpoint} has no such model, or it is private\n  hint: check the name{}", if *token {
        ", and that the token may read it"
    } else {
        "; a private model needs HF_TOKEN"
    })]
    Missing {
        /// The repository.
        repo: String,
        /// The hub.
        endpoint: String,
        /// Whether a token was sent.
        token: bool,
    },
    /// No such branch, tag or commit.
    #[error(
        "{repo} has no revision {revision:?}\n  hint: its branches, tags and commits are at {endpoint}/{repo}/tree/main"
    )]
    Revision {
        /// The repository.
        repo: String,
        /// What was asked for.
        revision: String,
        /// The hub.
        endpoint: String,
    },
    /// The repository has another name now.
    #[error("{repo} is called {now} now\n  hint: write hub:{now}")]
    Renamed {
        /// The name that was asked for.
        repo: String,
        /// The new one.
        now: String,
    },
    /// The repository is for those who were granted access.
    #[error("{repo} is gated\n  hint: ask for access at {endpoint}/{repo}{}", if *token {
        "; the token that was sent has none yet"
    } else {
        ", then set HF_TOKEN"
    })]
    Gated {
        /// The repository.
        repo: String,
        /// The hub.
        endpoint: String,
        /// Whether a token was sent.
        token: bool,
    },
    /// The token is not accepted.
    #[error(
        "{endpoint} does not accept the token\n  hint: set HF_TOKEN to one of {endpoint}/settings/tokens, or unset it"
    )]
    Token {
        /// The hub.
        endpoint: String,
    },
    /// The server refuses for another reason.
    #[error("{url} answers {status}{said}\n  hint: {}", status_hint(*status))]
    Status {
        /// What was asked for.
        url: String,
        /// The answer's status.
        status: u16,
        /// The server's words, after `: `; may be empty.
        said: String,
    },
    /// No connection.
    #[error(
        "cannot reach {url}: {source}\n  \
         hint: check the network and HF_ENDPOINT; with HF_HUB_OFFLINE=1 only the cache is used"
    )]
    Unreachable {
        /// What was asked for.
        url: String,
        /// Why.
        source: Box<ureq::Error>,
    },
    /// The server fell silent.
    #[error("{url}: nothing came for {seconds} s\n  hint: try again{}; {variable} sets the bound", if *resumes {
        ", it goes on where it stopped"
    } else {
        ""
    })]
    TimeOut {
        /// What was asked for.
        url: String,
        /// The bound.
        seconds: u64,
        /// The variable that sets it.
        variable: &'static str,
        /// Whether something is kept for the next try.
        resumes: bool,
    },
    /// The connection ended in the middle of a file.
    #[error(
        "{url}: the connection ended after {found} of {expected} bytes\n  hint: try again, it goes on where it stopped"
    )]
    Broken {
        /// What was asked for.
        url: String,
        /// Bytes that are here.
        found: u64,
        /// Bytes that should be.
        expected: u64,
    },
    /// An answer that no hub gives.
    #[error(
        "{url}: {what}\n  hint: check HF_ENDPOINT; a proxy or a log-in page may have answered in its place"
    )]
    Answer {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        what: String,
    },
    /// A file of another length than was said.
    #[error(
        "{url}: has {found} bytes, {expected} were announced\n  \
         hint: try again; if it stays, the server or HF_ENDPOINT's mirror is at fault"
    )]
    Size {
        /// What was asked for.
        url: String,
        /// Bytes that were announced.
        expected: u64,
        /// Bytes that came, or were announced elsewhere.
        found: u64,
    },
    /// A file with other bytes than was said.
    #[error(
        "{url}: its sha256 is {found}, {expected} was announced; what came is removed\n  \
         hint: try again; if it stays, the server or HF_ENDPOINT's mirror is at fault"
    )]
    Hash {
        /// What was asked for.
        url: String,
        /// The hash that was announced.
        expected: String,
        /// The hash of what came.
        found: String,
    },
    /// The repository holds no model that can be used here.
    #[error("{repo} has no {lacks}\n  hint: {hint}")]
    Incomplete {
        /// The repository.
        repo: String,
        /// What is not there.
        lacks: String,
        /// What to do.
        hint: &'static str,
    },
    /// The repository names a file outside of its folder.
    #[error(
        "{repo} names a file {name:?}, which no folder can hold\n  hint: do not use this repository"
    )]
    Unsafe {
        /// The repository.
        repo: String,
        /// The name.
        name: String,
    },
    /// The disk has too little room.
    #[error("{}: {needed} bytes are needed, {free} are free\n  hint: {MORE_SPACE}", path.display())]
    NoSpace {
        /// The folder.
        path: PathBuf,
        /// Bytes that will be written.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}\n  hint: {}", path.display(), disk_hint(source))]
    Disk {
        /// What was tried: a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file of the cache is not what it should be.
    #[error(transparent)]
    File(FileError),
}

const MORE_SPACE: &str = "free some space, or set HF_HUB_CACHE to a folder on another disk";

impl HubError {
    /// Wraps a system error, for use with `map_err`.
    pub fn disk(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Disk {
            action,
            path,
            source,
        }
    }

    /// Whether the user's words are at fault: a name, a token, a setting. Everything else may be better
    /// another day.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Setting { .. }
                | Self::BadToken { .. }
                | Self::NoHome
                | Self::Offline { .. }
                | Self::Missing { .. }
                | Self::Revision { .. }
                | Self::Renamed { .. }
                | Self::Gated { .. }
                | Self::Token { .. }
                | Self::Incomplete { .. }
                | Self::Unsafe { .. }
        )
    }

    /// Whether the same request may succeed a moment later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TimeOut { .. } | Self::Broken { .. } => true,
            Self::Status { status, .. } => *status == 429 || *status >= 500,
            _ => false,
        }
    }
}

impl From<FileError> for HubError {
    /// The hints of [`FileError`] are about run folders.
    fn from(error: FileError) -> Self {
        match error {
            FileError::NoSpace { path, needed, free } => Self::NoSpace { path, needed, free },
            FileError::Io {
                action,
                path,
                source,
            } => Self::Disk {
                action,
                path,
                source,
            },
            other => Self::File(other),
        }
    }
}

fn status_hint(status: u16) -> &'static str {
    match status {
        429 => "wait a few minutes; with HF_TOKEN more requests are allowed",
        500.. => "the server is at fault: try again later",
        _ => "check the name and HF_TOKEN",
    }
}

fn disk_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => MORE_SPACE,
        _ => "check who owns it, or set HF_HUB_CACHE to another folder",
    }
}
