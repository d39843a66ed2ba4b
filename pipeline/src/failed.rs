//! `failed.json` of a stage's folder: why it is not done, for those who look from elsewhere.

use std::fs;
use std::io;

use runtime::StageFolder;
use runtime::files::{FileError, read_json, write_json};
use runtime::logging::in_words;
use runtime::run_lock::{host_name, seconds_since_epoch};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// A failure that was written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// All that was said of it.
    pub error: String,
    /// The machine.
    pub host: String,
    /// The process there.
    pub pid: u32,
    /// When, in seconds since the epoch.
    pub time: u64,
}

impl Failed {
    /// Writes down why a stage has failed. What follows from a failure elsewhere is not the reason, nor is an interrupt.
    pub fn note(failure: &Failure, folder: &StageFolder) {
        let (Failure::Usage(error) | Failure::Run(error) | Failure::Killed(error, _)) = failure
        else {
            return;
        };
        let failed = Self {
            error: in_words(error.as_ref()),
            host: host_name(),
            pid: std::process::id(),
            time: seconds_since_epoch(),
        };
        if let Err(error) = write_json(&folder.failed_path(), &failed) {
            // The failure itself is what is reported.
            tracing::error!("{error}");
        }
    }

    /// The failure of a stage since then (in seconds since the epoch), if it has one; one of before is of another run.
    pub fn since(folder: &StageFolder, time: u64) -> Option<Self> {
        let failed: Self = read_json(&folder.failed_path()).ok()?;
        (failed.time >= time).then_some(failed)
    }

    /// Takes it away, since the stage begins.
    ///
    /// # Errors
    /// The system refuses.
    pub fn forget(folder: &StageFolder) -> Result<(), FileError> {
        let path = folder.failed_path();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(FileError::io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::RunFolder;

    #[test]
    fn a_failure_of_before_is_of_another_run() -> Result<(), FileError> {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = RunFolder::at(dir.path()).stage("sft");
        fs::create_dir(folder.root()).expect("a folder");
        assert_eq!(Failed::since(&folder, 0), None);
        Failed::note(&Failure::Elsewhere(anyhow::anyhow!("lost")), &folder);
        assert_eq!(Failed::since(&folder, 0), None);
        Failed::note(&Failure::Run(anyhow::anyhow!("no text")), &folder);
        let failed = Failed::since(&folder, 0).expect("written");
        assert_eq!(failed.error, "no text");
        // What is there already when somebody looks counts as well.
        assert_eq!(Failed::since(&folder, failed.time), Some(failed.clone()));
        assert_eq!(Failed::since(&folder, failed.time + 1), None);
        Failed::forget(&folder)?;
        assert_eq!(Failed::since(&folder, 0), None);
        Ok(())
    }
}
