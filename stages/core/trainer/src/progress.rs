//! What a stage says of each step: a line of metrics to its run folder, and an event to whoever watches.

use runtime::events::{Event, emit, emit_progress};
use runtime::metrics::{Metrics, MetricsWriter};
use runtime::run_folder::StageFolder;

use crate::error::TrainerError;

/// Logs the steps of one stage.
#[derive(Debug)]
pub struct Progress {
    writer: MetricsWriter,
    stage: String,
    steps: u64,
}

impl Progress {
    /// Appends to the metrics of `folder`, and says that the stage begins, or continues, after `step`
    /// of `steps` updates.
    ///
    /// # Errors
    /// Where the file cannot be opened.
    pub fn open(
        folder: &StageFolder,
        stage: &str,
        (step, steps): (u64, u64),
    ) -> Result<Self, TrainerError> {
        let writer = MetricsWriter::append(&folder.metrics_path())?;
        emit(&Event::Started {
            stage: stage.to_owned(),
            step,
            steps,
        });
        Ok(Self {
            writer,
            stage: stage.to_owned(),
            steps,
        })
    }

    /// Logs what was measured in `step`, and shows it (at most ten times a second).
    ///
    /// # Errors
    /// Where the line cannot be written.
    pub fn step(&mut self, step: u64, metrics: &Metrics) -> Result<(), TrainerError> {
        self.record(step, metrics)?;
        emit_progress(&self.stage, step, self.steps, metrics);
        Ok(())
    }

    /// Logs without showing: evaluations, which share a step with a training line.
    ///
    /// # Errors
    /// Where the line cannot be written.
    pub fn record(&mut self, step: u64, metrics: &Metrics) -> Result<(), TrainerError> {
        Ok(self.writer.write(step, metrics)?)
    }
}
