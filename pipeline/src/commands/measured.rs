//! What `bench` and `gpu-check` share: a folder of their own, the machine they ran on, and scripts of the other side.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use runtime::interrupt;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};

/// The file of the archive of `make dist` that says of which sources its programs are.
const COMMIT: &str = "COMMIT";

/// Empties the folder of an earlier run of the same command, and no other. `mark` is the command's own word.
///
/// # Errors
/// The folder is another's, or cannot be made.
pub fn replace_folder(folder: &Path, mark: &str) -> Outcome {
    if folder.exists() {
        if !folder.join(mark).exists() {
            return Err(Failure::Usage(anyhow!(
                "--run-dir {} is there, and not of a {mark}\n  hint: name a new folder",
                folder.display()
            )));
        }
        fs::remove_dir_all(folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(folder.join(mark), ""))
        .with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(())
}

/// Where and when this is measured, and of which sources: `cpu`, `threads`, `date`, `commit`, `version`; null where
/// the machine does not say.
pub fn machine() -> Value {
    let cpu = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    json!({
        "cpu": cpu,
        "threads": thread::available_parallelism().map_or(1, usize::from),
        "date": said("date", &["-u", "+%Y-%m-%d"]),
        "commit": commit(),
        "version": env!("CARGO_PKG_VERSION"),
    })
}

/// As the archive says that the program lies in, or else Git.
fn commit() -> Option<String> {
    let exe = std::env::current_exe().ok()?;
    let archive = exe.parent()?.parent()?.join(COMMIT);
    match fs::read_to_string(archive) {
        Ok(text) => Some(text.trim().to_owned()),
        Err(_) => said("git", &["describe", "--always", "--dirty"]),
    }
}

fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

/// A line of a script of the other side.
#[derive(Debug, Deserialize)]
pub struct ScriptLine {
    /// What it did: `train`, `sample` or `ppo`.
    pub work: String,
    /// Who did it.
    pub side: String,
    /// Tokens a second of each timed step.
    pub per_second: Vec<f64>,
    /// Seconds from the process's start to its first step.
    pub start_s: Option<f64>,
    /// Versions by package.
    pub versions: BTreeMap<String, String>,
}

/// Why a script reports nothing.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// It was not done at its deadline.
    #[error("the time was up")]
    TimeUp,
    /// It did not start, it failed, or somebody interrupted; in words.
    #[error("{0}")]
    Failed(String),
}

/// What a script reports; it is killed at `deadline` and where somebody interrupts.
///
/// # Errors
/// It does not start, fails (its status and last lines), or is not done in time.
pub fn run_script(
    command: &mut Command,
    deadline: Option<Instant>,
) -> Result<Vec<ScriptLine>, ScriptError> {
    let program = command.get_program().display().to_string();
    let failed = |error: io::Error| ScriptError::Failed(format!("{program}: {error}"));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let out = reader(child.stdout.take());
    let err = reader(child.stderr.take());
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if deadline.is_some_and(|deadline| Instant::now() > deadline) {
            end(&mut child);
            return Err(ScriptError::TimeUp);
        }
        if interrupt::requested() {
            end(&mut child);
            return Err(ScriptError::Failed("interrupted".to_owned()));
        }
        thread::sleep(Duration::from_millis(20));
    };
    let [out, err] = [out, err].map(|text| text.join().unwrap_or_default());
    if !status.success() {
        let lines: Vec<&str> = err.trim().lines().collect();
        let last = lines[lines.len().saturating_sub(3)..].join(" | ");
        let words = if last.is_empty() {
            String::new()
        } else {
            format!(": {last}")
        };
        return Err(ScriptError::Failed(format!("{status}{words}")));
    }
    // TRL prints a log of its own between.
    Ok(out
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect())
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// Reads to the end in a thread of its own.
fn reader(from: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut from) = from {
            let _ = from.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_folder_of_the_same_command_is_replaced() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = dir.path().join("runs/benchmarks");
        replace_folder(&folder, "benchmark").expect("a new folder");
        fs::write(folder.join("old"), "").expect("a file");
        replace_folder(&folder, "benchmark").expect("its own folder");
        assert!(!folder.join("old").exists());
        for (folder, mark) in [(dir.path(), "benchmark"), (&folder, "gpu-check")] {
            let Err(Failure::Usage(error)) = replace_folder(folder, mark) else {
                panic!("another's folder was replaced")
            };
            let message = error.to_string();
            assert!(message.contains(&format!("not of a {mark}")), "{message}");
        }
    }

    #[test]
    fn a_script_is_heard_fails_in_its_words_and_ends_in_time() {
        let script = |text: &str| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", text]);
            command
        };
        let line =
            r#"echo noise; echo '{"work":"train","side":"s","per_second":[1.5],"versions":{}}'"#;
        let lines = run_script(&mut script(line), None).expect("a line");
        assert_eq!(lines.len(), 1);
        assert_eq!(
            (&lines[0].side[..], &lines[0].per_second[..]),
            ("s", &[1.5][..])
        );
        for (text, words) in [
            ("exit 3", "exit status: 3"),
            (
                "for i in 1 2 3 4; do echo $i >&2; done; exit 3",
                "exit status: 3: 2 | 3 | 4",
            ),
            ("kill -KILL $$", "signal: 9 (SIGKILL)"),
        ] {
            let failed = run_script(&mut script(text), None).expect_err("it failed");
            assert_eq!(failed.to_string(), words);
        }
        let started = Instant::now();
        let deadline = started + Duration::from_millis(100);
        let late = run_script(&mut script("exec sleep 60"), Some(deadline));
        assert!(matches!(late, Err(ScriptError::TimeUp)), "{late:?}");
        assert!(started.elapsed() < Duration::from_secs(30));
    }
}
