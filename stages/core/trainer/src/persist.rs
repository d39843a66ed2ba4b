//! How a stage saves, continues and hands on, in terms of its context.

use std::path::{Path, PathBuf};

use datasets::Tokenizer;
use model::Model;
use runtime::files::WholeFolder;
use runtime::manifest::Manifest;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{
    Contents, RestorePart, SnapshotPart, StageContext, TrainerError, latest_valid_snapshot,
    restore_snapshot, retain, save_snapshot,
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
        let contents = Contents {
            parts,
            tokenizer,
            state: serde_json::json!(state),
        };
        let manifest = self.manifest("checkpoint", step);
        self.ranks.at(&format!("the snapshot of step {step}"));
        save_snapshot(&self.ranks, &self.stage, step, &contents, manifest)?;
        if self.ranks.is_first() {
            retain(&self.stage, self.plan.execution.keep, best)?;
        }
        self.ranks.barrier()
    }

    /// Writes a checkpoint of `model`, with `further` ones below it.
    ///
    /// # Errors
    /// As [`crate::finish()`].
    pub fn finish(
        &self,
        dir: &Path,
        model: &Model,
        further: &[(&str, &Model)],
        tokenizer: &Tokenizer,
        manifest: Manifest,
    ) -> Result<(), TrainerError> {
        self.ranks.at("the end");
        let models = [&[("", model)], further].concat();
        crate::finish(&self.ranks, dir, &models, tokenizer, manifest)
    }

    /// Whether somebody wants the run to save and end: any rank may be told.
    ///
    /// # Errors
    /// Where another rank fails.
    pub fn asked_to_stop(&self) -> Result<bool, TrainerError> {
        self.ranks.any(runtime::interrupt::requested())
    }

    /// Continues from the latest snapshot: `None` where there is none yet.
    ///
    /// # Errors
    /// Where the latest snapshot is damaged or belongs to something else.
    pub fn restore<T: DeserializeOwned>(
        &self,
        parts: &mut [RestorePart],
    ) -> Result<Option<T>, TrainerError> {
        let Some((step, folder)) = self.latest_snapshot()? else {
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

    /// The first rank's choice, which it has checked: all continue from the same.
    fn latest_snapshot(&self) -> Result<Option<(u64, PathBuf)>, TrainerError> {
        let found = if self.ranks.is_first() {
            latest_valid_snapshot(&self.stage)?
        } else {
            None
        };
        self.ranks.word_of_first(found)
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
    pub fn cache_dir(&self) -> PathBuf {
        self.stage.root().join("cache")
    }
}
