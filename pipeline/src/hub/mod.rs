//! The Hugging Face hub: models by name, fetched into the cache that `huggingface_hub` uses.
//!
//! **In:** a [`HubReference`]. **Out:** a folder of the cache with the files of one commit, each whole and
//! verified. Names, addresses and the cache's layout are hf-hub's; time-outs, resumption, hashes and the
//! words of errors are made here.
//!
//! Reading order: [`settings`] (the environment), [`listing`] (which files), [`client`] (requests),
//! [`download`] (one file), [`pipelines`] (references in a configuration).

mod client;
mod download;
mod error;
mod listing;
mod pipelines;
mod progress;
mod settings;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::PathBuf;

use recipe::hub::{HubReference, is_commit};
use runtime::files::{ensure_space, write_bytes};

use client::Client;
use download::{Commit, hub_repo};
pub use error::HubError;
use listing::Listing;
pub use pipelines::{Models, run_folder};
use settings::Settings;

/// How much of a model is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Its tokenizer.
    Tokenizer,
    /// Its tokenizer and configuration: all that a plan looks at.
    Description,
    /// All that it needs to compute.
    Whole,
}

/// A part of a model in the cache.
pub struct Pulled {
    /// The commit that its revision is.
    pub commit: String,
    /// The folder of the commit; it may hold more files than these.
    pub path: PathBuf,
    /// The names of its files.
    pub files: Vec<String>,
}

/// The hub, as the environment says where it is.
pub struct Hub {
    settings: Settings,
    client: Client,
    /// What was asked for is asked once: a branch that moves meanwhile changes nothing.
    known: RefCell<BTreeMap<HubReference, Listing>>,
}

impl Hub {
    /// By the environment's variables.
    ///
    /// # Errors
    /// A variable that holds what it cannot.
    pub fn from_env() -> Result<Self, HubError> {
        let settings = Settings::read(|name| env::var(name).ok())?;
        Ok(Self {
            client: Client::new(&settings),
            settings,
            known: RefCell::default(),
        })
    }

    /// Brings a part of a model into the cache; what is there already is not asked for again.
    ///
    /// # Errors
    /// See [`HubError`].
    pub fn pull(&self, reference: &HubReference, part: Part) -> Result<Pulled, HubError> {
        let listing = self.listing(reference)?;
        let repo = reference.repo();
        let commit = self.commit(reference, &listing.commit);
        let found = self.fetch_part(&commit, &listing, part);
        let files = found.map_err(|error| match error {
            // The list is that of the cache then.
            HubError::Incomplete { lacks, .. } if self.settings.offline => {
                self.not_cached(reference, &format!("{lacks} of {repo}"))
            }
            other => other,
        })?;
        Ok(Pulled {
            path: commit.folder(),
            commit: listing.commit,
            files,
        })
    }

    /// The names of the part's files; they are all here then.
    fn fetch_part(
        &self,
        commit: &Commit<'_>,
        listing: &Listing,
        part: Part,
    ) -> Result<Vec<String>, HubError> {
        let repo = commit.subject.repo();
        let description = listing.description(repo, part)?;
        let mut files: Vec<String> = description.into_iter().map(str::to_owned).collect();
        // Offline, the weights may be elsewhere: a plan needs none.
        let weights = match part {
            Part::Tokenizer => None,
            Part::Description if self.settings.offline => None,
            Part::Description | Part::Whole => Some(listing.weights(repo)?),
        };
        // Last what is large: what describes a model shows soon whether it can be read at all.
        files.extend(weights.filter(|_| part == Part::Whole).map(str::to_owned));
        self.fetch_all(commit, listing, &files)?;
        if let Some(index) = files.last().filter(|name| name.ends_with(".index.json")) {
            let shards = listing.shards(repo, &commit.folder().join(index))?;
            files.extend(shards);
            self.fetch_all(commit, listing, &files)?;
        }
        Ok(files)
    }

    fn fetch_all(
        &self,
        commit: &Commit<'_>,
        listing: &Listing,
        names: &[String],
    ) -> Result<(), HubError> {
        let size = |name: &str| listing.files.get(name).copied().flatten();
        let missing = names.iter().filter(|name| !commit.has(name, size(name)));
        let missing: Vec<&String> = missing.collect();
        let sizes = missing.iter().filter_map(|name| size(name));
        ensure_space(&self.settings.cache, sizes.fold(0, u64::saturating_add))?;
        for name in missing {
            commit.fetch(name, size(name))?;
        }
        Ok(())
    }

    fn commit(&self, reference: &HubReference, commit: &str) -> Commit<'_> {
        Commit {
            client: &self.client,
            subject: reference.at(commit),
            cache: &self.settings.cache,
        }
    }

    /// The files of a revision: the hub's answer, or what the cache has of it.
    fn listing(&self, reference: &HubReference) -> Result<Listing, HubError> {
        if let Some(known) = self.known.borrow().get(reference) {
            return Ok(known.clone());
        }
        let repo = hub_repo(reference);
        let record = self.settings.cache.join(repo.folder_name()).join("refs");
        let record = record.join(reference.revision());
        let listing = if self.settings.offline {
            let commit = if reference.is_pinned() {
                reference.revision().to_owned()
            } else {
                let text = fs::read_to_string(&record).unwrap_or_default();
                text.trim().to_owned()
            };
            if !is_commit(&commit) {
                return Err(self.not_cached(reference, &reference.to_string()));
            }
            Listing::of_folder(&commit, &self.commit(reference, &commit).folder())?
        } else {
            let url = self
                .client
                .url(&format!("api/{}?blobs=true", repo.api_url()));
            let body = self.client.listing(reference, &url)?;
            let listing = Listing::parse(reference, &url, &body)?;
            if !reference.is_pinned() {
                // Whole, so that who reads it meanwhile finds the old commit or the new one.
                write_bytes(&record, listing.commit.as_bytes())?;
            }
            listing
        };
        let mut known = self.known.borrow_mut();
        known.insert(reference.at(&listing.commit), listing.clone());
        known.insert(reference.clone(), listing.clone());
        Ok(listing)
    }

    fn not_cached(&self, reference: &HubReference, what: &str) -> HubError {
        HubError::Offline {
            what: what.to_owned(),
            cache: self.settings.cache.clone(),
            pull: format!("{} --revision {}", reference.repo(), reference.revision()),
        }
    }
}
