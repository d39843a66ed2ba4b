//! Who uses a run folder: the whole of it, or a part of it beside others.

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
use crate::run_folder::RunFolder;

/// The file in a run folder, or in a part of it, that who uses it has locked.
const LOCK: &str = "lock";

/// The file that whoever compares and writes the plan has locked for that moment.
const PLAN_LOCK: &str = "plan.lock";

/// How long a lock may be taken by those who only look whether somebody holds it.
const GLANCE: Duration = Duration::from_secs(2);

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

/// Holds the run folder until it is dropped *and* every process started meanwhile has ended: the
/// lock is inherited, so that no second run begins while the worker of a killed one still writes.
#[derive(Debug)]
pub struct RunLock {
    // A lock belongs to the open file; closing it releases.
    _files: Vec<File>,
}

#[derive(Serialize, Deserialize)]
struct Holder {
    pid: i32,
    host: String,
    command: String,
    started: u64,
}

impl RunFolder {
    /// Takes the folder for this process, and removes what killed processes left in it.
    ///
    /// # Errors
    /// [`RunFolderError::Held`] says who holds it and since when.
    pub fn lock(&self) -> Result<RunLock, RunFolderError> {
        let path = self.root().join(LOCK);
        let mut file = open_lock(&path)?;
        self.take(&path, || file.try_lock())?;
        write_holder(&mut file).map_err(FileError::io("write", &path))?;
        leftovers::sweep(self.root())?;
        inherit(&file, &path)?;
        Ok(RunLock { _files: vec![file] })
    }

    /// Takes one folder in the run folder (a stage's) for this process, and removes what killed processes left in
    /// it. Others may have other parts meanwhile, and nobody the whole.
    ///
    /// # Errors
    /// As [`Self::lock`]; the part cannot be made.
    pub fn lock_part(&self, part: &str) -> Result<RunLock, RunFolderError> {
        let (whole, folder) = (self.root().join(LOCK), self.root().join(part));
        fs::create_dir_all(&folder).map_err(FileError::io("create", &folder))?;
        let shared = open_lock(&whole)?;
        self.take(&whole, || shared.try_lock_shared())?;
        let path = folder.join(LOCK);
        let mut own = open_lock(&path)?;
        self.take(&path, || own.try_lock())?;
        write_holder(&mut own).map_err(FileError::io("write", &path))?;
        leftovers::sweep(&folder)?;
        inherit(&shared, &whole)?;
        inherit(&own, &path)?;
        Ok(RunLock {
            _files: vec![shared, own],
        })
    }

    /// Waits until nobody else compares or writes the plan, which nobody does for long; until the file is closed.
    ///
    /// # Errors
    /// The system refuses.
    pub fn lock_plan(&self) -> Result<File, FileError> {
        let path = self.root().join(PLAN_LOCK);
        let file = open_lock(&path)?;
        file.lock().map_err(FileError::io("lock", &path))?;
        Ok(file)
    }

    /// Whether somebody has a part, this process included.
    pub fn is_part_held(&self, part: &str) -> bool {
        is_held(&self.root().join(part).join(LOCK))
    }

    /// Tries to lock for a moment, since others may be looking; waits longer where whoever holds the lock is dead
    /// already.
    fn take(
        &self,
        path: &Path,
        attempt: impl Fn() -> Result<(), TryLockError>,
    ) -> Result<(), RunFolderError> {
        let start = Instant::now();
        loop {
            match attempt() {
                Ok(()) => return Ok(()),
                Err(TryLockError::Error(error)) => Err(FileError::io("lock", path)(error))?,
                Err(TryLockError::WouldBlock) => {}
            }
            let holder = self.holder(path);
            let orphan = holder.as_ref().is_some_and(Holder::is_dead);
            let patience = if orphan { ORPHAN_GRACE } else { GLANCE };
            if start.elapsed() > patience {
                return Err(RunFolderError::Held {
                    path: path.parent().unwrap_or(self.root()).to_path_buf(),
                    holder: holder.map_or("an unknown process".into(), |h| h.in_words()),
                });
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Who holds a lock. That of the whole folder is also held by those who have a part of it.
    fn holder(&self, path: &Path) -> Option<Holder> {
        let entries = fs::read_dir(self.root()).into_iter().flatten();
        let mut parts = entries.filter_map(|entry| Some(entry.ok()?.path().join(LOCK)));
        let part = (path == self.root().join(LOCK))
            .then(|| parts.find(|lock| is_held(lock)))
            .flatten();
        read_holder(part.as_deref().unwrap_or(path))
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

/// Whether a process holds the lock. A shared lock is tried and given back at once.
pub fn is_held(lock: &Path) -> bool {
    let file = File::open(lock);
    file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

fn open_lock(path: &Path) -> Result<File, FileError> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true);
    options.open(path).map_err(FileError::io("open", path))
}

/// Lets every process that is started from now on hold the lock, too.
fn inherit(file: &File, path: &Path) -> Result<(), FileError> {
    rustix::io::fcntl_setfd(file, FdFlags::empty())
        .map_err(|errno| FileError::io("lock", path)(errno.into()))
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

/// This machine.
pub fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// Now.
pub fn seconds_since_epoch() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Outcome = Result<(), Box<dyn std::error::Error>>;

    #[test]
    fn locks_name_their_holder_and_last_until_the_last_child_has_ended() -> Outcome {
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
        // One test for all, since tests run in parallel and a child inherits all that is locked.
        let mut child = std::process::Command::new("sleep").arg("60").spawn()?;
        drop(lock);
        let held = run.lock();
        child.kill()?;
        child.wait()?;
        assert!(matches!(held, Err(RunFolderError::Held { .. })));
        run.lock()?;

        // Parts are held side by side, and the whole by nobody else meanwhile.
        let sft = run.lock_part("sft")?;
        let reward = run.lock_part("reward")?;
        for held in [run.lock_part("sft"), run.lock()] {
            let message = held.err().ok_or("must be held")?.to_string();
            let holder = format!("process {}", std::process::id());
            assert!(message.contains(&holder), "{message}");
        }
        assert!(run.is_part_held("sft") && !run.is_part_held("ppo"));
        drop((sft, reward));
        let whole = run.lock()?;
        assert!(run.lock_part("sft").is_err());
        drop(whole);
        // One who only looks is no holder.
        let look = File::open(run.root().join("sft").join(LOCK))?;
        look.lock_shared()?;
        let looks = thread::spawn(move || {
            thread::sleep(Duration::from_millis(200));
            drop(look);
        });
        run.lock_part("sft")?;
        looks.join().map_err(|_| "looking panicked")?;
        Ok(())
    }
}
