//! Logging through `tracing`. The worker logs to its standard error, which the front writes to the
//! run folder; other programs may name a file.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;

/// Installs the process's subscriber: to `file` (appended to) or else to standard error, from level
/// `info` up, or `debug` if `verbose`; the environment variable `RUST_LOG` wins. A file that cannot
/// be opened is reported on standard error, which is then used instead. Only the first call counts.
pub fn init(file: Option<&Path>, verbose: bool) {
    let default = if verbose { "debug" } else { "info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false);
    let opened = file.map(|path| {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        OpenOptions::new().create(true).append(true).open(path)
    });
    // A second call finds a subscriber in place and leaves it.
    match opened {
        Some(Ok(file)) => {
            let _ = builder
                .with_ansi(false)
                .with_writer(Mutex::new(file))
                .try_init();
        }
        failed => {
            let _ = builder
                .with_ansi(false)
                .with_writer(std::io::stderr)
                .try_init();
            if let Some(Err(error)) = failed {
                let path = file.map(Path::display);
                tracing::warn!(
                    "cannot log to {}: {error}",
                    path.map_or(String::new(), |p| p.to_string())
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_reach_the_file() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("logs/sft.log");
        init(Some(&path), false);
        tracing::info!(step = 3, "saved");
        tracing::debug!("not at this level");
        let text = fs::read_to_string(&path)?;
        assert!(
            text.contains("saved step=3") && !text.contains("not at"),
            "{text}"
        );
        Ok(())
    }
}
