//! What befalls one of several processes on its own machine: a disk that is full, and a process that is slow.

use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};

use crate::process::{Front, send};
use crate::ranks::{pretraining, set, wait_for_lines};
use crate::support::{Outcome, files_below, say, scratch};

/// The same command in a shell whose children may be told that a file grows too large, and live.
fn told_of_large_files(command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; exec \"$@\"", "sh"]);
    shell.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

#[test]
fn a_full_disk_on_one_rank_is_named_and_the_same_command_goes_on_to_the_bit() -> Outcome {
    let folder = scratch()?;
    let (whole, full) = (folder.path().join("whole"), folder.path().join("full"));
    let sharded = ["stages.pretrain.sharding=gradients"];
    say(set(&mut pretraining(&[], &whole), &sharded))?.ended(0);
    let mut command = pretraining(&[], &full);
    let mut command = told_of_large_files(set(&mut command, &sharded));
    let front = Front::start(&mut command, folder.path())?;
    wait_for_lines(&full, 12)?;
    let no_more = Rlimit {
        current: Some(4096),
        maximum: Some(4096),
    };
    let rank = Pid::from_raw(front.rank(1)?.try_into()?);
    prlimit(rank, Resource::Fsize, no_more)?;
    let started = Instant::now();
    let said = front.end()?.ended(1);
    assert!(started.elapsed() < Duration::from_secs(60));
    said.names(&[
        "stage `pretrain` failed",
        "rank 1",
        "model-00002-of-00002.safetensors",
    ]);
    // Snapshots appear whole or not at all.
    let pretrain = full.join("pretrain");
    for entry in fs::read_dir(&pretrain)? {
        let folder = entry?.path();
        if folder
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("step-"))
        {
            assert!(runtime::manifest::Manifest::verify(&folder)?.is_some());
        }
    }
    say(set(&mut pretraining(&[], &full), &sharded))?.ended(0);
    let last = whole.join("pretrain/final");
    for file in files_below(&last)? {
        let same = fs::read(last.join(&file))? == fs::read(pretrain.join("final").join(&file))?;
        assert!(same, "{} is another", file.display());
    }
    Ok(())
}

#[test]
fn a_rank_that_is_slow_is_waited_for() -> Outcome {
    let folder = scratch()?;
    let run = folder.path().join("run");
    let front = Front::start(&mut pretraining(&["--timeout", "60"], &run), folder.path())?;
    wait_for_lines(&run, 3)?;
    let slow = front.rank(1)?;
    for _ in 0..3 {
        send(slow, Signal::STOP)?;
        sleep(Duration::from_secs(1));
        send(slow, Signal::CONT)?;
        sleep(Duration::from_millis(200));
    }
    front.end()?.ended(0);
    Ok(())
}
