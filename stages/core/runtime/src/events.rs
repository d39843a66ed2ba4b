//! What the worker tells the front: one JSON object a line on the worker's standard output.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, Serialize};

use crate::metrics::Metrics;

/// Time between two progress events.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// The exit code of a worker that failed because other ranks did.
pub const LOST_OTHERS: u8 = 75;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A stage begins or continues.
    Started {
        /// The stage's name.
        stage: String,
        /// Updates already done.
        step: u64,
        /// Updates in all.
        steps: u64,
    },
    /// An update is done.
    Progress {
        /// The stage's name.
        stage: String,
        /// Updates done.
        step: u64,
        /// Updates in all.
        steps: u64,
        /// What was measured; NaN travels as `null`.
        #[serde(deserialize_with = "null_is_nan")]
        metrics: BTreeMap<String, f64>,
    },
    /// A remark for the user.
    Note {
        /// The remark.
        text: String,
    },
    /// Data for the user's standard output.
    Output {
        /// One line of it.
        line: String,
    },
    /// The work failed in a way that the worker can put in words.
    Failed {
        /// The whole chain of causes, with hints.
        error: String,
    },
    /// The work ended.
    Finished {
        /// The stage's name.
        stage: String,
        /// It ended because it was asked to; a snapshot was saved.
        interrupted: bool,
    },
}

fn null_is_nan<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, f64>, D::Error> {
    let metrics = BTreeMap::<String, Option<f64>>::deserialize(from)?;
    Ok(metrics
        .into_iter()
        .map(|(name, value)| (name, value.unwrap_or(f64::NAN)))
        .collect())
}

/// Prints an event as a line and flushes. A front that is gone is no error here: the worker learns
/// of its end by its standard input.
pub fn emit(event: &Event) {
    let mut out = io::stdout().lock();
    // Every event has a JSON form: its maps have string keys.
    if let Ok(line) = serde_json::to_string(event) {
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}

/// Emits [`Event::Progress`], ten times a second at most; a stage's first and last always.
pub fn emit_progress(stage: &str, step: u64, steps: u64, metrics: &Metrics) {
    static LAST: Mutex<Option<(String, Instant)>> = Mutex::new(None);
    let Ok(mut last) = LAST.lock() else { return };
    let too_soon = last
        .as_ref()
        .is_some_and(|(name, at)| name == stage && at.elapsed() < PROGRESS_INTERVAL);
    if too_soon && step < steps {
        return;
    }
    *last = Some((stage.to_owned(), Instant::now()));
    emit(&Event::Progress {
        stage: stage.to_owned(),
        step,
        steps,
        metrics: metrics
            .iter()
            .map(|(&name, &value)| (name.to_owned(), value))
            .collect(),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_the_journey_even_with_nan() -> Result<(), serde_json::Error> {
        let metrics = BTreeMap::from([
            ("loss/train".into(), f64::NAN),
            ("optimizer/lr".into(), 0.25),
        ]);
        let event = Event::Progress {
            stage: "sft".into(),
            step: 1,
            steps: 2,
            metrics,
        };
        let line = serde_json::to_string(&event)?;
        assert!(line.starts_with(r#"{"event":"progress","#), "{line}");
        let Event::Progress { metrics, .. } = serde_json::from_str(&line)? else {
            panic!("another event came back: {line}");
        };
        assert!(metrics["loss/train"].is_nan());
        assert!((metrics["optimizer/lr"] - 0.25).abs() < f64::EPSILON);
        Ok(())
    }
}
