//! The charts of a set of runs: the catalogue's charts filled with points.

use std::collections::BTreeSet;

use runtime::metrics::spec;

use super::catalog::{CURVES, Curve, FRONTIERS, Frontier, Line, every};
use super::chart::{Axis, Chart, Mark, Point, Series};
use super::run::{Run, Stage};

/// Longer series are drawn as means over equally many consecutive steps.
const MOST_POINTS: usize = 600;

/// The charts of one stage, over all runs that have it.
pub struct Section {
    /// The stage's name.
    pub stage: String,
    /// Its charts; at least one.
    pub charts: Vec<Chart>,
}

/// All charts of these runs by stage, in the order in which stages first appear.
pub fn sections(runs: &[Run]) -> Vec<Section> {
    let mut names: Vec<&str> = Vec::new();
    for stage in runs.iter().flat_map(|run| &run.stages) {
        if !names.contains(&stage.name.as_str()) {
            names.push(&stage.name);
        }
    }
    let section = |name: &str| {
        let curves = CURVES
            .iter()
            .filter_map(|curve| draw_curve(curve, name, runs));
        let frontiers = FRONTIERS
            .iter()
            .filter_map(|frontier| draw_frontier(frontier, name, runs));
        Section {
            stage: name.to_owned(),
            charts: curves.chain(frontiers).collect(),
        }
    };
    names
        .into_iter()
        .map(section)
        .filter(|section| !section.charts.is_empty())
        .collect()
}

/// Names of all metrics that these charts show.
pub fn metrics_shown(sections: &[Section]) -> BTreeSet<&'static str> {
    let charts = sections.iter().flat_map(|section| &section.charts);
    charts
        .flat_map(|chart| chart.metrics.iter().copied())
        .collect()
}

/// The chart of one curve in one stage; `None` where no run has a point of it.
fn draw_curve(curve: &Curve, stage_name: &str, runs: &[Run]) -> Option<Chart> {
    let mut series = Vec::new();
    let mut metrics = Vec::new();
    for (line_index, line) in curve.lines.iter().enumerate() {
        for (run_index, run) in runs.iter().enumerate() {
            let Some(stage) = run.stage(stage_name) else {
                continue;
            };
            let (points, group) = thin_out(&line_points(stage, line));
            if points.is_empty() {
                continue;
            }
            let word = if group > 1 {
                format!("{}, mean of {group} steps", line.word)
            } else {
                line.word.to_owned()
            };
            let (label, colour) = identity(runs, run_index, line_index, &word);
            series.push(Series {
                label,
                colour,
                mark: line.mark,
                points,
            });
            if !metrics.contains(&line.metric) {
                metrics.push(line.metric);
            }
        }
    }
    let first = *metrics.first()?;
    let is_ppo = runs
        .iter()
        .filter_map(|run| run.stage(stage_name))
        .any(|stage| !stage.series("objective/kl").is_empty());
    Some(Chart {
        id: format!("{stage_name}-{}", curve.id),
        title: format!("{stage_name}: {}", curve.title),
        x: Axis {
            label: if is_ppo { "PPO iteration" } else { "step" }.to_owned(),
        },
        y: Axis {
            label: quantity(curve.title, first),
        },
        series,
        metrics,
    })
}

/// The chart of one frontier in one stage; `None` where no run has a point of it.
fn draw_frontier(frontier: &Frontier, stage_name: &str, runs: &[Run]) -> Option<Chart> {
    let training = every(frontier.training.1);
    let (heldout_kl, heldout) = &frontier.heldout;
    let lines = [
        (frontier.training.0, &training, Mark::Dots),
        (heldout_kl, heldout, Mark::Bold),
    ];
    let mut series = Vec::new();
    let mut metrics = Vec::new();
    for (line_index, (kl, line, mark)) in lines.into_iter().enumerate() {
        for (run_index, run) in runs.iter().enumerate() {
            let Some(stage) = run.stage(stage_name) else {
                continue;
            };
            let points: Vec<Point> = stage
                .pairs(kl, line.metric)
                .into_iter()
                .map(|(step, x, y)| Point {
                    x,
                    y,
                    error: error_at(stage, line, step),
                })
                .collect();
            if points.is_empty() {
                continue;
            }
            let (label, colour) = identity(runs, run_index, line_index, line.word);
            series.push(Series {
                label,
                colour,
                mark,
                points,
            });
            for name in [kl, line.metric] {
                if !metrics.contains(&name) {
                    metrics.push(name);
                }
            }
        }
    }
    let score = *metrics.get(1)?;
    Some(Chart {
        id: format!("{stage_name}-{}", frontier.id),
        title: format!("{stage_name}: {}", frontier.title),
        x: Axis {
            label: quantity("KL from the reference", metrics[0]),
        },
        y: Axis {
            label: quantity(frontier.score, score),
        },
        series,
        metrics,
    })
}

/// Label and colour: of the line where there is one run, of the run where there are several.
fn identity(runs: &[Run], run_index: usize, line_index: usize, word: &str) -> (String, usize) {
    if runs.len() == 1 {
        (word.to_owned(), line_index)
    } else {
        (format!("{}: {word}", runs[run_index].label), run_index)
    }
}

fn line_points(stage: &Stage, line: &Line) -> Vec<Point> {
    let point = |(step, y)| Point {
        x: step as f64,
        y,
        error: error_at(stage, line, step),
    };
    stage.series(line.metric).into_iter().map(point).collect()
}

