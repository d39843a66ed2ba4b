//! `rlhf model pull`: a model from the hub, in the cache or in a folder of its own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use recipe::hub::{HUB_PREFIX, HubReference};
use runtime::files::ensure_space;
use runtime::{Manifest, WholeFolder};

use super::{check_out, print};
use crate::failure::{Failure, Outcome};
use crate::hub::{Models, Pulled};

/// `rlhf model pull`.
#[derive(Debug, Clone, Args)]
pub struct PullArgs {
    /// The repository.
    #[arg(value_name = "ORG/NAME")]
    pub repo: String,
    /// A branch, a tag or a commit [default: main].
    #[arg(long, value_name = "REV")]
    pub revision: Option<String>,
    /// Copy the model's files to this new folder.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// Fetches a model, and prints the folder that holds it.
///
/// # Errors
/// A name that is none, a folder that is there already, or what the hub does not give.
pub fn run(args: &PullArgs) -> Outcome {
    let reference = match &args.revision {
        Some(revision) => {
            let repo = args.repo.strip_prefix(HUB_PREFIX).unwrap_or(&args.repo);
            HubReference::new(repo, revision)
        }
        None => HubReference::parse(&args.repo),
    };
    let reference = reference.map_err(Failure::usage)?;
    if let Some(out) = &args.out {
        check_out(out)?;
    }
    let pulled = Models::default().pull(&reference)?;
    let of = reference.at(&pulled.commit);
    let folder = match &args.out {
        Some(out) => {
            copy(&pulled, &of, out)?;
            out
        }
        None => &pulled.path,
    };
    eprintln!("{of}: {} files", pulled.files.len());
    // A reader that has seen enough is no failure.
    let _ = print(&folder.display().to_string());
    Ok(())
}

/// Copies a model's files to a folder that appears whole, with a manifest that names the commit.
fn copy(pulled: &Pulled, of: &HubReference, out: &Path) -> Outcome {
    let size = |name: &String| fs::metadata(pulled.path.join(name)).map_or(0, |file| file.len());
    let bytes = pulled.files.iter().map(size).sum();
    ensure_space(out, bytes).map_err(Failure::run)?;
    let folder = WholeFolder::create(out).map_err(Failure::run)?;
    for name in &pulled.files {
        let (from, to) = (pulled.path.join(name), folder.path().join(name));
        fs::copy(&from, &to)
            .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    }
    let mut manifest = Manifest::new("checkpoint", "pull", 0);
    manifest.parents = [(of.to_string(), pulled.commit.clone())].into();
    manifest.seal(folder.path()).map_err(Failure::run)?;
    folder.commit().map_err(Failure::run)
}
