//! Which files a repository has, and which of them a model needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use recipe::hub::{HubReference, is_commit};
use recipe::tensors::WEIGHT_FILES;
use runtime::files::read_json;
use serde::Deserialize;

use super::Part;
use super::client::wrong;
use super::error::HubError;

const CONFIG: &str = "config.json";

/// Files of a tokenizer; of the first two one is enough.
const TOKENIZER: [&str; 6] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    // It names more tokens that end a reply.
    "generation_config.json",
];

/// The files of a repository at a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The commit.
    pub commit: String,
    /// Name and size of every file, as far as it is known.
    pub files: BTreeMap<String, Option<u64>>,
}

/// The hub's answer, as far as it is read.
#[derive(Deserialize)]
struct Answer {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
}

/// The list of a model's files of weights.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Listing {
    /// Reads the hub's answer.
    ///
    /// # Errors
    /// No JSON of this kind, no commit or another than was asked for, a name that leaves the folder.
    pub fn parse(subject: &HubReference, url: &str, body: &[u8]) -> Result<Self, HubError> {
        let answer: Answer = serde_json::from_slice(body)
            .map_err(|error| wrong(url, &format!("is no list of files: {error}")))?;
        if !is_commit(&answer.sha) {
            return Err(wrong(url, &format!("{:?} is no commit", answer.sha)));
        }
        if subject.is_pinned() && answer.sha != subject.revision() {
            let what = format!(
                "is of commit {}, {} was asked for",
                answer.sha,
                subject.revision()
            );
            return Err(wrong(url, &what));
        }
        let mut files = BTreeMap::new();
        for Sibling { rfilename, size } in answer.siblings {
            if leaves_the_folder(&rfilename) {
                return Err(HubError::Unsafe {
                    repo: subject.repo().to_owned(),
                    name: rfilename,
                });
            }
            files.insert(rfilename, size);
        }
        Ok(Self {
            commit: answer.sha,
            files,
        })
    }

    /// What a folder of the cache holds; nothing where there is no such folder.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn of_folder(commit: &str, dir: &Path) -> Result<Self, HubError> {
        let mut files = BTreeMap::new();
        if dir.is_dir() {
            for entry in fs::read_dir(dir).map_err(HubError::disk("list", dir))? {
                let entry = entry.map_err(HubError::disk("list", dir))?;
                // A link to nothing is a file that is not there.
                if let Ok(found) = fs::metadata(entry.path()) {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    files.insert(name, Some(found.len()));
                }
            }
        }
        Ok(Self {
            commit: commit.to_owned(),
            files,
        })
    }

    /// The files beside the weights.
    ///
    /// # Errors
    /// There is no tokenizer, or (but for [`Part::Tokenizer`]) no configuration.
    pub fn description(&self, repo: &str, part: Part) -> Result<Vec<&'static str>, HubError> {
        let here = |name: &&'static str| self.files.contains_key(*name);
        let mut names: Vec<_> = TOKENIZER.into_iter().filter(here).collect();
        match names.first() {
            Some(&"tokenizer.json") => names.retain(|name| *name != "tokenizer.model"),
            Some(&"tokenizer.model") => {}
            _ => {
                return Err(lacks(
                    repo,
                    "tokenizer.json and no tokenizer.model",
                    FOREIGN,
                ));
            }
        }
        if part == Part::Tokenizer {
            return Ok(names);
        }
        if !here(&CONFIG) {
            return Err(lacks(repo, CONFIG, FOREIGN));
        }
        names.push(CONFIG);
        Ok(names)
    }

    /// The file that holds or lists the weights: safetensors where there are some.
    ///
    /// # Errors
    /// There is none.
    pub fn weights(&self, repo: &str) -> Result<&'static str, HubError> {
        let here = |name: &&'static str| self.files.contains_key(*name);
        let found = WEIGHT_FILES.into_iter().find(|name| here(name));
        found.ok_or_else(|| lacks(repo, "model.safetensors and no pytorch_model.bin", FOREIGN))
    }

    /// The files that an index names.
    ///
    /// # Errors
    /// It is no index, or names what is not in the repository.
    pub fn shards(&self, repo: &str, index: &Path) -> Result<BTreeSet<String>, HubError> {
        let Index { weight_map } = read_json(index)?;
        let names: BTreeSet<String> = weight_map.into_values().collect();
        for name in &names {
            if leaves_the_folder(name) || name.contains('/') {
                return Err(HubError::Unsafe {
                    repo: repo.to_owned(),
                    name: name.clone(),
                });
            }
            if !self.files.contains_key(name) {
                let hint = "its index lists this file: the upload is not whole";
                return Err(lacks(repo, name, hint));
            }
        }
        Ok(names)
    }
}

const FOREIGN: &str = "take a repository in the format of transformers; \
                       a GGUF file is downloaded by hand and read by rlhf model convert";

fn lacks(repo: &str, what: &str, hint: &'static str) -> HubError {
    HubError::Incomplete {
        repo: repo.to_owned(),
        lacks: what.to_owned(),
        hint,
    }
}

