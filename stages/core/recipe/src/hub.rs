//! References to models on the Hugging Face hub. What finds them there is given from outside: nothing
//! here speaks to a network.

use std::fmt;
use std::path::PathBuf;

/// What a reference to the hub begins with.
pub const HUB_PREFIX: &str = "hub:";

/// The revision where none is written.
const MAIN: &str = "main";

/// Longest name of a repository, as the hub has it.
const LONGEST_NAME: usize = 96;

/// `hub:ORG/NAME` or `hub:ORG/NAME@REVISION`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HubReference {
    repo: String,
    revision: String,
}

/// A text that names no repository or revision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} {what}\n  hint: {hint}")]
pub struct HubReferenceError {
    text: String,
    what: &'static str,
    hint: &'static str,
}

/// A question for what knows the hub.
#[derive(Debug, Clone, Copy)]
pub struct HubQuery<'a> {
    /// The pipeline that asks; its run may have recorded a commit already.
    pub pipeline: &'a str,
    /// The model.
    pub reference: &'a HubReference,
    /// Whether its tokenizer alone is wanted.
    pub tokenizer_alone: bool,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubFolder {
    /// The commit, 40 hexadecimal digits.
    pub commit: String,
    /// A folder that holds at least what describes the model: `config.json` and the tokenizer.
    pub path: PathBuf,
}

/// Finds models on the hub. An error is a message that ends in a `hint:` line.
pub type FindHub<'a> = dyn Fn(&HubQuery<'_>) -> Result<HubFolder, String> + 'a;

impl HubReference {
    /// Reads `ORG/NAME` or `ORG/NAME@REVISION`, with or without [`HUB_PREFIX`].
    ///
    /// # Errors
    /// As [`HubReference::new`].
    pub fn parse(text: &str) -> Result<Self, HubReferenceError> {
        let text = text.strip_prefix(HUB_PREFIX).unwrap_or(text);
        let (repo, revision) = text.split_once('@').unwrap_or((text, MAIN));
        Self::new(repo, revision)
    }

    /// A repository at a revision: a branch, a tag or a commit.
    ///
    /// # Errors
    /// A name that the hub does not give, or a revision that cannot stand in an address or a path.
    pub fn new(repo: &str, revision: &str) -> Result<Self, HubReferenceError> {
        if !is_repo(repo) {
            return Err(HubReferenceError {
                text: repo.to_owned(),
                what: "is no repository's name",
                hint: "write hub:ORG/NAME or hub:ORG/NAME@REVISION, as on the model's page",
            });
        }
        if !is_revision(revision) {
            return Err(HubReferenceError {
                text: revision.to_owned(),
                what: "cannot be a revision",
                hint: "give a branch, a tag, or the 40 digits of a commit",
            });
        }
        Ok(Self {
            repo: repo.to_owned(),
            revision: revision.to_owned(),
        })
    }

    /// The same repository at a commit.
    ///
    /// # Panics
    /// The text is no commit: a programmer's error.
    #[must_use]
    pub fn at(&self, commit: &str) -> Self {
        assert!(is_commit(commit), "{commit:?} is no commit");
        Self {
            repo: self.repo.clone(),
            revision: commit.to_owned(),
        }
    }

    /// `ORG/NAME`.
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// The branch, tag or commit.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// Whether the revision is a commit, which never moves.
    pub fn is_pinned(&self) -> bool {
        is_commit(&self.revision)
    }
}

impl fmt::Display for HubReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{HUB_PREFIX}{}@{}", self.repo, self.revision)
    }
}

/// Whether a text is a whole commit: 40 lower-case hexadecimal digits.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The hub's rule (`huggingface_hub`, `validate_repo_id`): one or two names of letters, digits, `-`, `_`
/// and `.`, which neither begin nor end with `-` or `.` and have no `--` or `..` in them.
fn is_repo(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let edge = |c: char| matches!(c, '-' | '.');
    let is_name = |name: &str| {
        !name.is_empty()
            && name.chars().all(plain)
            && !name.starts_with(edge)
            && !name.ends_with(edge)
    };
    text.len() <= LONGEST_NAME
        && text.matches('/').count() <= 1
        && text.split('/').all(is_name)
        && !text.contains("--")
        && !text.contains("..")
}

/// A revision becomes a part of an address and of a path in the cache.
fn is_revision(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let is_part =
        |part: &str| !part.is_empty() && !part.starts_with('.') && part.chars().all(plain);
    text.split('/').all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_as_they_are_written() {
        for (text, repo, revision) in [
            ("hub:org/name", "org/name", "main"),
            ("org/name@v1.0", "org/name", "v1.0"),
            ("hub:gpt2@refs/pr/1", "gpt2", "refs/pr/1"),
        ] {
            let reference = HubReference::parse(text).expect(text);
            assert_eq!((reference.repo(), reference.revision()), (repo, revision));
            assert_eq!(HubReference::parse(&reference.to_string()), Ok(reference));
        }
        let pinned = format!("org/name@{}", "0123456789abcdef".repeat(3).split_at(40).0);
        assert!(HubReference::parse(&pinned).is_ok_and(|reference| reference.is_pinned()));
        assert!(HubReference::parse("org/name").is_ok_and(|reference| !reference.is_pinned()));
    }

    #[test]
    fn what_could_leave_an_address_or_a_folder_is_refused() {
        for text in [
            "",
            "hub:",
            "org/",
            "/name",
            "a/b/c",
            "org/..",
            "../name",
            "org/na me",
            "org/n?x",
            "org/-n",
            "org/a--b",
            "org/name@",
            "org/name@../x",
            "org/name@a/../b",
            "org/name@a b",
            "org/name@.hidden",
            "org/name@a//b",
            "org/name@v1@v2",
            "org/na%2Fme",
        ] {
            let error = HubReference::parse(text).expect_err(text);
            assert!(error.to_string().contains("\n  hint: "), "{error}");
        }
        assert!(HubReference::parse(&format!("org/{}", "n".repeat(92))).is_ok());
        assert!(HubReference::parse(&format!("org/{}", "n".repeat(93))).is_err());
    }
}
