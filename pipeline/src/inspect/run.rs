//! Runs as data: their stages, how far each is, and their metrics.

use std::path::PathBuf;

use runtime::metrics::MetricRow;

use super::evaluation::Evaluation;

/// Gaps between two metric lines that are longer than this many usual gaps are pauses.
const PAUSE_FACTOR: f64 = 20.0;
/// Gaps up to this length are never pauses, however fast the stage is.
const SHORTEST_PAUSE_S: f64 = 60.0;

/// How far a stage is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It has not been started.
    Waiting,
    /// A process works on it now.
    Running,
    /// It was started, is not done, and nobody works on it.
    Stopped,
    /// It is done.
    Done,
}

impl State {
    /// The word that tables show.
    pub fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Done => "done",
        }
    }
}

/// One stage of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// Its name, which is its folder's name.
    pub name: String,
    /// How far it is.
    pub state: State,
    /// Steps it is planned to take, where the plan knows.
    pub planned: Option<u64>,
    /// Step of the checkpoint in `final/`, where it has one with a manifest.
    pub selected: Option<u64>,
    /// Its metrics by step.
    pub rows: Vec<MetricRow>,
    /// What `rlhf eval` found of its policy.
    pub evaluation: Option<Evaluation>,
}

/// One run.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// What tables and legends call it.
    pub label: String,
    /// Its folder.
    pub root: PathBuf,
    /// Its stages, in the plan's order.
    pub stages: Vec<Stage>,
}

impl Stage {
    /// The finite values of a metric as (step, value), by step.
    pub fn series(&self, metric: &str) -> Vec<(u64, f64)> {
        let value = |row: &MetricRow| Some((row.step, *row.values.get(metric)?));
        self.rows
            .iter()
            .filter_map(value)
            .filter(|(_, value)| value.is_finite())
            .collect()
    }

    /// Two metrics where both were measured at the same step, as (step, x, y), by step.
    pub fn pairs(&self, x: &str, y: &str) -> Vec<(u64, f64, f64)> {
        let both = |row: &MetricRow| Some((row.step, *row.values.get(x)?, *row.values.get(y)?));
        let finite = |&(_, x, y): &(u64, f64, f64)| x.is_finite() && y.is_finite();
        self.rows.iter().filter_map(both).filter(finite).collect()
    }

    /// Time of the earliest metric line; later than all times without one.
    pub fn first_time(&self) -> f64 {
        self.rows
            .iter()
            .map(|row| row.time)
            .fold(f64::INFINITY, f64::min)
    }

    /// The last step with a metric.
    pub fn last_step(&self) -> Option<u64> {
        self.rows.last().map(|row| row.step)
    }

    /// Seconds from the first metric line to the last, without pauses (a run that was stopped and
    /// continued later): gaps longer than 60 s and 20 times the median gap. `None` below two lines.
    pub fn active_seconds(&self) -> Option<f64> {
        let mut times: Vec<f64> = self.rows.iter().map(|row| row.time).collect();
        times.sort_by(f64::total_cmp);
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let usual = median(&gaps)?;
        let pause = (usual * PAUSE_FACTOR).max(SHORTEST_PAUSE_S);
        Some(gaps.iter().filter(|&&gap| gap <= pause).sum())
    }

    /// The median of a metric over its steps.
    pub fn median(&self, metric: &str) -> Option<f64> {
        median(
            &self
                .series(metric)
                .iter()
                .map(|&(_, value)| value)
                .collect::<Vec<_>>(),
        )
    }

    /// The largest value of a metric over its steps.
    pub fn most(&self, metric: &str) -> Option<f64> {
        let values = self.series(metric).into_iter().map(|(_, value)| value);
        values.max_by(f64::total_cmp)
    }
}

impl Run {
    /// Whether every stage is done.
    pub fn is_done(&self) -> bool {
        self.stages.iter().all(|stage| stage.state == State::Done)
    }

    /// The stages whose policies were evaluated, with what was found.
    pub fn evaluations(&self) -> impl Iterator<Item = (&Stage, &Evaluation)> {
        let stages = self.stages.iter();
        stages.filter_map(|stage| Some((stage, stage.evaluation.as_ref()?)))
    }

    /// Whether any stage has metrics.
    pub fn has_metrics(&self) -> bool {
        self.stages.iter().any(|stage| !stage.rows.is_empty())
    }

    /// The stage of this name.
    pub fn stage(&self, name: &str) -> Option<&Stage> {
        self.stages.iter().find(|stage| stage.name == name)
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        len if len % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::row;
    use super::*;

    #[test]
    fn pauses_are_no_working_time() {
        let times = [0.0, 1.0, 2.0, 5000.0, 5001.0];
        let rows = times
            .into_iter()
            .zip(1..)
            .map(|(time, step)| row(step, time, &[]))
            .collect();
        let stage = |rows| Stage {
            name: "sft".to_owned(),
            state: State::Done,
            planned: None,
            selected: None,
            rows,
            evaluation: None,
        };
        assert_eq!(stage(rows).active_seconds(), Some(3.0));
        assert_eq!(stage(vec![row(1, 9.0, &[])]).active_seconds(), None);
    }
}
