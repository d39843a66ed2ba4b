//! Starts `rlhf-worker`, talks with it, and puts its death in words.
//!
//! The worker leads a process group of its own, so that Ctrl-C reaches the front alone, which asks
//! for a snapshot. Its standard input stays open as long as the front lives: however the front
//! dies, the pipe closes, and the worker ends. Its standard output carries events, its standard
//! error the log.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use recipe::request;
use runtime::events::LOST_OTHERS;
use runtime::{Event, FileError};

use crate::death::{Death, cause_of_death, death_hint, last_lines};
use crate::libtorch::Libtorch;

const PROGRAM: &str = "rlhf-worker";

/// With buffers of these sizes cuBLAS adds in one order in every run. It reads this when CUDA starts.
pub const CUBLAS_BUFFERS: (&str, &str) = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8");

/// How long a worker that is ended may take, before it is killed.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Lines of the log that a death report repeats.
const TAIL_LINES: usize = 15;

/// Why the worker could not be started or did not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// The program is not where it should be.
    #[error(
        "{} does not exist\n  hint: `make build` builds both programs; keep {PROGRAM} beside rlhf",
        path.display()
    )]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// The system does not start it.
    #[error("cannot start {}", path.display())]
    Start {
        /// The program.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Its log cannot be written.
    #[error(transparent)]
    Log(#[from] FileError),
    /// It said itself what went wrong.
    #[error("{0}")]
    Failed(String),
    /// Other ranks left it or did not come, and it said so.
    #[error("{0}")]
    LostOthers(String),
    /// It died.
    #[error("the worker {cause}{}{}", last_lines(tail, log.as_deref()), death_hint(*kind))]
    Died {
        /// How, in words.
        cause: String,
        /// What kind of death it was.
        kind: Death,
        /// Of a signal.
        killed: bool,
        /// The last lines of its log.
        tail: Vec<String>,
        /// Where the whole log is.
        log: Option<PathBuf>,
    },
}

/// What reaches the front.
#[derive(Debug, PartialEq)]
pub enum Incoming {
    /// From the worker.
    Event(Event),
    /// The worker closed its standard output: it has ended, or is about to.
    Closed,
    /// A line of the user's standard input (chat).
    Line(String),
    /// The end of the user's standard input (chat).
    LinesEnded,
}

/// A running worker. Dropping it closes its standard input, which ends it.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    stdin: Option<ChildStdin>,
    incoming: Receiver<Incoming>,
    sender: Sender<Incoming>,
    tail: Arc<Mutex<VecDeque<String>>>,
    log: Option<PathBuf>,
    readers: Vec<JoinHandle<()>>,
    failure: Option<String>,
}

/// The worker's program, beside this one.
///
/// # Errors
/// It is not there.
pub fn program() -> Result<PathBuf, WorkerError> {
    let this = std::env::current_exe().unwrap_or_default();
    let beside = this.with_file_name(PROGRAM);
    if beside.exists() {
        return Ok(beside);
    }
    let resolved = fs::canonicalize(&this)
        .unwrap_or_default()
        .with_file_name(PROGRAM);
    if resolved.exists() {
        Ok(resolved)
    } else {
        Err(WorkerError::Missing { path: beside })
    }
}

impl Worker {
    /// Starts the worker with its log going to `log` (appended to), or kept for a death report only.
    ///
    /// # Errors
    /// The program is missing or does not start, or the log cannot be opened.
    pub fn start(
        libtorch: &Libtorch,
        arguments: &[&str],
        log: Option<PathBuf>,
    ) -> Result<Self, WorkerError> {
        Self::start_with(libtorch, arguments, log, &[])
    }

    /// The same with variables in its environment, of which the user's own values win.
    ///
    /// # Errors
    /// As [`Worker::start`].
    pub fn start_with(
        libtorch: &Libtorch,
        arguments: &[&str],
        log: Option<PathBuf>,
        environment: &[(&str, &str)],
    ) -> Result<Self, WorkerError> {
        let command = command(&program()?, arguments, environment);
        Self::start_command(command, libtorch, log)
    }

    /// The same as one of several, with variables that are its own whatever the user's are.
    ///
    /// # Errors
    /// As [`Worker::start`].
    pub fn start_ranked(
        libtorch: &Libtorch,
        arguments: &[&str],
        log: Option<PathBuf>,
        environment: &[(&str, &str)],
        own: &[(&str, String)],
    ) -> Result<Self, WorkerError> {
        let mut command = command(&program()?, arguments, environment);
        command.envs(own.iter().map(|(name, value)| (name, value)));
        Self::start_command(command, libtorch, log)
    }

