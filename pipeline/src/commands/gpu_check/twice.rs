//! Every stage twice on the device in deterministic mode: the same metrics and the same files, to the bit.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use recipe::plan::Plan;
use runtime::RunFolder;
use runtime::manifest::Manifest;
use runtime::metrics::MetricRow;

use super::Check;
use super::agreement::worked;
use super::report::State;
use super::work::{Place, StageRun};

const PART: &str = "twice";

/// What depends on the machine's mood.
const MACHINE: [&str; 5] = [
    "time/",
    "memory/",
    "tokens_per_second",
    "episodes_per_second",
    "mfu",
];

/// A stage's result: its numbers by step and name, and the hashes of its files.
type Outcome = (BTreeMap<(u64, String), u64>, BTreeMap<String, String>);

impl Check<'_> {
    pub(super) fn run_twice(&mut self) -> Result<State> {
        let plan = self.tiny()?;
        for stage in worked(&plan) {
            let found = self.result(&plan, &stage.name, "once").and_then(|once| {
                let again = self.result(&plan, &stage.name, "again")?;
                Ok(num_different(&once, &again) as f64)
            });
            let what = format!("{}: numbers and files that differ", stage.name);
            self.found(PART, what, 0.0, found)?;
        }
        Ok(self.report.state_of(PART))
    }

    fn result(&self, plan: &Plan, stage: &str, turn: &str) -> Result<Outcome> {
        let folder = self.folder(PART, &format!("{stage}-{turn}"));
        let rows = self.run_stage(&StageRun {
            plan,
            stage,
            inputs: &self.on_cpu(),
            folder: &folder,
            place: Place::Device,
            deterministic: true,
            steps: None,
        })?;
        let made = RunFolder::open_or_create(&folder)?.stage(stage).final_dir();
        let manifest = Manifest::read(&made)?;
        let files = manifest
            .with_context(|| format!("{} has no manifest", made.display()))?
            .files;
        let numbers = numbers(&rows);
        ensure!(
            !numbers.is_empty() && !files.is_empty(),
            "stage `{stage}` made nothing"
        );
        Ok((numbers, files))
    }
}

/// The bits of every number that is computed.
fn numbers(rows: &[MetricRow]) -> BTreeMap<(u64, String), u64> {
    let of_row = |row: &MetricRow| {
        let step = row.step;
        let computed = row
            .values
            .iter()
            .filter(|(name, _)| !MACHINE.iter().any(|prefix| name.starts_with(prefix)));
        let bits: Vec<_> = computed
            .map(|(name, value)| ((step, name.clone()), value.to_bits()))
            .collect();
        bits
    };
    rows.iter().flat_map(of_row).collect()
}

fn num_different((one, its_files): &Outcome, (other, other_files): &Outcome) -> usize {
    different(one, other) + different(its_files, other_files)
}

/// Entries that the other map lacks or has otherwise, in either direction.
fn different<K: Ord, V: PartialEq>(one: &BTreeMap<K, V>, other: &BTreeMap<K, V>) -> usize {
    let changed = one
        .iter()
        .filter(|(key, value)| other.get(key) != Some(value));
    let added = other.keys().filter(|key| !one.contains_key(key));
    changed.count() + added.count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: u64, loss: f64, seconds: f64) -> MetricRow {
        let values = [("loss/train", loss), ("time/step", seconds)];
        MetricRow {
            step,
            time: seconds,
            values: values.map(|(name, value)| (name.to_owned(), value)).into(),
        }
    }

    #[test]
    fn one_bit_is_a_difference_and_time_is_none() {
        let files = BTreeMap::from([("model".to_owned(), "a".to_owned())]);
        let result = |loss| {
            (
                numbers(&[row(1, 0.5, 1.0), row(2, loss, 2.0)]),
                files.clone(),
            )
        };
        let same = (
            numbers(&[row(1, 0.5, 9.0), row(2, 0.25, 8.0)]),
            files.clone(),
        );
        assert_eq!(num_different(&result(0.25), &same), 0);
        assert_eq!(num_different(&result(0.25 + f64::EPSILON), &same), 1);
        let fewer = (numbers(&[row(1, 0.5, 1.0)]), BTreeMap::new());
        assert_eq!(num_different(&result(0.25), &fewer), 2);
        assert_eq!(num_different(&fewer, &result(0.25)), 2);
    }
}
