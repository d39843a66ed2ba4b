//! The command line as a user meets it: help, exit codes, what goes where, and a missing libtorch.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use crate::support::{
    Outcome, Said, assert_nothing_trained, copy_of_finished_run, files_below, finished_run, rlhf,
    rlhf_run, say, scratch, tiny,
};

/// The commands that `rlhf --help` lists.
fn commands() -> Outcome<Vec<String>> {
    let help = say(rlhf().arg("--help"))?.ended(0).out;
    let (_, list) = help
        .split_once("\nCommands:\n")
        .ok_or("no commands in the help")?;
    let names = list.lines().take_while(|line| !line.is_empty());
    // Deeper lines go on with the description above them.
    let names = names.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = names.filter_map(|line| line.split_whitespace().next());
    Ok(names
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect())
}

#[test]
fn every_command_has_a_help_with_an_example() -> Outcome {
    let commands = commands()?;
    for needed in [
        "run", "plan", "inspect", "generate", "score", "chat", "doctor",
    ] {
        assert!(
            commands.iter().any(|command| command == needed),
            "{needed} is not in {commands:?}"
        );
    }
    for command in commands {
        let said = say(rlhf().args([&command, "--help"]))?.ended(0);
        let (_, examples) = said
            .out
            .split_once("Example")
            .ok_or(format!("{command}: no example"))?;
        assert!(
            examples.contains(&format!("  rlhf {command}")),
            "{command}:\n{}",
            said.out
        );
        assert!(said.err.is_empty(), "{command}: {}", said.err);
    }
    Ok(())
}

#[test]
fn wrong_commands_exit_with_2_and_say_nothing_on_standard_output() -> Outcome {
    let tiny = tiny();
    let tiny = tiny.to_string_lossy();
    let cases: [(&[&str], &str); 10] = [
        (&[], "Usage"),
        (&["rnu"], "unrecognized subcommand"),
        (&["run"], "<CONFIG>"),
        (&["run", &tiny, "--untill", "sft"], "--until"),
        (&["run", &tiny, "--only", "sftt"], "sft"),
        (&["run", &tiny, "--kind", "nothing"], "pretrain"),
        (&["plan", &tiny, "--set", "stages.sft.batch"], "KEY=VALUE"),
        (
            &["plan", &tiny, "--set", "stages.sft.bacth=3"],
            "did you mean `batch`?",
        ),
        (
            &["generate", "--model", "/nowhere", "--prompt", "x"],
            "/nowhere",
        ),
        (
            &["score", "--model", "/nowhere", "--data", "x.jsonl"],
            "/nowhere",
        ),
    ];
    for (arguments, word) in cases {
        let folder = scratch()?;
        let mut command = rlhf();
        command.args(arguments);
        if arguments.first() == Some(&"run") && arguments.len() > 1 {
            command.arg("--run-dir").arg(folder.path().join("run"));
        }
        let said = say(&mut command)?.ended(2).names(&[word]);
        assert!(said.out.is_empty(), "{arguments:?}: {}", said.out);
        assert_nothing_trained(folder.path());
    }
    Ok(())
}

#[test]
fn a_plan_is_data_and_starts_nothing() -> Outcome {
    let folder = scratch()?;
    let mut command = rlhf();
    command.arg("plan").arg(tiny()).current_dir(folder.path());
    let said = say(&mut command)?.ended(0);
    for stage in [
        "corpus",
        "tokenizer",
        "pretrain",
        "sft",
        "comparisons",
        "reward",
        "ppo",
    ] {
        assert!(
            said.out.contains(&format!("\n{stage} (")),
            "{stage} is not in\n{}",
            said.out
        );
    }
    assert!(
        said.out.to_lowercase().contains("parameters"),
        "{}",
        said.out
    );
    assert!(said.err.is_empty(), "{}", said.err);
    assert!(
        files_below(folder.path())?.is_empty(),
        "a plan writes nothing"
    );
    Ok(())
}

#[test]
fn data_goes_to_standard_output_and_all_else_to_standard_error() -> Outcome {
    let folder = scratch()?;
    let run = copy_of_finished_run(folder.path())?;
    let said = say(&mut rlhf_run(&tiny(), &run))?.ended(0);
    assert!(said.out.is_empty() && !said.err.is_empty(), "{}", said.out);

    let data = folder.path().join("prompts.jsonl");
    let rows = [
        r#"{"messages": [{"role": "user", "content": "How was your day?"}]}"#,
        r#"{"messages": [{"role": "user", "content": "hello"}]}"#,
    ];
    fs::write(&data, rows.join("\n"))?;
    let mut command = rlhf();
    command
        .arg("generate")
        .arg("--model")
        .arg(finished_run().join("ppo/final"));
    command
        .arg("--data")
        .arg(&data)
        .args(["--num-samples", "3", "--max-new-tokens", "9"]);
    let said = say(&mut command)?.ended(0);
    let rows: Vec<Value> = said
        .out
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let places: Vec<_> = rows
        .iter()
        .map(|row| (&row["index"], &row["sample"]))
        .collect();
    let numbers: Vec<Value> = (0..3).map(Value::from).collect();
    let expected: Vec<_> = numbers[..2]
        .iter()
        .flat_map(|i| numbers.iter().map(move |j| (i, j)))
        .collect();
    assert_eq!(places, expected);
    for row in &rows {
        let length = |key: &str| row[key].as_array().map_or(0, Vec::len);
        assert!((1..=9).contains(&length("output_ids")), "{row}");
        assert_eq!(length("output_ids"), length("logprobs"), "{row}");
        assert!(
            row["text"].is_string() && row["finish_reason"].is_string(),
            "{row}"
        );
    }
    assert_eq!(
        say(&mut command)?.ended(0).out,
        said.out,
        "the same seed, the same samples"
    );
    Ok(())
}

