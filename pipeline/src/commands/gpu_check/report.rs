//! What was found: JSON lines as it comes, and at the end the tables and two files.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use recipe::request::DeviceReport;
use runtime::statistics::median;
use serde_json::{Value, json};

use super::goals::Work;
use super::print;

/// Ours of one kind of work.
#[derive(Debug, Clone)]
pub(super) struct Row {
    work: Work,
    /// A second, of each step or turn.
    values: Vec<f64>,
    /// Of what it is which share.
    shares: Vec<(String, f64)>,
    /// The most memory that was held, bytes.
    peak_bytes: Option<f64>,
}

impl Row {
    pub(super) fn of(
        work: Work,
        values: Vec<f64>,
        shares: Vec<(String, f64)>,
        peak_bytes: Option<f64>,
    ) -> Self {
        Self {
            work,
            values,
            shares,
            peak_bytes,
        }
    }
}

/// How a part ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    Done,
    Failed(String),
    NotRun(String),
}

impl State {
    pub(super) fn words(&self) -> String {
        match self {
            Self::Done => "done".to_owned(),
            Self::Failed(why) => format!("FAILED: {why}"),
            Self::NotRun(why) => format!("not run: {why}"),
        }
    }
}

/// A comparison.
#[derive(Debug)]
struct Finding {
    part: String,
    what: String,
    bound: f64,
    /// The largest difference, or why there is none.
    found: Result<f64, String>,
}

impl Finding {
    fn is_good(&self) -> bool {
        self.found.as_ref().is_ok_and(|found| *found <= self.bound)
    }
}

/// Everything that was found.
pub(super) struct Report {
    is_rehearsal: bool,
    machine: Value,
    command: String,
    device: Option<DeviceReport>,
    parts: Vec<(String, State, f64)>,
    findings: Vec<Finding>,
    rows: Vec<Row>,
    theirs: Vec<(Work, String, Vec<f64>)>,
    versions: BTreeMap<String, String>,
}

/// What stands over everything that no GPU computed.
const REHEARSAL: &str = "rehearsal on the CPU: no GPU figure";

impl Report {
    pub(super) fn new(is_rehearsal: bool, machine: Value) -> Self {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        Self {
            is_rehearsal,
            machine,
            command: format!("rlhf {}", arguments.join(" ")),
            device: None,
            parts: Vec::new(),
            findings: Vec::new(),
            rows: Vec::new(),
            theirs: Vec::new(),
            versions: BTreeMap::new(),
        }
    }

    pub(super) fn set_device(&mut self, report: &DeviceReport) {
        self.say(&json!({ "device": report }));
        self.device = Some(report.clone());
    }

    pub(super) fn find(
        &mut self,
        part: &str,
        what: String,
        bound: f64,
        found: Result<f64, String>,
    ) {
        let finding = Finding {
            part: part.to_owned(),
            what,
            bound,
            found,
        };
        self.say(&finding_json(&finding));
        self.findings.push(finding);
    }

    pub(super) fn measured(&mut self, row: Row) {
        self.say(&self.row_json(&row));
        self.rows.push(row);
    }

    pub(super) fn set_theirs(&mut self, work: Work, side: String, values: Vec<f64>) {
        self.say(&json!({ "work": work.words(), "side": side, "values": values }));
        self.theirs.push((work, side, values));
    }

    pub(super) fn note_versions(&mut self, versions: BTreeMap<String, String>) {
        self.versions.extend(versions);
    }

    pub(super) fn end_part(&mut self, part: String, state: State, seconds: f64) {
        self.say(&json!({ "part": part, "state": state.words(), "seconds": seconds }));
        self.parts.push((part, state, seconds));
    }

    /// A line of standard output; a reader that is gone does not end the check.
    fn say(&self, line: &Value) {
        let mut line = line.clone();
        if self.is_rehearsal {
            line["note"] = REHEARSAL.into();
        }
        let _ = print(&line.to_string());
    }

    pub(super) fn is_done(&self, part: &str) -> bool {
        self.parts
            .iter()
            .any(|(name, state, _)| name == part && *state == State::Done)
    }

    /// How a part of comparisons ended.
    pub(super) fn state_of(&self, part: &str) -> State {
        let all = self.findings.iter().filter(|it| it.part == part);
        let bad: Vec<&str> = all
            .filter(|it| !it.is_good())
            .map(|it| it.what.as_str())
            .collect();
        match bad.len() {
            0 => State::Done,
            n => State::Failed(format!("{n} comparisons: {}", bad.join(", "))),
        }
    }

    /// What failed, in words.
    pub(super) fn problems(&self) -> Vec<String> {
        let failed = self
            .parts
            .iter()
            .filter_map(|(part, state, _)| match state {
                State::Failed(why) => Some(format!("{part}: {why}")),
                _ => None,
            });
        failed.collect()
    }

    fn sides(&self, work: Work) -> impl Iterator<Item = (&str, &[f64])> {
        let of_work = self.theirs.iter().filter(move |it| it.0 == work);
        of_work.map(|(_, side, values)| (side.as_str(), values.as_slice()))
    }

    fn row_json(&self, row: &Row) -> Value {
        let shares: BTreeMap<&str, f64> = row
            .shares
            .iter()
            .map(|(what, share)| (what.as_str(), *share))
            .collect();
        let ours = median(&row.values);
        let sides: Vec<Value> = self
            .sides(row.work)
            .map(|(side, values)| {
                json!({ "side": side, "values": values, "ratio": ours / median(values) })
            })
            .collect();
        json!({
            "work": row.work.words(),
            "unit": row.work.unit(),
            "goal": row.work.goal(),
            "anchor": row.work.anchor(),
            "on_gpu": !self.is_rehearsal,
            "median": ours,
            "values": row.values,
            "shares": shares,
            "peak_bytes": row.peak_bytes,
            "theirs": sides,
        })
    }

