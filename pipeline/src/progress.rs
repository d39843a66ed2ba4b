//! How a stage's progress is shown: a bar on a terminal, a line every few seconds elsewhere.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Time between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// The metrics worth a place beside the bar: name, label, digits.
const SHOWN: [(&str, &str, usize); 8] = [
    ("loss/train", "loss", 3),
    ("loss/heldout", "held-out", 3),
    ("accuracy/heldout", "accuracy", 3),
    ("objective/score", "score", 2),
    ("objective/kl", "kl", 2),
    ("objective/gold", "gold", 2),
    ("objective/eos_rate", "eos", 2),
    ("tokens_per_second", "tok/s", 0),
];

/// Shows one stage's progress on standard error.
#[derive(Debug)]
pub struct Progress {
    stage: String,
    display: Display,
    clock: Clock,
    shown: BTreeMap<String, f64>,
}

#[derive(Debug)]
enum Display {
    Bar(ProgressBar),
    Lines { last: Option<Instant> },
}

impl Progress {
    /// For a stage that has not begun yet.
    pub fn waiting(stage: &str) -> Self {
        let display = if io::stderr().is_terminal() {
            let bar = ProgressBar::new(1);
            bar.set_prefix(stage.to_owned());
            // The template is a constant; a mistake in it shows as a plain bar.
            if let Ok(style) =
                ProgressStyle::with_template("{prefix:>12} {wide_bar} {pos}/{len} {msg}")
            {
                bar.set_style(style);
            }
            Display::Bar(bar)
        } else {
            Display::Lines { last: None }
        };
        let clock = Clock {
            start: Instant::now(),
            begun: Instant::now(),
            first_step: 0,
        };
        Self {
            stage: stage.to_owned(),
            display,
            clock,
            shown: BTreeMap::new(),
        }
    }

    /// The stage begins or continues after `step` of `steps` updates.
    pub fn begin(&mut self, step: u64, steps: u64) {
        self.clock.begun = Instant::now();
        self.clock.first_step = step;
        match &self.display {
            Display::Bar(bar) => {
                bar.set_length(steps);
                bar.set_position(step);
            }
            Display::Lines { .. } => eprintln!("{:>12} {step}/{steps}", self.stage),
        }
    }

    /// Another update is done.
    pub fn advance(&mut self, step: u64, steps: u64, metrics: BTreeMap<String, f64>) {
        self.shown.extend(metrics);
        let done = step.saturating_sub(self.clock.first_step);
        let pace = pace(self.clock.begun.elapsed(), done, steps.saturating_sub(step));
        let words = format!("{}  {pace}", summary(&self.shown));
        match &mut self.display {
            Display::Bar(bar) => {
                bar.set_length(steps);
                bar.set_position(step);
                bar.set_message(words);
            }
            Display::Lines { last } => {
                let due = last.is_none_or(|at| at.elapsed() >= LINE_INTERVAL) || step >= steps;
                if due {
                    *last = Some(Instant::now());
                    eprintln!("{:>12} {step}/{steps} {words}", self.stage);
                }
            }
        }
    }

    /// A remark, above the bar.
    pub fn note(&self, text: &str) {
        match &self.display {
            Display::Bar(bar) => bar.suspend(|| eprintln!("{:>12} {text}", self.stage)),
            Display::Lines { .. } => eprintln!("{:>12} {text}", self.stage),
        }
    }

    /// The stage has ended; `words` say how.
    pub fn end(self, words: &str) {
        if let Display::Bar(bar) = &self.display {
            bar.finish_and_clear();
        }
        let took = duration(self.clock.start.elapsed());
        eprintln!(
            "{:>12} {words} after {took}; {}",
            self.stage,
            summary(&self.shown)
        );
    }
}

#[derive(Debug)]
struct Clock {
    start: Instant,
    begun: Instant,
    first_step: u64,
}

fn summary(metrics: &BTreeMap<String, f64>) -> String {
    let shown = SHOWN.iter().filter_map(|(name, label, digits)| {
        metrics
            .get(*name)
            .map(|value| format!("{label} {value:.digits$}"))
    });
    shown.collect::<Vec<_>>().join("  ")
}

/// Rate and time left; nothing before the first update, since nothing is known then.
fn pace(elapsed: Duration, done: u64, left: u64) -> String {
    if done == 0 || elapsed.is_zero() {
        return String::new();
    }
    let per_second = done as f64 / elapsed.as_secs_f64();
    let rate = if per_second >= 1.0 {
        format!("{per_second:.1} steps/s")
    } else {
        format!("{:.1} s/step", 1.0 / per_second)
    };
    format!(
        "{rate}  {} left",
        duration(Duration::from_secs_f64(left as f64 / per_second))
    )
}

/// `42s`, `3m 05s`, `2h 07m`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h {:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_time_left_follow_from_what_this_run_did() {
        assert_eq!(pace(Duration::from_secs(10), 0, 100), "");
        assert_eq!(
            pace(Duration::from_secs(10), 20, 200),
            "2.0 steps/s  1m 40s left"
        );
        assert_eq!(
            pace(Duration::from_secs(10), 4, 4000),
            "2.5 s/step  2h 46m left"
        );
        assert_eq!(pace(Duration::from_secs(10), 4, 0), "2.5 s/step  0s left");
    }

    #[test]
    fn only_known_metrics_are_shown_in_a_fixed_order() {
        let metrics = [
            ("objective/kl", 1.234),
            ("loss/train", 2.0),
            ("optimizer/lr", 0.1),
        ];
        let metrics = metrics.map(|(name, value)| (name.to_owned(), value)).into();
        assert_eq!(summary(&metrics), "loss 2.000  kl 1.23");
        assert!(
            SHOWN
                .iter()
                .all(|(name, ..)| runtime::metrics::spec(name).is_some())
        );
    }
}
