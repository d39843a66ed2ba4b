//! How a download is shown on standard error: a bar on a terminal, lines elsewhere.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

/// Time between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Shows one file's download.
pub struct Transfer {
    name: String,
    size: u64,
    display: Display,
}

enum Display {
    Bar(ProgressBar),
    Lines { last: Instant },
}

impl Transfer {
    /// A file of `size` bytes begins to come.
    pub fn begin(name: &str, size: u64) -> Self {
        let display = if io::stderr().is_terminal() {
            let bar = ProgressBar::new(size);
            bar.set_prefix(name.to_owned());
            // The template is a constant; a mistake in it shows as a plain bar.
            if let Ok(style) = ProgressStyle::with_template(
                "{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            ) {
                bar.set_style(style);
            }
            Display::Bar(bar)
        } else {
            Display::Lines {
                last: Instant::now(),
            }
        };
        Self {
            name: name.to_owned(),
            size,
            display,
        }
    }

    /// So many of its bytes are here.
    pub fn advance(&mut self, bytes: u64) {
        match &mut self.display {
            Display::Bar(bar) => bar.set_position(bytes),
            Display::Lines { last } if last.elapsed() >= LINE_INTERVAL => {
                *last = Instant::now();
                eprintln!(
                    "{}: {} of {}",
                    self.name,
                    HumanBytes(bytes),
                    HumanBytes(self.size)
                );
            }
            Display::Lines { .. } => {}
        }
    }

    /// A remark, above the bar.
    pub fn note(&self, text: &str) {
        match &self.display {
            Display::Bar(bar) => bar.suspend(|| eprintln!("{}: {text}", self.name)),
            Display::Lines { .. } => eprintln!("{}: {text}", self.name),
        }
    }

    /// The file is here and is what it should be.
    pub fn end(self) {
        if let Display::Bar(bar) = &self.display {
            bar.finish_and_clear();
        }
        eprintln!("{}: {}", self.name, HumanBytes(self.size));
    }
}
