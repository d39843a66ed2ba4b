//! One file of a commit: from the hub into the cache, whole and verified or not at all.
//!
//! The layout is that of `huggingface_hub`: content in `blobs/ETAG`, what is not whole yet in
//! `blobs/ETAG.incomplete`, links to it in `snapshots/COMMIT/`, locks in `.locks/`; so that a cache serves
//! both, and one goes on where the other stopped.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread::sleep;

use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use recipe::hub::HubReference;
use runtime::hash::hash_file;

use super::client::{Client, Metadata, PAUSES, header, wrong};
use super::error::HubError;
use super::progress::Transfer;

const BUFFER_BYTES: usize = 1 << 18;

/// A repository at a commit, and its place in the cache.
pub struct Commit<'a> {
    /// What is asked.
    pub client: &'a Client,
    /// The repository; its revision is the commit.
    pub subject: HubReference,
    /// Where the cache is.
    pub cache: &'a Path,
}

/// The part of a file that is here.
struct Incomplete<'a> {
    url: &'a str,
    path: PathBuf,
    size: u64,
    /// The hash of the whole, where it is known.
    sha256: Option<&'a str>,
}

/// The repository at its revision, as hf-hub names it.
pub fn hub_repo(reference: &HubReference) -> Repo {
    let (repo, revision) = (reference.repo().to_owned(), reference.revision().to_owned());
    Repo::with_revision(repo, RepoType::Model, revision)
}

