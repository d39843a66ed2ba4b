//! The table, and the file of all numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use runtime::statistics::median;
use serde_json::{Value, json};

use super::{Measurement, OURS, Work};
use crate::commands::measured::machine;

/// Everything that was measured.
#[derive(Debug, Default)]
pub(super) struct Report {
    measurements: Vec<Measurement>,
    /// Why something of the other side is missing.
    left_out: Vec<String>,
    /// What the other side runs on: versions by package.
    versions: BTreeMap<String, String>,
}

/// The middle of some numbers and their ends.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(values: &[f64]) -> Option<Self> {
        (!values.is_empty()).then(|| Self {
            median: median(values),
            least: values.iter().copied().fold(f64::INFINITY, f64::min),
            most: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        })
    }

    fn words(self, digits: usize) -> String {
        let Self {
            median,
            least,
            most,
        } = self;
        format!("{median:.digits$} ({least:.digits$} to {most:.digits$})")
    }
}

impl Report {
    pub(super) fn extend(&mut self, measurements: Vec<Measurement>) {
        self.measurements.extend(measurements);
    }

    pub(super) fn leave_out(&mut self, why: String) {
        eprintln!("left out: {why}");
        self.left_out.push(why);
    }

    pub(super) fn note_versions(&mut self, versions: BTreeMap<String, String>) {
        self.versions.extend(versions);
    }

    /// A Markdown table: a row for each work, type and other side.
    pub(super) fn table(&self) -> String {
        let mut table = String::from(
            "| work | type | rlhf | share of peak | the other side | its figure | ratio |\n\
             |---|---|---|---|---|---|---|\n",
        );
        let dtypes: BTreeSet<_> = self.measurements.iter().map(|it| it.dtype).collect();
        for dtype in dtypes.into_iter().rev() {
            for work in Work::ALL {
                self.rows(work, dtype, &mut table);
            }
        }
        for why in &self.left_out {
            let _ = writeln!(table, "\nLeft out: {why}");
        }
        table
    }

    fn rows(&self, work: Work, dtype: &str, table: &mut String) {
        let digits = if work == Work::Start { 2 } else { 0 };
        let Some(ours) = Spread::of(&self.turns(work, dtype, OURS)) else {
            return;
        };
        let shares: Vec<f64> = self
            .of(work, dtype, OURS)
            .filter_map(|it| it.utilisation)
            .collect();
        let share = Spread::of(&shares)
            .map_or_else(String::new, |it| format!("{:.0} %", 100.0 * it.median));
        let all = self.measurements.iter();
        let sides: BTreeSet<&str> = all
            .filter(|it| it.work == work && it.dtype == dtype && it.side != OURS)
            .map(|it| it.side.as_str())
            .collect();
        let begin = format!(
            "| {} | {dtype} | {} {} | {share} |",
            work.words(),
            ours.words(digits),
            work.unit()
        );
        if sides.is_empty() {
            let _ = writeln!(table, "{begin} | | |");
        }
        for side in sides {
            let theirs = Spread::of(&self.turns(work, dtype, side));
            let ratio = Spread::of(&self.ratios(work, dtype, side));
            let words = |spread: Option<Spread>, digits| {
                spread.map_or_else(String::new, |it| it.words(digits))
            };
            let _ = writeln!(
                table,
                "{begin} {side} | {} | {} |",
                words(theirs, digits),
                words(ratio, 2)
            );
        }
    }

    fn of<'a>(
        &'a self,
        work: Work,
        dtype: &'a str,
        side: &'a str,
    ) -> impl Iterator<Item = &'a Measurement> {
        self.measurements
            .iter()
            .filter(move |it| it.work == work && it.dtype == dtype && it.side == side)
    }

    /// The median of each turn.
    fn turns(&self, work: Work, dtype: &str, side: &str) -> Vec<f64> {
        let turns = self.of(work, dtype, side);
        turns
            .filter(|it| !it.values.is_empty())
            .map(|it| median(&it.values))
            .collect()
    }

    /// How many times faster ours was in each turn.
    fn ratios(&self, work: Work, dtype: &str, side: &str) -> Vec<f64> {
        let ours = self.of(work, dtype, OURS);
        let ratio = |ours: &Measurement| {
            let theirs = self.of(work, dtype, side).find(|it| it.turn == ours.turn)?;
            let (ours, theirs) = (median(&ours.values), median(&theirs.values));
            Some(match work {
                Work::Start => theirs / ours,
                _ => ours / theirs,
            })
        };
        ours.filter_map(ratio).collect()
    }

    /// Writes `cpu.json` and `cpu.md`.
    pub(super) fn write(&self, folder: &Path, table: &str) -> Result<()> {
        let machine = machine();
        let all: Vec<Value> = self
            .measurements
            .iter()
            .map(|it| {
                json!({
                    "work": it.work.words(),
                    "unit": it.work.unit(),
                    "dtype": it.dtype,
                    "turn": it.turn + 1,
                    "side": it.side,
                    "values": it.values,
                    "share_of_peak": it.utilisation,
                })
            })
            .collect();
        let of = |key: &str| machine[key].as_str().unwrap_or("unknown").to_owned();
        let head = format!(
            "{}, {} threads; {}; commit {}; {}; median of the turns (least to most); `make bench`\n\n",
            of("cpu"),
            machine["threads"],
            of("date"),
            of("commit"),
            self.versions
                .iter()
                .map(|(package, version)| format!("{package} {version}"))
                .collect::<Vec<_>>()
                .join(", ")
        );
        let results = json!({
            "machine": machine,
            "versions": self.versions,
            "left_out": self.left_out,
            "measurements": all,
        });
        let text = serde_json::to_string_pretty(&results)? + "\n";
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(folder.join("cpu.json"), text))
            .and_then(|()| fs::write(folder.join("cpu.md"), head + table))
            .with_context(|| format!("cannot write into {}", folder.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measurement(work: Work, turn: usize, side: &str, values: &[f64]) -> Measurement {
        Measurement {
            work,
            dtype: "f32",
            turn,
            side: side.to_owned(),
            values: values.to_vec(),
            utilisation: (side == OURS && work != Work::Start).then_some(0.5),
        }
    }

    #[test]
    fn ratios_are_taken_turn_by_turn_and_a_start_is_better_when_shorter() {
        let mut report = Report::default();
        report.extend(vec![
            measurement(Work::Train, 0, OURS, &[10.0, 20.0, 30.0]),
            measurement(Work::Train, 1, OURS, &[40.0]),
            measurement(Work::Train, 0, "bare", &[10.0]),
            measurement(Work::Train, 1, "bare", &[10.0]),
            measurement(Work::Start, 0, OURS, &[0.5]),
            measurement(Work::Start, 0, "bare", &[4.0]),
            measurement(Work::Ppo, 0, OURS, &[7.0]),
        ]);
        let table = report.table();
        let lines: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "| train, 16 x 128 | f32 | 30 (20 to 40) tokens/s | 50 % | bare | 10 (10 to 10) | 3.00 (2.00 to 4.00) |",
                "| PPO, 64 episodes, 32 + 64 | f32 | 7 (7 to 7) response tokens/s | 50 % | | | |",
                "| start to first step | f32 | 0.50 (0.50 to 0.50) s |  | bare | 4.00 (4.00 to 4.00) | 8.00 (8.00 to 8.00) |",
            ]
        );
    }
}
