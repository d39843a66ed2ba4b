//! The layout of a run folder, and its lock.
//!
//! ```text
//! runs/demo/
//!   plan.toml  lock  logs/<stage>.log
//!   <stage>/stage.json  metrics.jsonl  step-000400/  rollouts/  final/  done.json
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::io::FdFlags;
use rustix::process::{Pid, test_kill_process};
use serde::{Deserialize, Serialize};

use crate::files::FileError;
use crate::leftovers;

/// The file of a run folder that says what the run is.
pub const PLAN: &str = "plan.toml";

/// How long [`RunFolder::lock`] waits for the worker of a front that is dead already.
const ORPHAN_GRACE: Duration = Duration::from_secs(10);

/// Why a run folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunFolderError {
    /// A file or folder could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another run is using the folder.
    #[error(
        "{} is in use by {holder}\n  \
         hint: wait for it or stop it; another run of the same pipeline needs its own --run-dir",
        path.display()
    )]
    Held {
        /// The run folder.
        path: PathBuf,
        /// Who holds it, in words.
        holder: String,
    },
}

/// The folder of one run.
#[derive(Debug, Clone)]
pub struct RunFolder {
    root: PathBuf,
}

/// Holds the run folder until it is dropped *and* every process started meanwhile has ended: the
/// lock is inherited, so that no second run begins while the worker of a killed one still writes.
#[derive(Debug)]
pub struct RunLock {
    // The lock belongs to the open file; closing it releases.
    _file: File,
}

#[derive(Serialize, Deserialize)]
struct Holder {
    pid: i32,
    host: String,
    command: String,
    started: u64,
}

impl RunFolder {
    /// The run folder at `root`, made if it is missing.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open_or_create(root: &Path) -> Result<Self, FileError> {
        fs::create_dir_all(root).map_err(FileError::io("create", root))?;
        Ok(Self {
            root: root.to_path_buf(),
        })
    }

    /// Its path.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Takes the folder for this process, and removes what killed processes left in it.
    ///
    /// # Errors
    /// [`RunFolderError::Held`] says who holds it and since when.
    pub fn lock(&self) -> Result<RunLock, RunFolderError> {
        let path = self.root.join("lock");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(FileError::io("open", &path))?;
        let start = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => Err(FileError::io("lock", &path)(error))?,
                Err(TryLockError::WouldBlock) => {
                    let holder = read_holder(&path);
                    let orphan = holder.as_ref().is_some_and(Holder::is_dead);
                    if !orphan || start.elapsed() > ORPHAN_GRACE {
                        let holder = holder.map_or("an unknown process".into(), |h| h.in_words());
                        return Err(RunFolderError::Held {
                            path: self.root.clone(),
                            holder,
                        });
                    }
                    thread::sleep(Duration::from_millis(50));
                }
            }
        }
        write_holder(&mut file).map_err(FileError::io("write", &path))?;
        leftovers::sweep(&self.root)?;
        rustix::io::fcntl_setfd(&file, FdFlags::empty())
            .map_err(|errno| FileError::io("lock", &path)(errno.into()))?;
        Ok(RunLock { _file: file })
    }

    /// The folder of one stage.
    pub fn stage(&self, name: &str) -> StageFolder {
        StageFolder {
            root: self.root.join(name),
        }
    }

    /// `plan.toml`.
    pub fn plan_path(&self) -> PathBuf {
        self.root.join(PLAN)
    }

    /// `logs/<stage>.log`.
    pub fn log_path(&self, stage: &str) -> PathBuf {
        self.root.join("logs").join(format!("{stage}.log"))
    }
}

impl Holder {
    fn of_this_process() -> Self {
        Self {
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            host: host_name(),
            command: std::env::args().collect::<Vec<_>>().join(" "),
            started: seconds_since_epoch(),
        }
    }