impl Commit<'_> {
    fn place(&self) -> CacheRepo {
        Cache::new(self.cache.to_owned()).repo(hub_repo(&self.subject))
    }

    /// The folder of the commit's files.
    pub fn folder(&self) -> PathBuf {
        self.place().pointer_path(self.subject.revision())
    }

    /// Whether a file of this size is here.
    pub fn has(&self, name: &str, size: Option<u64>) -> bool {
        is_whole(&self.folder().join(name), size)
    }

    /// Brings a file into the cache; `listed` is its size, where the list of files says it.
    ///
    /// # Errors
    /// What the hub refuses, a connection that ends or falls silent again and again, a file that is not
    /// what was announced, a disk that is full.
    pub fn fetch(&self, name: &str, listed: Option<u64>) -> Result<(), HubError> {
        let repo = hub_repo(&self.subject);
        let path = format!("{}/resolve/{}/{name}", repo.url(), repo.url_revision());
        let url = self.client.url(&path);
        let Metadata { etag, size } = self.client.metadata(&self.subject, &url)?;
        let size = match (size, listed) {
            (Some(found), Some(expected)) if found != expected => {
                return Err(HubError::Size {
                    url,
                    expected,
                    found,
                });
            }
            (size, listed) => size.or(listed),
        };
        let size = size.ok_or_else(|| wrong(&url, "does not say how long it is"))?;
        let blob = self.place().blob_path(&etag);
        let mut show = Transfer::begin(&format!("{} {name}", self.subject.repo()), size);
        let _lock = self.lock(&etag, &show)?;
        if !is_whole(&blob, Some(size)) {
            let incomplete = Incomplete {
                url: &url,
                path: blob.with_file_name(format!("{etag}.incomplete")),
                size,
                sha256: is_sha256(&etag).then_some(&etag),
            };
            self.complete(&incomplete, &mut show)?;
            let file = File::open(&incomplete.path).and_then(|file| file.sync_all());
            file.and_then(|()| fs::rename(&incomplete.path, &blob))
                .map_err(HubError::disk("write", &blob))?;
        }
        show.end();
        self.link(name, &etag)
    }

    /// Waits for others that bring the same file.
    fn lock(&self, etag: &str, show: &Transfer) -> Result<File, HubError> {
        let folder = hub_repo(&self.subject).folder_name();
        let path = self
            .cache
            .join(".locks")
            .join(folder)
            .join(format!("{etag}.lock"));
        make_parent(&path)?;
        let file = File::create(&path).map_err(HubError::disk("create", &path))?;
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => show.note("waits for another process that fetches it"),
            Err(TryLockError::Error(error)) => return Err(HubError::disk("lock", &path)(error)),
        }
        file.lock().map_err(HubError::disk("lock", &path))?;
        Ok(file)
    }

    /// Goes on until every byte is here and is what was announced. A connection that ends is made again;
    /// only a row of failures without a new byte between them ends it.
    fn complete(&self, incomplete: &Incomplete<'_>, show: &mut Transfer) -> Result<(), HubError> {
        make_parent(&incomplete.path)?;
        let mut inherited = incomplete.bytes() > 0;
        let mut failures = 0;
        loop {
            let before = incomplete.bytes();
            let error = match self.stream(incomplete, show) {
                Ok(()) => match incomplete.verify() {
                    // The fault may be in what an earlier process left.
                    Err(HubError::Hash { .. }) if inherited => {
                        inherited = false;
                        show.note(
                            "what an earlier download left is not of this file; from the start",
                        );
                        continue;
                    }
                    verified => return verified,
                },
                Err(error) => error,
            };
            failures = if incomplete.bytes() > before {
                1
            } else {
                failures + 1
            };
            if !error.is_passing() || failures > PAUSES.len() {
                return Err(error);
            }
            let text = error.to_string();
            show.note(&format!(
                "{}; again",
                text.lines().next().unwrap_or_default()
            ));
            sleep(PAUSES[failures - 1]);
        }
    }

    /// Appends what is missing, as far as it comes.
    fn stream(&self, incomplete: &Incomplete<'_>, show: &mut Transfer) -> Result<(), HubError> {
        let Incomplete { url, size, .. } = *incomplete;
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&incomplete.path)
            .map_err(HubError::disk("open", &incomplete.path))?;
        let mut have = incomplete.bytes();
        if have > size {
            incomplete.shorten(&file)?;
            have = 0;
        }
        if have == size {
            return Ok(());
        }
        let answer = self.client.file(&self.subject, url, have)?;
        match answer.status().as_u16() {
            206 if header(&answer, "content-range").starts_with(&format!("bytes {have}-")) => {}
            // The server sends all of it, or has nothing from there on.
            status => {
                incomplete.shorten(&file)?;
                have = 0;
                if status != 200 {
                    return Err(HubError::Broken {
                        url: url.to_owned(),
                        found: 0,
                        expected: size,
                    });
                }
            }
        }
        let mut body = answer.into_body().into_reader();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let read = body
                .read(&mut buffer)
                .map_err(|error| self.client.interruption(url, error, (have, size)))?;
            if read == 0 {
                break;
            }
            have += read as u64;
            if have > size {
                incomplete.remove();
                return Err(incomplete.of_size(have));
            }
            file.write_all(&buffer[..read])
                .map_err(HubError::disk("write", &incomplete.path))?;
            show.advance(have);
        }
        if have < size {
            return Err(HubError::Broken {
                url: url.to_owned(),
                found: have,
                expected: size,
            });
        }
        Ok(())
    }

    /// Links a file's content into the commit's folder.
    fn link(&self, name: &str, etag: &str) -> Result<(), HubError> {
        let link = self.folder().join(name);
        make_parent(&link)?;
        let temporary = link.with_file_name(format!(".{name}.{etag}"));
        // A killed process may have left one.
        let _ = fs::remove_file(&temporary);
        symlink(format!("../../blobs/{etag}"), &temporary)
            .and_then(|()| fs::rename(&temporary, &link))
            .map_err(HubError::disk("link", &link))
    }
}

impl Incomplete<'_> {
    fn bytes(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |found| found.len())
    }

    fn shorten(&self, file: &File) -> Result<(), HubError> {
        file.set_len(0)
            .map_err(HubError::disk("shorten", &self.path))
    }

    /// Best effort: the error that matters is already in hand.
    fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }

    fn of_size(&self, found: u64) -> HubError {
        HubError::Size {
            url: self.url.to_owned(),
            expected: self.size,
            found,
        }
    }

    /// Checks the hash, where it is known; what is wrong goes away.
    fn verify(&self) -> Result<(), HubError> {
        let Some(expected) = self.sha256 else {
            return Ok(());
        };
        let found = hash_file(&self.path)?;
        if found == expected {
            return Ok(());
        }
        self.remove();
        Err(HubError::Hash {
            url: self.url.to_owned(),
            expected: expected.to_owned(),
            found,
        })
    }
}

fn is_whole(path: &Path, size: Option<u64>) -> bool {
    let found = fs::metadata(path);
    found.is_ok_and(|found| found.is_file() && size.is_none_or(|size| found.len() == size))
}

/// The hub's `ETag` of a large file is its SHA-256; that of a small one is git's.
fn is_sha256(etag: &str) -> bool {
    etag.len() == 64
        && etag
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn make_parent(path: &Path) -> Result<(), HubError> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(HubError::disk("create", parent))
}
