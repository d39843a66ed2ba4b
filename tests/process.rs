//! Fronts that are watched, killed and stopped.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Outcome, Said};

/// More than anything that is waited for takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// A running `rlhf run`.
pub struct Front {
    child: Child,
    said: PathBuf,
}

impl Front {
    /// Starts a command; what it says goes to files in `folder`.
    pub fn start(command: &mut Command, folder: &Path) -> Outcome<Self> {
        let said = folder.join("said");
        let child = command
            .stdout(File::create(said.with_extension("out"))?)
            .stderr(File::create(said.with_extension("err"))?)
            .spawn()?;
        Ok(Self { child, said })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// True until it ends.
    pub fn is_running(&mut self) -> Outcome<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// The process id of its worker, if it has one now.
    pub fn worker(&self) -> Outcome<Option<u32>> {
        Ok(self.workers()?.into_iter().next())
    }

    /// The process id of the worker of a rank.
    pub fn rank(&self, rank: usize) -> Outcome<u32> {
        let of_rank = |pid: &u32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let wanted = format!("RANK={rank}");
            environment
                .split(|byte| *byte == 0)
                .any(|set| set == wanted.as_bytes())
        };
        let found = self.workers()?.into_iter().find(of_rank);
        Ok(found.ok_or(format!("there is no rank {rank}"))?)
    }

    /// The process ids of its workers.
    fn workers(&self) -> Outcome<Vec<u32>> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            if parent_of(pid) == Some(self.pid()) {
                found.push(pid);
            }
        }
        Ok(found)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Outcome {
        send(self.pid(), signal)
    }

    /// Waits for its end.
    pub fn end(mut self) -> Outcome<Said> {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if start.elapsed() > PATIENCE {
                return Err("rlhf does not end".into());
            }
            sleep(Duration::from_millis(10));
        };
        let read = |extension| fs::read_to_string(self.said.with_extension(extension));
        Ok(Said {
            code: status.code(),
            signal: status.signal(),
            out: read("out")?,
            err: read("err")?,
        })
    }

    /// Kills front and worker at once, as a power cut would.
    pub fn kill_both(self) -> Outcome {
        let worker = self.worker()?;
        self.signal(Signal::KILL)?;
        if let Some(worker) = worker {
            // It may have noticed already that its front is gone.
            let _ = send(worker, Signal::KILL);
            wait_until("the worker to die", || Ok(!is_alive(worker)))?;
        }
        self.end().map(drop)
    }

    /// Kills the front alone, and returns how long its worker lived on.
    pub fn kill_front(self) -> Outcome<Duration> {
        let worker = self.worker()?.ok_or("there is no worker")?;
        self.signal(Signal::KILL)?;
        let start = Instant::now();
        wait_until("the worker to end with its front", || Ok(!is_alive(worker)))?;
        self.end()?;
        Ok(start.elapsed())
    }

    /// Kills the worker alone, and returns what the front says of it.
    pub fn kill_worker(self) -> Outcome<Said> {
        send(self.worker()?.ok_or("there is no worker")?, Signal::KILL)?;
        self.end()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        // A test that failed leaves no process behind: the worker ends with its front.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a process a signal.
pub fn send(pid: u32, signal: Signal) -> Outcome {
    let pid = Pid::from_raw(i32::try_from(pid)?).ok_or("no such process")?;
    Ok(kill_process(pid, signal)?)
}

/// The fields of `/proc/PID/stat` after the program's name: state, parent, ...
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

fn parent_of(pid: u32) -> Option<u32> {
    stat(pid)?.get(1)?.parse().ok()
}

fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|fields| fields.first().is_some_and(|state| state != "Z"))
}

/// Polls until something is true.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> Outcome<bool>) -> Outcome {
    let start = Instant::now();
    while !condition()? {
        if start.elapsed() > PATIENCE {
            return Err(format!("waited {PATIENCE:?} for {what}").into());
        }
        sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Lines of a file that may not be there yet.
pub fn num_lines(path: &Path) -> usize {
    fs::read_to_string(path).map_or(0, |text| text.matches('\n').count())
}
