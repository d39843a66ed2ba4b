//! Tables of numbers: how far each stage is, and the last and best value of its key metrics.

use recipe::numbers::bytes;

use super::figures::unit;
use super::number::{duration, number};
use super::run::{Run, Stage};

/// A table of text, shown in the terminal or in HTML.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// Column titles and how their cells are aligned.
    pub columns: Vec<(String, Align)>,
    /// Rows of as many cells as there are columns.
    pub rows: Vec<Vec<String>>,
}

/// Where a cell's text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Which values of a metric are better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Better {
    Lower,
    Higher,
    /// Neither by itself.
    Neither,
}

/// What the tables show of each stage that has it.
const KEY_METRICS: &[(&str, Better)] = &[
    ("loss/train", Better::Neither),
    ("loss/heldout", Better::Lower),
    ("loss/heldout_bits_per_byte", Better::Lower),
    ("accuracy/train", Better::Neither),
    ("accuracy/heldout", Better::Higher),
    ("calibration/ece", Better::Lower),
    ("objective/score", Better::Higher),
    ("objective/gold", Better::Higher),
    ("objective/kl", Better::Neither),
    ("objective/length", Better::Neither),
    ("objective/eos_rate", Better::Neither),
    ("objective/entropy", Better::Neither),
    ("ppo/clip_fraction", Better::Neither),
    ("heldout/score", Better::Higher),
    ("heldout/gold", Better::Higher),
    ("heldout/kl", Better::Neither),
    ("heldout/length", Better::Neither),
    ("heldout/eos_rate", Better::Neither),
    ("heldout/distinct2", Better::Neither),
];

impl Table {
    /// A table without rows.
    pub fn new(columns: &[(&str, Align)]) -> Self {
        let columns = columns
            .iter()
            .map(|&(title, align)| (title.to_owned(), align))
            .collect();
        Self {
            columns,
            rows: Vec::new(),
        }
    }

    /// The table as lines of text, indented by two spaces; `rule` is repeated under the titles.
    pub fn to_text(&self, rule: char) -> String {
        let titles: Vec<String> = self
            .columns
            .iter()
            .map(|(title, _)| title.clone())
            .collect();
        let width = |column: usize| {
            let cells = self
                .rows
                .iter()
                .chain([&titles])
                .map(|row| row[column].chars().count());
            cells.max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..titles.len()).map(width).collect();
        let line = |row: &Vec<String>| {
            let pad = |(column, cell): (usize, &String)| match self.columns[column].1 {
                Align::Left => format!("{cell:<0$}", widths[column]),
                Align::Right => format!("{cell:>0$}", widths[column]),
            };
            let cells: Vec<String> = row.iter().enumerate().map(pad).collect();
            format!("  {}\n", cells.join("  ")).trim_end().to_owned() + "\n"
        };
        let rules = widths
            .iter()
            .map(|&width| rule.to_string().repeat(width))
            .collect();
        [&titles, &rules]
            .into_iter()
            .chain(&self.rows)
            .map(line)
            .collect()
    }
}

/// How far each stage of a run is.
pub fn stages_table(run: &Run) -> Table {
    let mut table = Table::new(&[
        ("stage", Align::Left),
        ("state", Align::Left),
        ("steps", Align::Right),
        ("selected", Align::Right),
        ("time", Align::Right),
        ("tokens/s", Align::Right),
        ("peak memory", Align::Right),
    ]);
    for stage in &run.stages {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        table.rows.push(vec![
            stage.name.clone(),
            stage.state.word().to_owned(),
            or_dash(steps(stage)),
            or_dash(stage.selected.map(|step| format!("step {step}"))),
            or_dash(stage.active_seconds().map(duration)),
            or_dash(
                stage
                    .median("tokens_per_second")
                    .map(|rate| format!("{rate:.0}")),
            ),
            or_dash(stage.most("memory/peak").map(|held| bytes(held as u64))),
        ]);
    }
    table
}

fn steps(stage: &Stage) -> Option<String> {
    match (stage.last_step(), stage.planned) {
        (None, None) => None,
        (Some(step), None) => Some(step.to_string()),
        (step, Some(planned)) => Some(format!("{}/{planned}", step.unwrap_or(0))),
    }
}

