//! Tests of the tables.

use super::*;

fn report(is_rehearsal: bool) -> Report {
    let mut report = Report::new(is_rehearsal, json!({ "cpu": "a processor", "threads": 2 }));
    let share = ("of the matrix product, 6ND".to_owned(), 0.5);
    report.measured(Row::of(
        Work::Gpt2,
        vec![90.0, 100.0, 300.0],
        vec![share],
        None,
    ));
    report.set_theirs(Work::Gpt2, "torch.compile".to_owned(), vec![80.0]);
    report.find("agree-f32", "sft: first updates".to_owned(), 1e-4, Ok(2e-5));
    report
}

#[test]
fn ratios_are_of_medians_and_what_was_not_run_is_marked() {
    let mut report = report(false);
    report.end_part("gpt2".to_owned(), State::Done, 3.2);
    let table = report.table();
    assert!(!table.contains("rehearsal"), "{table}");
    let line = |work: &str| {
        table
            .lines()
            .find(|it| it.contains(work))
            .map(str::to_owned)
    };
    let gpt2 = line("GPT-2 124M").expect("a row");
    let expected =
        "| 100 tokens/s | 50.0 % of the matrix product, 6ND | torch.compile: 80 | 1.25 |";
    assert!(gpt2.ends_with(expected), "{gpt2}");
    assert!(line("PPO").expect("a row").ends_with("| not run | | | |"));
    assert!(report.problems().is_empty() && report.is_done("gpt2") && !report.is_done("ppo"));
}

#[test]
fn a_number_over_its_bound_a_nan_and_a_failure_fail_their_part() {
    let bad = [Ok(2e-4), Ok(f64::NAN), Err("the worker died".to_owned())];
    for found in bad {
        let mut report = report(false);
        assert_eq!(report.state_of("agree-f32"), State::Done);
        report.find("agree-f32", "ppo: first updates".to_owned(), 1e-4, found);
        let state = report.state_of("agree-f32");
        assert!(
            matches!(&state, State::Failed(why) if why.contains("ppo")),
            "{state:?}"
        );
        report.end_part("agree-f32".to_owned(), state, 1.0);
        assert_eq!(report.problems().len(), 1);
    }
}

#[test]
fn a_rehearsal_says_so_everywhere() {
    let report = report(true);
    assert!(
        report
            .table()
            .starts_with("**rehearsal on the CPU: no GPU figure**")
    );
    let dir = tempfile::tempdir().expect("a folder");
    report.write(dir.path(), &report.table()).expect("written");
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).expect("a file");
    let json: Value = serde_json::from_str(&read("gpu-check.json")).expect("JSON");
    assert_eq!(json["rehearsal"], true);
    assert_eq!(json["speed"][0]["on_gpu"], false);
    assert!(
        (json["speed"][0]["theirs"][0]["ratio"]
            .as_f64()
            .expect("a ratio")
            - 1.25)
            .abs()
            < 1e-12
    );
    assert!(read("gpu-check.md").starts_with("no GPU; a processor, 2 threads;"));
}