    /// All tables, in Markdown.
    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        if self.is_rehearsal {
            let _ = writeln!(text, "**{REHEARSAL}**\n");
        }
        self.write_speeds(&mut text);
        self.write_findings(&mut text);
        text.push_str("\n| part | | seconds |\n|---|---|---|\n");
        for (part, state, seconds) in &self.parts {
            let words = state.words().replace('\n', " ").replace('|', "/");
            let _ = writeln!(text, "| {part} | {words} | {seconds:.0} |");
        }
        text
    }

    fn write_speeds(&self, text: &mut String) {
        text.push_str(
            "| work, bf16 | goal | others | measured | share | beside it, in the same run | ratio |\n\
             |---|---|---|---|---|---|---|\n",
        );
        for work in Work::ALL {
            let (goal, anchor) = (work.goal(), work.anchor());
            let begin = format!("| {} | {goal} | {anchor} |", work.words());
            let row = self.rows.iter().find(|it| it.work == work);
            let Some(row) = row else {
                let _ = writeln!(text, "{begin} not run | | | |");
                continue;
            };
            let ours = median(&row.values);
            let mut shares: Vec<String> = row
                .shares
                .iter()
                .map(|(what, share)| format!("{:.1} % {what}", 100.0 * share))
                .collect();
            shares.extend(
                row.peak_bytes
                    .map(|bytes| format!("{:.1} GiB held", bytes / GIB)),
            );
            let small = if self.is_rehearsal { "in small: " } else { "" };
            let (unit, shares) = (work.unit(), shares.join("; "));
            let begin = format!("{begin} {small}{ours:.0} {unit} | {shares} |");
            let sides: Vec<_> = self.sides(work).collect();
            if sides.is_empty() {
                let _ = writeln!(text, "{begin} not run | |");
            }
            for (side, values) in sides {
                let theirs = median(values);
                let ratio = ours / theirs;
                let _ = writeln!(text, "{begin} {side}: {theirs:.0} | {ratio:.2} |");
            }
        }
        let Some(device) = &self.device else {
            return;
        };
        let _ = writeln!(
            text,
            "\nIn the same run: a large bf16 matrix product {:.1} TFLOP/s, a large copy {:.3} TB/s.",
            device.flops_per_second / 1e12,
            device.bytes_per_second / 1e12
        );
    }

    fn write_findings(&self, text: &mut String) {
        if self.findings.is_empty() {
            return;
        }
        text.push_str(
            "\n| part | compared | largest difference | bound | |\n|---|---|---|---|---|\n",
        );
        for finding in &self.findings {
            let Finding {
                part, what, bound, ..
            } = finding;
            let found = match &finding.found {
                Ok(found) => format!("{found:.2e}"),
                Err(why) => why.replace('\n', " ").replace('|', "/"),
            };
            let verdict = if finding.is_good() { "good" } else { "FAILED" };
            let _ = writeln!(
                text,
                "| {part} | {what} | {found} | {bound:.2e} | {verdict} |"
            );
        }
    }

    /// Writes `gpu-check.json` and `gpu-check.md`.
    pub(super) fn write(&self, folder: &Path, table: &str) -> Result<()> {
        let parts: Vec<Value> = self
            .parts
            .iter()
            .map(|(part, state, seconds)| {
                json!({ "part": part, "state": state.words(), "seconds": seconds })
            })
            .collect();
        let results = json!({
            "rehearsal": self.is_rehearsal,
            "note": self.is_rehearsal.then_some(REHEARSAL),
            "command": self.command,
            "machine": self.machine,
            "device": self.device,
            "versions": self.versions,
            "parts": parts,
            "agreement": self.findings.iter().map(finding_json).collect::<Vec<_>>(),
            "speed": self.rows.iter().map(|row| self.row_json(row)).collect::<Vec<_>>(),
        });
        let json = serde_json::to_string_pretty(&results)? + "\n";
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(folder.join("gpu-check.json"), json))
            .and_then(|()| fs::write(folder.join("gpu-check.md"), self.head() + table))
            .with_context(|| format!("cannot write into {}", folder.display()))
    }

    /// Where, when, of which sources, and by which command.
    fn head(&self) -> String {
        let of = |key: &str| self.machine[key].as_str().unwrap_or("unknown").to_owned();
        let gpu = self.device.as_ref().and_then(|device| device.name.clone());
        let versions: Vec<String> = self
            .versions
            .iter()
            .map(|(package, version)| format!("{package} {version}"))
            .collect();
        let beside = if versions.is_empty() {
            "the other side was not run".to_owned()
        } else {
            versions.join(", ")
        };
        format!(
            "{}; {}, {} threads; {}; commit {}; {beside}; `{}`\n\n",
            gpu.unwrap_or_else(|| "no GPU".to_owned()),
            of("cpu"),
            self.machine["threads"],
            of("date"),
            of("commit"),
            self.command
        )
    }
}

const GIB: f64 = (1_u64 << 30) as f64;

fn finding_json(finding: &Finding) -> Value {
    json!({
        "part": finding.part,
        "compared": finding.what,
        "largest_difference": finding.found.as_ref().ok(),
        "problem": finding.found.as_ref().err(),
        "bound": finding.bound,
        "good": finding.is_good(),
    })
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