/// Last and best values of a run's key metrics.
pub fn numbers_table(run: &Run) -> Table {
    let mut table = Table::new(&[
        ("stage", Align::Left),
        ("metric", Align::Left),
        ("last", Align::Right),
        ("best", Align::Right),
        ("at step", Align::Right),
        ("unit", Align::Left),
    ]);
    for stage in &run.stages {
        for &(metric, better) in KEY_METRICS {
            let series = stage.series(metric);
            let Some(&(_, last)) = series.last() else {
                continue;
            };
            let best = best(&series, better);
            table.rows.push(vec![
                stage.name.clone(),
                metric.to_owned(),
                number(last),
                best.map_or_else(String::new, |(_, value)| number(value)),
                best.map_or_else(String::new, |(step, _)| step.to_string()),
                unit(metric).to_owned(),
            ]);
        }
    }
    table
}

/// The last value of every key metric of several runs side by side.
pub fn comparison_table(runs: &[Run]) -> Table {
    let mut columns = vec![("stage", Align::Left), ("metric", Align::Left)];
    columns.extend(runs.iter().map(|run| (run.label.as_str(), Align::Right)));
    columns.push(("unit", Align::Left));
    let mut table = Table::new(&columns);
    let mut stage_names: Vec<&str> = Vec::new();
    for stage in runs.iter().flat_map(|run| &run.stages) {
        if !stage_names.contains(&stage.name.as_str()) {
            stage_names.push(&stage.name);
        }
    }
    for name in stage_names {
        for &(metric, _) in KEY_METRICS {
            let last = |run: &Run| run.stage(name)?.series(metric).last().map(|last| last.1);
            let values: Vec<Option<f64>> = runs.iter().map(last).collect();
            if values.iter().all(Option::is_none) {
                continue;
            }
            let cells = values
                .iter()
                .map(|value| value.map_or_else(|| "-".to_owned(), number));
            let mut row = vec![name.to_owned(), metric.to_owned()];
            row.extend(cells.chain([unit(metric).to_owned()]));
            table.rows.push(row);
        }
    }
    table
}

/// The first best value and its step.
fn best(series: &[(u64, f64)], better: Better) -> Option<(u64, f64)> {
    let first_of = |is_better: fn(f64, f64) -> bool| {
        series.iter().copied().reduce(|best, next| {
            if is_better(next.1, best.1) {
                next
            } else {
                best
            }
        })
    };
    match better {
        Better::Lower => first_of(|next, best| next < best),
        Better::Higher => first_of(|next, best| next > best),
        Better::Neither => None,
    }
}

#[cfg(test)]
mod tests {
    use runtime::metrics::spec;

    use super::super::fixtures;
    use super::*;

    #[test]
    fn key_metrics_are_declared() {
        for (metric, _) in KEY_METRICS {
            assert!(
                spec(metric).is_some(),
                "{metric} is not in runtime::metrics::METRICS"
            );
        }
    }

    #[test]
    fn stages_show_state_steps_and_rate() {
        let run = fixtures::run("demo", 0.0);
        let text = stages_table(&run).to_text('-');
        let expected = "
  stage     state    steps  selected     time  tokens/s  peak memory
  --------  -------  -----  --------  -------  --------  -----------
  corpus    done         -         -        -         -            -
  pretrain  done       4/4    step 3    3.0 s     21000      1.5 GiB
  ppo       running    3/5         -  2m 00s          -            -
";
        let squeeze = |text: &str| {
            let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
            text.trim()
                .lines()
                .map(words)
                .collect::<Vec<_>>()
                .join("\n")
        };
        assert_eq!(
            squeeze(&text.replace('-', "")),
            squeeze(&expected.replace('-', ""))
        );
    }

    #[test]
    fn numbers_show_last_and_best() {
        let run = fixtures::run("demo", 0.0);
        let table = numbers_table(&run);
        let row = |metric: &str| table.rows.iter().find(|row| row[1] == metric).cloned();
        let heldout = row("loss/heldout").expect("a row");
        assert_eq!(
            heldout[..5],
            ["pretrain", "loss/heldout", "3.5", "3.4", "2"]
        );
        let kl = row("objective/kl").expect("a row");
        assert_eq!(kl[2..5], ["2", "", ""], "KL has no best value");
        assert_eq!(row("calibration/ece"), None, "what a run lacks has no row");
    }

    #[test]
    fn runs_stand_side_by_side() {
        let mut other = fixtures::run("other", 1.0);
        other.stages.retain(|stage| stage.name != "ppo");
        let table = comparison_table(&[fixtures::run("demo", 0.0), other]);
        let row = |metric: &str| table.rows.iter().find(|row| row[1] == metric).cloned();
        assert_eq!(row("loss/heldout").expect("a row")[2..4], ["3.5", "4.5"]);
        assert_eq!(row("objective/kl").expect("a row")[2..4], ["2", "-"]);
    }
}