/// The standard error that belongs to a line's value at a step.
fn error_at(stage: &Stage, line: &Line, step: u64) -> Option<f64> {
    let row = stage.rows.iter().find(|row| row.step == step)?;
    row.values
        .get(line.error?)
        .copied()
        .filter(|error| error.is_finite())
}

/// At most [`MOST_POINTS`] points, each the mean of a group of equally many consecutive ones, and
/// the group's size. Points with an error are left as they are.
fn thin_out(points: &[Point]) -> (Vec<Point>, usize) {
    let group = points.len().div_ceil(MOST_POINTS).max(1);
    if group == 1 || points.iter().any(|point| point.error.is_some()) {
        return (points.to_vec(), 1);
    }
    let mean = |chunk: &[Point]| {
        let sum = |pick: fn(&Point) -> f64| chunk.iter().map(pick).sum::<f64>();
        let len = chunk.len() as f64;
        Point {
            x: sum(|point| point.x) / len,
            y: sum(|point| point.y) / len,
            error: None,
        }
    };
    (points.chunks(group).map(mean).collect(), group)
}

/// A metric's unit; empty for pure numbers, and for a name that this version does not know.
pub fn unit(metric: &str) -> &'static str {
    spec(metric)
        .map(|spec| spec.unit)
        .filter(|unit| *unit != "1")
        .unwrap_or_default()
}

/// What an axis shows: a word and the metric's unit, if it has one.
fn quantity(word: &str, metric: &str) -> String {
    match unit(metric) {
        "" => word.to_owned(),
        unit => format!("{word} ({unit})"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;

    fn chart(runs: &[Run], id: &str) -> Option<Chart> {
        let charts = sections(runs)
            .into_iter()
            .flat_map(|section| section.charts);
        charts.into_iter().find(|chart| chart.id == id)
    }

    #[test]
    fn every_metric_of_a_chart_is_declared() {
        let lines = CURVES.iter().flat_map(|curve| curve.lines);
        let frontiers = FRONTIERS.iter().flat_map(|frontier| {
            let (kl, line) = &frontier.heldout;
            [frontier.training.0, frontier.training.1, kl, line.metric]
        });
        let names = lines
            .flat_map(|line| [Some(line.metric), line.error])
            .flatten();
        for name in names.chain(frontiers) {
            assert!(
                spec(name).is_some(),
                "{name} is not in runtime::metrics::METRICS"
            );
        }
    }

    #[test]
    fn charts_stand_with_their_stage_and_only_where_there_are_points() {
        let sections = sections(&[fixtures::run("demo", 0.0)]);
        let ids = |section: &Section| {
            section
                .charts
                .iter()
                .map(|chart| chart.id.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(sections.len(), 2, "the corpus has no chart");
        assert_eq!(ids(&sections[0]), ["pretrain-loss"]);
        assert_eq!(
            ids(&sections[1]),
            [
                "ppo-score",
                "ppo-gold",
                "ppo-kl",
                "ppo-entropy",
                "ppo-frontier-score",
                "ppo-frontier-gold"
            ]
        );
    }

    #[test]
    fn the_frontier_pairs_by_step_and_never_mixes_training_with_held_out() {
        let runs = [fixtures::run("demo", 0.0)];
        let score = chart(&runs, "ppo-frontier-score").expect("a chart");
        assert_eq!(
            score.series.len(),
            1,
            "held-out score is missing: {:?}",
            score.series
        );
        let point = |x, y, error| Point { x, y, error };
        assert_eq!(
            score.series[0].points,
            [point(0.0, 0.1, None), point(2.0, 0.7, None)]
        );
        let gold = chart(&runs, "ppo-frontier-gold").expect("a chart");
        assert_eq!(gold.series[0].points, [point(0.0, 0.2, None)]);
        assert_eq!(gold.series[1].points, [point(2.1, 0.6, Some(0.05))]);
        assert_eq!(gold.x.label, "KL from the reference (nats/episode)");
    }

    #[test]
    fn several_runs_share_a_chart_with_a_colour_each() {
        let runs = [fixtures::run("one", 0.0), fixtures::run("two", 1.0)];
        let loss = chart(&runs, "pretrain-loss").expect("a chart");
        let legend: Vec<_> = loss
            .series
            .iter()
            .map(|series| (series.label.as_str(), series.colour))
            .collect();
        assert_eq!(
            legend,
            [
                ("one: training", 0),
                ("two: training", 1),
                ("one: held-out", 0),
                ("two: held-out", 1)
            ]
        );
    }

    #[test]
    fn long_series_are_drawn_as_means_that_the_legend_names() {
        let mut run = fixtures::run("demo", 0.0);
        let steps = 1..=2 * MOST_POINTS as u64;
        run.stages[1].rows = steps
            .map(|step| fixtures::row(step, 0.0, &[("loss/train", step as f64)]))
            .collect();
        let loss = chart(&[run], "pretrain-loss").expect("a chart");
        assert_eq!(loss.series[0].points.len(), MOST_POINTS);
        assert_eq!(
            loss.series[0].points[0],
            Point {
                x: 1.5,
                y: 1.5,
                error: None
            }
        );
        assert_eq!(loss.series[0].label, "training, mean of 2 steps");
    }
}
