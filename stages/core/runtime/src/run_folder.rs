//! The layout of a run folder.
//!
//! ```text
//! runs/demo/
//!   plan.toml  plan.lock  lock  logs/<stage>.log  cluster/
//!   <stage>/stage.json  metrics.jsonl  step-000400/  rollouts/  final/  done.json  failed.json  lock
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::files::FileError;

/// The file of a run folder that says what the run is.
pub const PLAN: &str = "plan.toml";

/// The folder of one run.
#[derive(Debug, Clone)]
pub struct RunFolder {
    root: PathBuf,
}

impl RunFolder {
    /// The run folder at `root`, made if it is missing.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open_or_create(root: &Path) -> Result<Self, FileError> {
        fs::create_dir_all(root).map_err(FileError::io("create", root))?;
        Ok(Self::at(root))
    }

    /// The run folder at `root`, whether it is there or not.
    pub fn at(root: &Path) -> Self {
        Self {
            root: root.to_path_buf(),
        }
    }

    /// Its path.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `cluster/`: what was submitted from it.
    pub fn cluster_dir(&self) -> PathBuf {
        self.root.join("cluster")
    }

    /// The folder of one stage.
    pub fn stage(&self, name: &str) -> StageFolder {
        StageFolder {
            root: self.root.join(name),
        }
    }

    /// `plan.toml`.
    pub fn plan_path(&self) -> PathBuf {
        self.root.join(PLAN)
    }

    /// `logs/<stage>.log`.
    pub fn log_path(&self, stage: &str) -> PathBuf {
        self.root.join("logs").join(format!("{stage}.log"))
    }
}

/// The folder of one stage of a run.
#[derive(Debug, Clone)]
pub struct StageFolder {
    root: PathBuf,
}

impl StageFolder {
    /// Its path.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `metrics.jsonl`.
    pub fn metrics_path(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// `final/`: the artefact that other stages use.
    pub fn final_dir(&self) -> PathBuf {
        self.root.join("final")
    }

    /// `step-000400/`: the snapshot after that many updates.
    pub fn snapshot_dir(&self, step: u64) -> PathBuf {
        self.root.join(format!("step-{step:06}"))
    }

    /// The snapshots that are there, by ascending step. A missing folder has none.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn snapshots(&self) -> io::Result<Vec<(u64, PathBuf)>> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let step = name.to_str().and_then(|name| name.strip_prefix("step-"));
            if let Some(step) = step.and_then(|digits| digits.parse().ok()) {
                found.push((step, entry.path()));
            }
        }
        found.sort();
        Ok(found)
    }

    /// `rollouts/iteration-000012.parquet`.
    pub fn rollout_path(&self, iteration: u64) -> PathBuf {
        self.root
            .join("rollouts")
            .join(format!("iteration-{iteration:06}.parquet"))
    }

    /// `done.json`: written last; the stage is done where it is.
    pub fn done_path(&self) -> PathBuf {
        self.root.join("done.json")
    }

    /// `failed.json`: why it is not done, where it failed; gone once it is begun again.
    pub fn failed_path(&self) -> PathBuf {
        self.root.join("failed.json")
    }

    /// `stage.json`: written at the start; says what the folder is being made from.
    pub fn state_path(&self) -> PathBuf {
        self.root.join("stage.json")
    }

    /// Renames the folder to `NAME.old-N` with the first N that is free; `None` if there is none.
    ///
    /// # Errors
    /// The system refuses.
    pub fn move_aside(&self) -> Result<Option<PathBuf>, FileError> {
        if !self.root.exists() {
            return Ok(None);
        }
        let name = self
            .root
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let mut n = 1_u32;
        let aside = loop {
            let aside = self.root.with_file_name(format!("{name}.old-{n}"));
            if !aside.exists() {
                break aside;
            }
            n += 1;
        };
        fs::rename(&self.root, &aside).map_err(FileError::io("move aside", &self.root))?;
        Ok(Some(aside))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Outcome = Result<(), Box<dyn std::error::Error>>;

    #[test]
    fn snapshots_are_listed_by_step_and_others_ignored() -> Outcome {
        let dir = tempfile::tempdir()?;
        let stage = RunFolder::open_or_create(dir.path())?.stage("sft");
        assert!(stage.snapshots()?.is_empty());
        for step in [400, 20, 1_000_000] {
            fs::create_dir_all(stage.snapshot_dir(step))?;
        }
        for other in [".step-000500.partial-1", "step-x", "final"] {
            fs::create_dir(stage.root().join(other))?;
        }
        let steps: Vec<u64> = stage
            .snapshots()?
            .into_iter()
            .map(|(step, _)| step)
            .collect();
        assert_eq!(steps, [20, 400, 1_000_000]);
        assert!(stage.snapshot_dir(400).ends_with("sft/step-000400"));
        assert!(
            stage
                .rollout_path(12)
                .ends_with("rollouts/iteration-000012.parquet")
        );
        Ok(())
    }

    #[test]
    fn moving_aside_counts_up() -> Outcome {
        let dir = tempfile::tempdir()?;
        let stage = RunFolder::open_or_create(dir.path())?.stage("sft");
        assert_eq!(stage.move_aside()?, None);
        for n in 1..3 {
            fs::create_dir(stage.root())?;
            assert_eq!(
                stage.move_aside()?,
                Some(dir.path().join(format!("sft.old-{n}")))
            );
        }
        Ok(())
    }
}