#[test]
fn a_chat_answers_every_line() -> Outcome {
    let folder = scratch()?;
    let lines = folder.path().join("lines");
    fs::write(&lines, "hello\nhow are you?\n")?;
    let mut command = rlhf();
    command
        .arg("chat")
        .arg("--model")
        .arg(finished_run().join("ppo/final"));
    command
        .args(["--max-new-tokens", "8", "--device", "cpu"])
        .stdin(fs::File::open(&lines)?);
    let said = say(&mut command)?.ended(0);
    assert!(said.out.lines().count() >= 2, "{said:?}");
    Ok(())
}

#[test]
fn a_run_is_shown_as_a_table_a_page_and_pictures() -> Outcome {
    let folder = scratch()?;
    let (html, svg) = (folder.path().join("report.html"), folder.path().join("svg"));
    let mut command = rlhf();
    command.arg("inspect").arg(finished_run());
    command.arg("--html").arg(&html).arg("--svg").arg(&svg);
    let said = say(&mut command)?.ended(0);
    for stage in ["pretrain", "sft", "reward", "ppo"] {
        assert!(said.out.contains(stage), "{stage} is not in\n{}", said.out);
    }
    let page = fs::read_to_string(html)?;
    assert!(
        page.contains("<svg") && !page.contains("http://cdn"),
        "the page stands alone"
    );
    assert!(
        !page.contains("<script src") && !page.contains("<link"),
        "the page stands alone"
    );
    assert!(files_below(&svg)?.len() >= 4);
    Ok(())
}

/// A copy of `rlhf` in a place from which it finds nothing: no `.venv`, no worker, no Python.
fn alone(folder: &Path, arguments: &[&str]) -> Outcome<Said> {
    let program = folder.join("rlhf");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_rlhf"), &program)?;
    }
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .env("PATH", folder);
    command
        .env_remove("LIBTORCH")
        .env_remove("LD_LIBRARY_PATH")
        .env_remove("VIRTUAL_ENV");
    // A child that another test starts meanwhile holds the new file open for a moment.
    for _ in 0..100 {
        match say(&mut command) {
            Err(error) if error.to_string().contains("busy") => sleep(Duration::from_millis(50)),
            said => return said,
        }
    }
    say(&mut command)
}

#[test]
fn without_libtorch_the_doctor_says_so_and_what_needs_none_works() -> Outcome {
    // Outside of the repository, whose .venv would be found.
    let folder = tempfile::tempdir()?;
    let tiny = tiny();
    let tiny = tiny.to_string_lossy();
    let said = alone(folder.path(), &["doctor"])?.ended(1);
    for word in ["libtorch", "2.11", "make setup", "WRONG"] {
        assert!(said.out.contains(word), "`{word}` is not in\n{}", said.out);
    }
    alone(folder.path(), &["--help"])?.ended(0);
    alone(folder.path(), &["plan", &tiny])?.ended(0);
    let run = folder.path().join("run");
    let arguments = ["run", &tiny, "--run-dir", &run.to_string_lossy()];
    alone(folder.path(), &arguments)?
        .ended(1)
        .names(&["hint: "]);
    assert_nothing_trained(&run);
    Ok(())
}

#[test]
fn with_libtorch_the_doctor_is_content_or_names_a_remedy() -> Outcome {
    let said = say(rlhf().arg("doctor"))?;
    assert!(
        said.out.contains("libtorch") && said.out.contains("2.11"),
        "{}",
        said.out
    );
    let content = !said.out.contains("WRONG");
    assert_eq!(said.code, Some(i32::from(!content)), "{}", said.out);
    assert!(content || said.out.contains("->"), "{}", said.out);
    Ok(())
}

#[test]
fn a_libtorch_that_is_missing_or_of_another_version_is_named_before_anything_starts() -> Outcome {
    let folder = scratch()?;
    let root = folder.path();
    for (name, version) in [
        ("older", "2.10.0+cpu"),
        ("newer", "2.12.1+cu130"),
        ("strange", ""),
    ] {
        let torch = root.join(name);
        fs::create_dir_all(torch.join("lib"))?;
        fs::write(torch.join("lib/libtorch_cpu.so"), "")?;
        if !version.is_empty() {
            fs::write(
                torch.join("version.py"),
                format!("__version__ = '{version}'\n"),
            )?;
        }
        let run = root.join("run");
        let said = say(rlhf_run(&tiny(), &run).env("LIBTORCH", &torch))?.ended(1);
        let found = if version.is_empty() {
            "unknown"
        } else {
            version
        };
        said.names(&[
            &torch.to_string_lossy(),
            "LIBTORCH",
            found,
            "2.11",
            "hint: ",
        ]);
        assert_nothing_trained(&run);
        let said = say(rlhf().arg("doctor").env("LIBTORCH", &torch))?.ended(1);
        assert!(
            said.out.contains(found) && said.out.contains("2.11"),
            "{}",
            said.out
        );
    }
    let nowhere = root.join("nowhere");
    let run = root.join("run");
    let said = say(rlhf_run(&tiny(), &run).env("LIBTORCH", &nowhere))?.ended(1);
    said.names(&[&nowhere.to_string_lossy(), "libtorch_cpu.so", "hint: "]);
    assert_nothing_trained(&run);
    Ok(())
}
