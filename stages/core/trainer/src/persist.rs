//! How a stage saves, continues and hands on, in terms of its context.

use datasets::Tokenizer;
use runtime::files::WholeFolder;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{
    RestorePart, SnapshotPart, StageContext, TrainerError, latest_valid_snapshot, restore_snapshot,
    retain, save_snapshot,
};

/// How a stage ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// `final/` is there.
    Finished,
    /// Somebody asked it to stop; a snapshot is there.
    Interrupted,
}

impl StageContext {
    /// Writes a snapshot after `step` updates and removes those that the retention lets go;
    /// `best` is kept.
    ///
    /// # Errors
    /// Where it cannot be written; earlier snapshots stay.
    pub fn save(
        &self,
        step: u64,
        parts: &[SnapshotPart],
        tokenizer: &Tokenizer,
        state: &impl Serialize,
        best: Option<u64>,
    ) -> Result<(), TrainerError> {
        let state = serde_json::json!(state);
        let manifest = self.manifest("checkpoint", step);
        save_snapshot(&self.stage, step, parts, tokenizer, &state, manifest)?;
        retain(&self.stage, self.plan.execution.keep, best)
    }

    /// Continues from the latest snapshot: `None` where there is none yet.
    ///
    /// # Errors
    /// Where the latest snapshot is damaged or belongs to something else.
    pub fn restore<T: DeserializeOwned>(
        &self,
        parts: &mut [RestorePart],
    ) -> Result<Option<T>, TrainerError> {
        let Some((step, folder)) = latest_valid_snapshot(&self.stage)? else {
            return Ok(None);
        };
        let state = restore_snapshot(&folder, parts)?;
        tracing::info!(step, "continuing from {}", folder.display());
        let state = serde_json::from_value(state).map_err(|source| {
            let path = folder.join("training/state.json");
            TrainerError::StageState { path, source }
        })?;
        Ok(Some(state))
    }

    /// Seals a folder of data (`kind` of the manifest) and makes it appear.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn seal(&self, folder: WholeFolder, kind: &str, step: u64) -> Result<(), TrainerError> {
        self.manifest(kind, step).seal(folder.path())?;
        Ok(folder.commit()?)
    }

    /// Where the stage keeps what it can make again, such as tokenised text.
    pub fn cache_dir(&self) -> std::path::PathBuf {
        self.stage.root().join("cache")
    }
}
