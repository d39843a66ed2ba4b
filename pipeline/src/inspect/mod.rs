//! `rlhf inspect`: tables and curves of one or several runs, in the terminal, as SVG files and as
//! one HTML page.
//!
//! In: run folders. Out: text on standard output, files where they are asked for. It writes
//! nothing into a run folder and needs no libtorch.
//!
//! Read `run` and `read` (a run folder as data), `evaluation` (what `rlhf eval` found), `catalog` and `figures` (which charts there are),
//! `chart` (a chart as data and as SVG), then `table`, `terminal` and `html` (how it is shown).

mod catalog;
mod chart;
mod evaluation;
mod figures;
#[cfg(test)]
mod fixtures;
mod html;
mod number;
mod read;
mod run;
pub mod table;
mod terminal;

use std::fmt::Write as _;
use std::fs;
use std::io::{ErrorKind, Write as _, stdout};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use runtime::{files, interrupt};

use crate::failure::{Failure, Outcome};

pub use evaluation::Evaluation;
use figures::Section;
use read::read_runs;
pub use read::{not_a_run_folder, read_plan, read_run};
use run::Run;
pub use run::{Stage, State as StageState};
pub use terminal::Screen;

/// Between two drawings of `--follow`.
const REDRAW_AFTER: Duration = Duration::from_secs(3);
/// Between two looks at whether Ctrl-C was pressed.
const LOOK_AFTER: Duration = Duration::from_millis(100);

/// Show curves and numbers of one or several runs
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Examples:
  rlhf inspect runs/demo
  rlhf inspect runs/demo --html report.html
  rlhf inspect runs/seed-1 runs/seed-2 --svg charts
  rlhf inspect runs/demo --follow")]
pub struct InspectArgs {
    /// Run folders; charts of several runs are laid over one another
    #[arg(value_name = "RUN", required = true)]
    pub runs: Vec<PathBuf>,
    /// Write one HTML page that needs no other file and no network
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write every chart as an SVG file into this folder
    #[arg(long, value_name = "DIR")]
    pub svg: Option<PathBuf>,
    /// Draw again every 3 seconds until every stage is done, or until Ctrl-C
    #[arg(long)]
    pub follow: bool,
}

/// Shows the runs.
///
/// # Errors
/// A path that is no run folder, a file in it that cannot be read, or a report that cannot be
/// written.
pub fn run(args: &InspectArgs) -> Outcome {
    let screen = Screen::detect();
    if !args.follow {
        let runs = read_runs(&args.runs).map_err(Failure::Usage)?;
        let sections = figures::sections(&runs);
        print(&screen.encode(&report(&runs, &sections, screen)))?;
        write_files(args, &runs, &sections)?;
        if let Some(dir) = &args.svg {
            let num_charts: usize = sections.iter().map(|section| section.charts.len()).sum();
            eprintln!("wrote {num_charts} charts into {}", dir.display());
        }
        if let Some(path) = &args.html {
            eprintln!("wrote {}", path.display());
        }
        return Ok(());
    }
    interrupt::install().context("cannot listen for Ctrl-C")?;
    loop {
        let runs = read_runs(&args.runs).map_err(Failure::Usage)?;
        let sections = figures::sections(&runs);
        let clear = if screen.colour { "\x1b[2J\x1b[H" } else { "" };
        print(&(clear.to_owned() + &screen.encode(&report(&runs, &sections, screen))))?;
        write_files(args, &runs, &sections)?;
        if runs.iter().all(Run::is_done) || !wait() {
            return Ok(());
        }
    }
}

/// Waits until it is time to draw again; false on Ctrl-C.
fn wait() -> bool {
    let mut waited = Duration::ZERO;
    while waited < REDRAW_AFTER {
        if interrupt::requested() {
            return false;
        }
        sleep(LOOK_AFTER);
        waited += LOOK_AFTER;
    }
    true
}

/// Writes to standard output; a reader that has gone away (`| head`) is no error.
fn print(text: &str) -> Result<()> {
    let mut out = stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}

/// All tables and charts as text.
fn report(runs: &[Run], sections: &[Section], screen: Screen) -> String {
    let rule = screen.rule();
    let mut text = String::new();
    for run in runs {
        text += &screen.heading(&format!("{} ({})", run.label, run.root.display()));
        text += &table::stages_table(run).to_text(rule);
        text.push('\n');
        if run.has_metrics() {
            text += &table::numbers_table(run).to_text(rule);
        } else {
            text += "  No metrics yet: they appear with the first steps of a stage that trains.\n";
        }
        text.push('\n');
    }
    if runs.len() > 1 && !sections.is_empty() {
        text += &screen.heading("last values side by side");
        let _infallible = writeln!(text, "{}", table::comparison_table(runs).to_text(rule));
    }
    for section in sections {
        text += &screen.draw(&section.charts);
    }
    for run in runs {
        for (stage, evaluation) in run.evaluations() {
            text += &screen.heading(&format!(
                "{}: {} on held-out prompts",
                run.label, stage.name
            ));
            text += &evaluation.to_text(rule);
        }
    }
    text
}

/// Writes the files that were asked for.
fn write_files(args: &InspectArgs, runs: &[Run], sections: &[Section]) -> Result<()> {
    if let Some(dir) = &args.svg {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        for chart in sections.iter().flat_map(|section| &section.charts) {
            let path = dir.join(format!("{}.svg", chart.id));
            files::write_bytes(&path, chart.to_svg()?.as_bytes())?;
        }
    }
    if let Some(path) = &args.html {
        if let Some(dir) = path.parent().filter(|dir| *dir != Path::new("")) {
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        files::write_bytes(path, html::page(runs, sections)?.as_bytes())?;
    }
    Ok(())
}
