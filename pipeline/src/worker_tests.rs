//! Tests of starting, hearing and burying a worker.

use super::*;

type Outcome = Result<(), Box<dyn std::error::Error>>;

const PATIENCE: Duration = Duration::from_secs(20);

fn shell(script: &str, log: Option<PathBuf>) -> Result<Worker, WorkerError> {
    let libtorch = Libtorch {
        lib_dir: "/nowhere/lib".into(),
        version: "2.11.0".into(),
        found_by: "test".into(),
    };
    let environment = [("RLHF_TEST_WORD", "word")];
    let arguments = ["-c", script];
    let command = command(Path::new("/bin/sh"), &arguments, &environment);
    Worker::start_command(command, &libtorch, log)
}

fn run_to_end(mut worker: Worker) -> (Vec<Event>, Result<(), WorkerError>) {
    let mut events = Vec::new();
    loop {
        match worker.receive(PATIENCE) {
            Some(Incoming::Event(event)) => events.push(event),
            _ => return (events, worker.finish()),
        }
    }
}

#[test]
fn events_arrive_and_the_log_is_kept() -> Outcome {
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("logs/sft.log");
    let script =
        r#"echo '{"event":"note","text":"hi"}'; echo "$LD_LIBRARY_PATH $RLHF_TEST_WORD" >&2"#;
    let (events, end) = run_to_end(shell(script, Some(log.clone()))?);
    end?;
    assert_eq!(events, [Event::Note { text: "hi".into() }]);
    let log = fs::read_to_string(log)?;
    assert!(
        log.starts_with("/nowhere/lib") && log.ends_with(" word\n"),
        "{log}"
    );
    Ok(())
}

#[test]
fn a_worker_hears_stop_and_ends_when_the_front_is_gone() -> Outcome {
    let script =
        r#"read word; echo "{\"event\":\"output\",\"line\":\"$word\"}"; read more; exit 3"#;
    let mut worker = shell(script, None)?;
    worker.send(&request::Command::Stop);
    let heard = worker.receive(PATIENCE);
    assert_eq!(
        heard,
        Some(Incoming::Event(Event::Output {
            line: "stop".into()
        }))
    );
    worker.stdin = None;
    assert_eq!(worker.receive(PATIENCE), Some(Incoming::Closed));
    let error = worker.finish().err().ok_or("exit code 3")?;
    assert!(error.to_string().contains("exit code 3"), "{error}");
    Ok(())
}

#[test]
fn deaths_are_put_in_words() -> Outcome {
    let cases = [
        ("kill -9 $$", "ran out of memory", "micro_batch"),
        ("kill -SEGV $$", "SIGSEGV", "run again"),
        (
            "echo 'thread main panicked at x.rs' >&2; exit 101",
            "panicked",
            "report",
        ),
        (
            "echo 'rlhf-worker: error while loading shared libraries: x' >&2; exit 127",
            "load its libraries",
            "doctor",
        ),
        (
            "echo last words >&2; exit 4",
            "exit code 4",
            "    last words",
        ),
        (
            r#"echo '{"event":"failed","error":"no such file"}'; exit 1"#,
            "no such file",
            "",
        ),
    ];
    for (script, cause, more) in cases {
        let (_, end) = run_to_end(shell(script, None)?);
        let message = end.err().ok_or(script)?.to_string();
        assert!(
            message.contains(cause) && message.contains(more),
            "{message}"
        );
    }
    Ok(())
}

#[test]
fn the_worker_leads_its_own_process_group() -> Outcome {
    let script = r#"echo "{\"event\":\"output\",\"line\":\"$(cut -d' ' -f5 /proc/$$/stat)\"}""#;
    let worker = shell(script, None)?;
    let pid = worker.child.id().to_string();
    let (events, end) = run_to_end(worker);
    end?;
    let Some(Event::Output { line }) = events.first() else {
        return Err("no output".into());
    };
    assert_eq!(line.trim(), pid);
    Ok(())
}

#[test]
fn a_worker_that_is_ended_is_gone() -> Outcome {
    for script in ["read word", "trap '' TERM; exec sleep 60"] {
        let worker = shell(script, None)?;
        let pid = rustix::process::Pid::from_raw(worker.child.id() as i32).ok_or("no pid")?;
        let started = Instant::now();
        Worker::end_all(vec![worker]);
        assert!(rustix::process::test_kill_process(pid).is_err(), "{script}");
        assert!(started.elapsed() < LAST_WORDS * 3, "{script}");
    }
    Ok(())
}