/// Whether a name is more than plain parts between slashes.
fn leaves_the_folder(name: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    !name.split('/').all(plain) || name.contains(['\\', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn listing(names: &[&str]) -> Listing {
        let files = names.iter().map(|name| ((*name).to_owned(), Some(1)));
        Listing {
            commit: COMMIT.into(),
            files: files.collect(),
        }
    }

    fn parse(body: &str, revision: &str) -> Result<Listing, String> {
        let subject = HubReference::new("org/tiny", revision).expect("a reference");
        Listing::parse(&subject, "http://hub/api", body.as_bytes())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn only_what_a_model_needs_is_taken_and_one_format_of_it() {
        let all = listing(&[
            "README.md",
            "config.json",
            "flax_model.msgpack",
            "generation_config.json",
            "model.safetensors",
            "onnx/model.onnx",
            "pytorch_model.bin",
            "tokenizer.json",
            "tokenizer.model",
            "tokenizer_config.json",
        ]);
        let mut description = all.description("org/tiny", Part::Whole).expect("files");
        description.sort_unstable();
        let expected = [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ];
        assert_eq!(description, expected);
        assert_eq!(
            all.weights("org/tiny").expect("weights"),
            "model.safetensors"
        );
        let tokenizer = all.description("org/tiny", Part::Tokenizer).expect("files");
        assert!(!tokenizer.contains(&"config.json"));
        for (names, weights) in [
            (
                &["model.safetensors.index.json", "pytorch_model.bin"][..],
                "model.safetensors.index.json",
            ),
            (
                &["pytorch_model.bin.index.json", "pytorch_model.bin"],
                "pytorch_model.bin",
            ),
            (
                &["pytorch_model.bin.index.json"],
                "pytorch_model.bin.index.json",
            ),
        ] {
            assert_eq!(
                listing(names).weights("org/tiny").expect("weights"),
                weights
            );
        }
        let old = listing(&["config.json", "tokenizer.model"]);
        assert!(
            old.description("org/tiny", Part::Description)
                .is_ok_and(|names| names.len() == 2)
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        for (names, word) in [
            (&["config.json"][..], "tokenizer.json"),
            (&["tokenizer.json"], "config.json"),
        ] {
            let error = listing(names)
                .description("org/tiny", Part::Description)
                .expect_err(word);
            let error = error.to_string();
            assert!(
                error.contains("org/tiny has no") && error.contains(word),
                "{error}"
            );
        }
        let error = listing(&["model.gguf"])
            .weights("org/tiny")
            .expect_err("none")
            .to_string();
        assert!(
            error.contains("model.safetensors") && error.contains("hint: "),
            "{error}"
        );
    }

    #[test]
    fn an_index_that_names_what_is_not_there_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let index = dir.path().join("model.safetensors.index.json");
        let here = listing(&["a.safetensors", "b.safetensors", "sub/c.safetensors"]);
        let shards = |names: &[&str]| {
            let map: BTreeMap<_, _> = names
                .iter()
                .enumerate()
                .map(|(i, name)| (i.to_string(), *name))
                .collect();
            let text =
                serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string();
            fs::write(&index, text).expect("a file");
            here.shards("org/tiny", &index)
                .map_err(|error| error.to_string())
        };
        let names = shards(&["b.safetensors", "a.safetensors", "a.safetensors"]).expect("two");
        assert_eq!(
            names.into_iter().collect::<Vec<_>>(),
            ["a.safetensors", "b.safetensors"]
        );
        assert!(
            shards(&["gone.safetensors"])
                .is_err_and(|error| error.contains("has no gone.safetensors"))
        );
        for name in ["../a.safetensors", "sub/c.safetensors", "/etc/passwd", ""] {
            assert!(
                shards(&[name]).is_err_and(|error| error.contains("which no folder can hold")),
                "{name}"
            );
        }
    }

    #[test]
    fn answers_that_are_none_are_refused() {
        let good = format!(
            r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "sub/a", "size": 3}}, {{"rfilename": "b"}}]}}"#
        );
        let listing = parse(&good, "main").expect("a list");
        assert_eq!(
            listing.files,
            [("sub/a".into(), Some(3)), ("b".into(), None)].into()
        );
        let other = COMMIT.replace('0', "1");
        assert!(parse(&good, &other).is_err_and(|error| error.contains(&other)));
        assert!(
            parse("<html>Please log in</html>", "main")
                .is_err_and(|error| error.contains("log-in page"))
        );
        assert!(
            parse(r#"{"sha": "../x", "siblings": []}"#, "main")
                .is_err_and(|error| error.contains("no commit"))
        );
        for name in ["../x", "a/../../x", "/etc/passwd", "a\\\\b", "", "./x"] {
            let body = format!(r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "{name}"}}]}}"#);
            assert!(
                parse(&body, "main").is_err_and(|error| error.contains("no folder can hold")),
                "{name}"
            );
        }
    }
}