    /// Certain only for processes of this machine.
    fn is_dead(&self) -> bool {
        self.host == host_name()
            && Pid::from_raw(self.pid)
                .is_some_and(|pid| test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
    }

    fn in_words(&self) -> String {
        let minutes = seconds_since_epoch().saturating_sub(self.started) / 60;
        let Self {
            pid, host, command, ..
        } = self;
        let ended = if self.is_dead() {
            " (ended, but its worker has not)"
        } else {
            ""
        };
        format!("process {pid} on {host}{ended}, for {minutes} min: `{command}`")
    }
}

fn read_holder(path: &Path) -> Option<Holder> {
    fs::read(path)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
}

fn write_holder(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.write_all(&serde_json::to_vec(&Holder::of_this_process())?)?;
    file.sync_all()
}

fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

fn seconds_since_epoch() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// The folder of one stage of a run.
#[derive(Debug, Clone)]
pub struct StageFolder {
    root: PathBuf,
}

impl StageFolder {
    /// Its path.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `metrics.jsonl`.
    pub fn metrics_path(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// `final/`: the artefact that other stages use.
    pub fn final_dir(&self) -> PathBuf {
        self.root.join("final")
    }

    /// `step-000400/`: the snapshot after that many updates.
    pub fn snapshot_dir(&self, step: u64) -> PathBuf {
        self.root.join(format!("step-{step:06}"))
    }

    /// The snapshots that are there, by ascending step. A missing folder has none.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn snapshots(&self) -> io::Result<Vec<(u64, PathBuf)>> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let step = name.to_str().and_then(|name| name.strip_prefix("step-"));
            if let Some(step) = step.and_then(|digits| digits.parse().ok()) {
                found.push((step, entry.path()));
            }
        }
        found.sort();
        Ok(found)
    }

    /// `rollouts/iteration-000012.parquet`.
    pub fn rollout_path(&self, iteration: u64) -> PathBuf {
        self.root
            .join("rollouts")
            .join(format!("iteration-{iteration:06}.parquet"))
    }

    /// `done.json`: written last; the stage is done where it is.
    pub fn done_path(&self) -> PathBuf {
        self.root.join("done.json")
    }

    /// `stage.json`: written at the start; says what the folder is being made from.
    pub fn state_path(&self) -> PathBuf {
        self.root.join("stage.json")
    }

    /// Renames the folder to `NAME.old-N` with the first N that is free; `None` if there is none.
    ///
    /// # Errors
    /// The system refuses.
    pub fn move_aside(&self) -> Result<Option<PathBuf>, FileError> {
        if !self.root.exists() {
            return Ok(None);
        }
        let name = self
            .root
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let mut n = 1_u32;
        let aside = loop {
            let aside = self.root.with_file_name(format!("{name}.old-{n}"));
            if !aside.exists() {
                break aside;
            }
            n += 1;
        };
        fs::rename(&self.root, &aside).map_err(FileError::io("move aside", &self.root))?;
        Ok(Some(aside))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Outcome = Result<(), Box<dyn std::error::Error>>;

    #[test]
    fn the_lock_names_its_holder_and_lasts_until_the_last_child_has_ended() -> Outcome {
        let dir = tempfile::tempdir()?;
        let run = RunFolder::open_or_create(&dir.path().join("demo"))?;
        let lock = run.lock()?;
        let message = run.lock().err().ok_or("must be held")?.to_string();
        assert!(
            message.contains(&format!("process {}", std::process::id())),
            "{message}"
        );
        assert!(
            message.contains("demo") && message.contains("hint:"),
            "{message}"
        );
        // One test for both, since tests run in parallel and a child inherits all that is locked.
        let mut child = std::process::Command::new("sleep").arg("60").spawn()?;
        drop(lock);
        let held = run.lock();
        child.kill()?;
        child.wait()?;
        assert!(matches!(held, Err(RunFolderError::Held { .. })));
        run.lock()?;
        Ok(())
    }

    #[test]
    fn snapshots_are_listed_by_step_and_others_ignored() -> Outcome {
        let dir = tempfile::tempdir()?;
        let stage = RunFolder::open_or_create(dir.path())?.stage("sft");
        assert!(stage.snapshots()?.is_empty());
        for step in [400, 20, 1_000_000] {
            fs::create_dir_all(stage.snapshot_dir(step))?;
        }
        for other in [".step-000500.partial-1", "step-x", "final"] {
            fs::create_dir(stage.root().join(other))?;
        }
        let steps: Vec<u64> = stage
            .snapshots()?
            .into_iter()
            .map(|(step, _)| step)
            .collect();
        assert_eq!(steps, [20, 400, 1_000_000]);
        assert!(stage.snapshot_dir(400).ends_with("sft/step-000400"));
        assert!(
            stage
                .rollout_path(12)
                .ends_with("rollouts/iteration-000012.parquet")
        );
        Ok(())
    }

    #[test]
    fn moving_aside_counts_up() -> Outcome {
        let dir = tempfile::tempdir()?;
        let stage = RunFolder::open_or_create(dir.path())?.stage("sft");
        assert_eq!(stage.move_aside()?, None);
        for n in 1..3 {
            fs::create_dir(stage.root())?;
            assert_eq!(
                stage.move_aside()?,
                Some(dir.path().join(format!("sft.old-{n}")))
            );
        }
        Ok(())
    }
}
