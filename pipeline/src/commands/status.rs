//! `rlhf status`: how far the jobs of a run folder are.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::Args;
use serde_json::json;

use super::print;
use crate::cluster::record::Submission;
use crate::cluster::slurm;
use crate::cluster::view::{Row, rows};
use crate::failure::{Failure, Outcome};

/// Show the jobs of a run that was submitted: state, machines, step, loss, time left, and why one failed
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  rlhf status runs/big
  rlhf status runs/big --json

`limit` is the time until the job's limit, `left` what the stage still needs at its present speed. Where Slurm's
commands are not, what the run folder says is shown.")]
pub struct StatusArgs {
    /// The run folder.
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// One JSON object in place of the table.
    #[arg(long)]
    pub json: bool,
}

/// Prints the table.
///
/// # Errors
/// A folder from which nothing was submitted; Slurm's refusal.
pub fn run(args: &StatusArgs) -> Outcome {
    let root = std::path::absolute(&args.run).unwrap_or_else(|_| args.run.clone());
    let submission = submission(&root)?;
    let queue = match slurm::look(&submission.ids()) {
        Ok(queue) => queue,
        Err(error) => {
            let first = error.to_string();
            let first = first.lines().next().unwrap_or_default();
            eprintln!("{first}; what the run folder says:");
            BTreeMap::new()
        }
    };
    let rows = rows(&root, &submission, &queue).map_err(Failure::Run)?;
    // A reader that has seen enough (`| head`) is no failure.
    let _ = if args.json {
        print(&json!({"run": root, "cluster": submission.cluster, "jobs": rows}).to_string())
    } else {
        print(table(&rows).trim_end())
    };
    Ok(())
}

/// What was submitted from a run folder.
///
/// # Errors
/// Nothing was.
pub fn submission(root: &Path) -> Outcome<Submission> {
    let found = Submission::read(root).map_err(Failure::run)?;
    found.ok_or_else(|| {
        Failure::usage(anyhow!(
            "{}: nothing was submitted from there\n  hint: name the run folder of `rlhf submit`",
            root.display()
        ))
    })
}

const TITLES: [&str; 9] = [
    "stage", "job", "state", "nodes", "step", "", "elapsed", "limit", "left",
];

fn table(rows: &[Row]) -> String {
    let cells: Vec<[String; 9]> = rows.iter().map(cells).collect();
    let width = |column: usize| {
        let longest = cells.iter().map(|row| row[column].chars().count()).max();
        longest.unwrap_or(0).max(TITLES[column].len())
    };
    let widths: Vec<usize> = (0..TITLES.len()).map(width).collect();
    let line = |row: &[String; 9]| {
        let padded: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        padded.join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(&TITLES.map(str::to_owned));
    for (row, cells) in rows.iter().zip(&cells) {
        text.push_str(&line(cells));
        if let Some(reason) = &row.reason {
            let _ = writeln!(text, "    {reason}");
        }
    }
    text
}

fn cells(row: &Row) -> [String; 9] {
    let stage = match row.seed {
        Some(seed) => format!("{} seed {seed}", row.stage),
        None => row.stage.clone(),
    };
    let step = match (row.step, row.steps) {
        (Some(step), Some(steps)) => format!("{step}/{steps}"),
        (Some(step), None) => step.to_string(),
        _ => String::new(),
    };
    let metric = row.metric.as_ref();
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    [
        stage,
        row.job.clone(),
        row.state.clone(),
        text(&row.nodes),
        step,
        metric.map_or_else(String::new, |(name, value)| format!("{name} {value:.4}")),
        text(&row.elapsed),
        text(&row.limit_left),
        row.seconds_left.map(duration).unwrap_or_default(),
    ]
}

fn duration(seconds: u64) -> String {
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{:02}", seconds % 60)
    } else {
        format!("{minutes}:{:02}", seconds % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_line_for_each_job_and_one_for_each_reason() {
        let running = Row {
            stage: "ppo".to_owned(),
            seed: Some(2),
            job: "12_2".to_owned(),
            state: "running".to_owned(),
            reason: None,
            nodes: Some("node[1-2]".to_owned()),
            step: Some(3),
            steps: Some(24),
            metric: Some(("objective/score".to_owned(), 0.5)),
            elapsed: Some("1:02".to_owned()),
            limit_left: Some("58:58".to_owned()),
            seconds_left: Some(3_725),
            log: "/run/logs/x".to_owned(),
        };
        let waiting = Row {
            stage: "sft".to_owned(),
            state: "pending".to_owned(),
            reason: Some("waits for corpus".to_owned()),
            step: None,
            metric: None,
            nodes: None,
            elapsed: None,
            limit_left: None,
            seconds_left: None,
            ..running.clone()
        };
        let expected = "\
stage       job   state    nodes      step                          elapsed  limit  left
ppo seed 2  12_2  running  node[1-2]  3/24  objective/score 0.5000  1:02     58:58  1:02:05
sft seed 2  12_2  pending
    waits for corpus
";
        assert_eq!(table(&[running, waiting]), expected);
    }
}
