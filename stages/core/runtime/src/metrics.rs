//! Metrics: the append-only `metrics.jsonl` and its reader.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

use crate::files::FileError;

pub use crate::metric_names::{METRICS, MetricSpec, spec};

/// Metrics of one step, by declared name.
pub type Metrics = BTreeMap<&'static str, f64>;

/// Appends to a stage's `metrics.jsonl`.
#[derive(Debug)]
pub struct MetricsWriter {
    path: PathBuf,
    file: File,
}

impl MetricsWriter {
    /// Opens (or makes) the file for appending. A line that a killed process left torn is ended
    /// first, so that it spoils no other.
    ///
    /// # Errors
    /// The file cannot be opened or written.
    pub fn append(path: &Path) -> Result<Self, FileError> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(FileError::io("create", parent))?;
        }
        let open = || -> io::Result<File> {
            let mut file = OpenOptions::new()
                .create(true)
                .read(true)
                .append(true)
                .open(path)?;
            if file.metadata()?.len() > 0 {
                let mut last = [0];
                file.seek(SeekFrom::End(-1))?;
                file.read_exact(&mut last)?;
                if last != *b"\n" {
                    file.write_all(b"\n")?;
                }
            }
            Ok(file)
        };
        let file = open().map_err(FileError::io("open", path))?;
        Ok(Self {
            path: path.to_path_buf(),
            file,
        })
    }

    /// Writes one line: `step`, `time` (seconds since the epoch) and the metrics. Non-finite values
    /// become `null`, which [`read_metrics`] reads as NaN.
    ///
    /// # Errors
    /// The file cannot be written.
    ///
    /// # Panics
    /// A name is not in [`METRICS`].
    pub fn write(&mut self, step: u64, metrics: &Metrics) -> Result<(), FileError> {
        let mut line = Map::new();
        line.insert("step".into(), step.into());
        line.insert("time".into(), seconds_since_epoch().into());
        for (&name, &value) in metrics {
            assert!(
                spec(name).is_some(),
                "metric `{name}` is not declared in runtime::metrics"
            );
            line.insert(name.into(), value.into());
        }
        let mut bytes = Value::Object(line).to_string().into_bytes();
        bytes.push(b'\n');
        self.file
            .write_all(&bytes)
            .and_then(|()| self.file.flush())
            .map_err(FileError::io("append to", &self.path))
    }
}

fn seconds_since_epoch() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

/// What is known of one step.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricRow {
    /// Update, or PPO iteration.
    pub step: u64,
    /// Seconds since the epoch at which it was last written.
    pub time: f64,
    /// Values by name.
    pub values: BTreeMap<String, f64>,
}

/// Reads a `metrics.jsonl`, sorted by step. Lines of one step are merged, and of a name that stands
/// in several the last value wins: a resumed run replaces what it repeats. Torn lines are skipped.
///
/// # Errors
/// The file cannot be read.
pub fn read_metrics(path: &Path) -> Result<Vec<MetricRow>, FileError> {
    let bytes = fs::read(path).map_err(FileError::io("read", path))?;
    let mut rows = BTreeMap::<u64, MetricRow>::new();
    for line in bytes.split(|&byte| byte == b'\n') {
        let Ok(object) = serde_json::from_slice::<Map<String, Value>>(line) else {
            continue;
        };
        let (Some(step), Some(time)) = (
            object.get("step").and_then(Value::as_u64),
            object.get("time").and_then(Value::as_f64),
        ) else {
            continue;
        };
        let row = rows.entry(step).or_insert_with(|| MetricRow {
            step,
            time,
            values: BTreeMap::new(),
        });
        row.time = time;
        let values = object
            .into_iter()
            .filter(|(name, _)| name != "step" && name != "time");
        for (name, value) in values {
            row.values.insert(name, value.as_f64().unwrap_or(f64::NAN));
        }
    }
    Ok(rows.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    type Outcome = Result<(), Box<dyn std::error::Error>>;

    #[test]
    fn a_torn_line_is_ended_and_repeated_steps_merge_name_by_name() -> Outcome {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("stage/metrics.jsonl");
        MetricsWriter::append(&path)?.write(2, &Metrics::from([("loss/train", 4.0)]))?;
        let mut writer = MetricsWriter::append(&path)?;
        writer.write(1, &Metrics::from([("loss/train", f64::NAN)]))?;
        writer.write(2, &Metrics::from([("loss/heldout", 5.0)]))?;
        OpenOptions::new()
            .append(true)
            .open(&path)?
            .write_all(br#"{"step":3,"ti"#)?;
        MetricsWriter::append(&path)?.write(2, &Metrics::from([("loss/train", 3.0)]))?;
        let rows = read_metrics(&path)?;
        assert_eq!(rows.iter().map(|row| row.step).collect::<Vec<_>>(), [1, 2]);
        assert!(rows[0].values["loss/train"].is_nan());
        let expected = BTreeMap::from([("loss/train".into(), 3.0), ("loss/heldout".into(), 5.0)]);
        assert_eq!(rows[1].values, expected);
        assert!(rows[1].time > 1e9);
        Ok(())
    }

    #[test]
    #[should_panic(expected = "metric `loss/trian` is not declared")]
    fn an_undeclared_name_is_a_bug() {
        let written = tempfile::tempdir().map(|dir| {
            MetricsWriter::append(&dir.path().join("m"))
                .and_then(|mut writer| writer.write(0, &Metrics::from([("loss/trian", 0.0)])))
        });
        assert!(written.is_ok());
    }
}