    fn start_command(
        mut command: Command,
        libtorch: &Libtorch,
        log: Option<PathBuf>,
    ) -> Result<Self, WorkerError> {
        let log_file = log.as_deref().map(open_log).transpose()?;
        let path = PathBuf::from(command.get_program());
        let mut child = command
            .env("LD_LIBRARY_PATH", library_path(&libtorch.lib_dir))
            .env(SPIN_COUNT, spin_count())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|source| WorkerError::Start { path, source })?;
        let (sender, incoming) = mpsc::channel();
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let mut readers = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            let (sender, tail) = (sender.clone(), Arc::clone(&tail));
            readers.push(thread::spawn(move || read_events(stdout, &sender, &tail)));
        }
        if let Some(stderr) = child.stderr.take() {
            let tail = Arc::clone(&tail);
            readers.push(thread::spawn(move || copy_log(stderr, log_file, &tail)));
        }
        let stdin = child.stdin.take();
        Ok(Self {
            child,
            stdin,
            incoming,
            sender,
            tail,
            log,
            readers,
            failure: None,
        })
    }

    /// Another source for [`Worker::receive`], such as the user's lines.
    pub fn sender(&self) -> Sender<Incoming> {
        self.sender.clone()
    }

    /// Says something to the worker. One that is gone is noticed by [`Worker::finish`], not here.
    pub fn send(&mut self, command: &request::Command) {
        if let Some(stdin) = &mut self.stdin {
            let _ = writeln!(stdin, "{}", command.to_line()).and_then(|()| stdin.flush());
        }
    }

    /// The next thing that happens; `None` if nothing does in time.
    pub fn receive(&mut self, timeout: Duration) -> Option<Incoming> {
        match self.incoming.recv_timeout(timeout) {
            Ok(Incoming::Event(Event::Failed { error })) => {
                self.failure = Some(error.clone());
                Some(Incoming::Event(Event::Failed { error }))
            }
            Ok(incoming) => Some(incoming),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Incoming::Closed),
        }
    }

    /// Ends them where they are, all at once, and waits until they are gone: what they held on devices is free then.
    /// Those that do not end by themselves are killed.
    pub fn end_all(mut workers: Vec<Self>) {
        for worker in &mut workers {
            worker.stdin = None;
        }
        let patience = Instant::now() + LAST_WORDS;
        for worker in &mut workers {
            while matches!(worker.child.try_wait(), Ok(None)) {
                if Instant::now() > patience {
                    let _ = worker.child.kill();
                }
                thread::sleep(Duration::from_millis(10));
            }
            for reader in worker.readers.drain(..) {
                let _ = reader.join();
            }
        }
    }

    /// Waits for the end, after [`Incoming::Closed`].
    ///
    /// # Errors
    /// The worker failed or died: with the cause and the last lines of its log.
    pub fn finish(mut self) -> Result<(), WorkerError> {
        let status = self.child.wait().map_err(|source| WorkerError::Start {
            path: PROGRAM.into(),
            source,
        })?;
        self.stdin = None;
        for reader in self.readers.drain(..) {
            // A reader that panicked has nothing more to say.
            let _ = reader.join();
        }
        if let Some(error) = self.failure {
            return Err(if status.code() == Some(LOST_OTHERS.into()) {
                WorkerError::LostOthers(error)
            } else {
                WorkerError::Failed(error)
            });
        }
        if status.success() {
            return Ok(());
        }
        let tail: Vec<String> = self
            .tail
            .lock()
            .map(|mut tail| tail.drain(..).collect())
            .unwrap_or_default();
        let (cause, kind) = cause_of_death(status, &tail);
        Err(WorkerError::Died {
            cause,
            kind,
            killed: status.signal().is_some(),
            tail,
            log: self.log,
        })
    }
}

fn command(program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(program);
    let set = |(name, _): &&(&str, &str)| std::env::var_os(name).is_none();
    command
        .args(arguments)
        .envs(environment.iter().filter(set).copied());
    command
}

/// How often libtorch's threads look before they sleep while they wait for each other (GNU OpenMP).
const SPIN_COUNT: &str = "GOMP_SPINCOUNT";

/// About 30 microseconds, unless the user says otherwise. The library's own choice, milliseconds,
/// makes a run ten times slower as soon as another process wants the same cores; threads that sleep
/// at once make it half as fast on a machine of its own.
fn spin_count() -> OsString {
    std::env::var_os(SPIN_COUNT).unwrap_or_else(|| "10000".into())
}

fn library_path(lib_dir: &Path) -> OsString {
    let mut path = lib_dir.as_os_str().to_owned();
    if let Some(inherited) = std::env::var_os("LD_LIBRARY_PATH").filter(|list| !list.is_empty()) {
        path.push(":");
        path.push(inherited);
    }
    path
}

fn open_log(path: &Path) -> Result<File, FileError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(FileError::io("create", parent))?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(FileError::io("open", path))
}

fn read_events(from: impl Read, sender: &Sender<Incoming>, tail: &Mutex<VecDeque<String>>) {
    for_each_line(from, |line| match serde_json::from_str(line) {
        // The receiver is gone only when the front no longer cares.
        Ok(event) => drop(sender.send(Incoming::Event(event))),
        Err(_) => remember(tail, line),
    });
    let _ = sender.send(Incoming::Closed);
}

fn copy_log(from: impl Read, mut log: Option<File>, tail: &Mutex<VecDeque<String>>) {
    for_each_line(from, |line| {
        remember(tail, line);
        // A full disk must not stop the reading, or the worker would hang on its own log.
        if let Some(log) = &mut log {
            let _ = writeln!(log, "{line}");
        }
    });
}

fn for_each_line(from: impl Read, mut act: impl FnMut(&str)) {
    let mut reader = BufReader::new(from);
    let mut bytes = Vec::new();
    while matches!(reader.read_until(b'\n', &mut bytes), Ok(1..)) {
        act(String::from_utf8_lossy(&bytes).trim_end_matches(['\r', '\n']));
        bytes.clear();
    }
}

fn remember(tail: &Mutex<VecDeque<String>>, line: &str) {
    if let Ok(mut tail) = tail.lock() {
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line.to_owned());
    }
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
