//! What a stage says of each step: a line of metrics to its run folder, and an event to whoever watches.

use runtime::events::{Event, emit, emit_progress};
use runtime::metrics::{Metrics, MetricsWriter};
use tch::Device;

use crate::context::StageContext;
use crate::error::TrainerError;
use crate::memory::{peak_bytes, resident_bytes};

/// Logs the steps of one stage.
#[derive(Debug)]
pub struct Progress {
    /// The first rank's.
    writer: Option<MetricsWriter>,
    stage: String,
    steps: u64,
    device: Device,
    memory_at_start: Option<u64>,
}

impl Progress {
    /// Appends to the metrics of the stage, and says that it begins, or continues, after `step` of `steps`
    /// updates.
    ///
    /// # Errors
    /// Where the file cannot be opened.
    pub fn open(ctx: &StageContext, (step, steps): (u64, u64)) -> Result<Self, TrainerError> {
        let path = ctx.stage.metrics_path();
        let writer = ctx.ranks.is_first().then(|| MetricsWriter::append(&path));
        let stage = ctx.plan.name.clone();
        emit(&Event::Started {
            stage: stage.clone(),
            step,
            steps,
        });
        Ok(Self {
            writer: writer.transpose()?,
            stage,
            steps,
            device: ctx.device,
            memory_at_start: ctx.memory_at_start,
        })
    }

    /// Logs what was measured in `step` with the memory held so far, and shows it (at most ten times a second).
    ///
    /// # Errors
    /// Where the line cannot be written.
    pub fn step(&mut self, step: u64, mut metrics: Metrics) -> Result<(), TrainerError> {
        if let Some(bytes) = peak_bytes(self.device)? {
            metrics.insert("memory/peak", bytes as f64);
        }
        if let Some(bytes) = resident_bytes(self.device)? {
            metrics.insert("memory/resident", bytes as f64);
        }
        if let Some(bytes) = self.memory_at_start {
            metrics.insert("memory/start", bytes as f64);
        }
        self.record(step, &metrics)?;
        emit_progress(&self.stage, step, self.steps, &metrics);
        Ok(())
    }

    /// Logs without showing: evaluations, which share a step with a training line.
    ///
    /// # Errors
    /// Where the line cannot be written.
    pub fn record(&mut self, step: u64, metrics: &Metrics) -> Result<(), TrainerError> {
        match &mut self.writer {
            Some(writer) => Ok(writer.write(step, metrics)?),
            None => Ok(()),
        }
    }
}
