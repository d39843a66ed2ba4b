use super::*;
use crate::fixtures::pipeline;
use runtime::files::write_json;

type Outcome = Result<(), Box<dyn std::error::Error>>;

const STAGES: [(&str, &str, &[&str]); 5] = [
    (CHECK, "1", &[]),
    ("corpus", "2", &[CHECK]),
    ("tokenizer", "3", &["corpus"]),
    ("pretrain", "4", &["corpus", "tokenizer"]),
    ("sft", "5", &["pretrain"]),
];

fn submission(root: &Path) -> Submission {
    let mut submission = Submission::default();
    for (stage, id, after) in STAGES {
        submission.put(Job {
            stage: stage.to_owned(),
            seed: None,
            id: id.to_owned(),
            after: after.iter().map(|stage| (*stage).to_owned()).collect(),
            script: root.join("script"),
            log: root.join(format!("{stage}.log")),
            submitted: 100,
        });
    }
    submission
}

fn queue(jobs: &[(&str, &str, &str)]) -> BTreeMap<String, JobState> {
    let job = |(id, state, reason): &(&str, &str, &str)| {
        let state = JobState {
            state: (*state).to_owned(),
            reason: (*reason).to_owned(),
            nodes: "node1".to_owned(),
            elapsed: "0:10".to_owned(),
            left: "0:50".to_owned(),
        };
        ((*id).to_owned(), state)
    };
    jobs.iter().map(job).collect()
}

fn metrics(root: &Path, stage: &str, lines: u64) -> Outcome {
    let line = |step: u64| {
        let (time, loss) = (1000 + 2 * step, 9 - step);
        format!("{{\"step\":{step},\"time\":{time},\"loss/train\":{loss}}}\n")
    };
    fs::create_dir_all(root.join(stage))?;
    let text: String = (1..=lines).map(line).collect();
    Ok(fs::write(root.join(stage).join("metrics.jsonl"), text)?)
}

#[test]
fn each_job_is_shown_as_far_as_it_is() -> Outcome {
    let pipeline = pipeline()?;
    let root = pipeline.run.root();
    fs::write(pipeline.run.plan_path(), pipeline.plan.to_toml()?)?;
    pipeline.finish("corpus")?;
    pipeline.finish("tokenizer")?;
    metrics(root, "pretrain", 5)?;
    let queue = queue(&[
        ("1", "COMPLETED", "None"),
        ("3", "COMPLETED", "None"),
        ("4", "RUNNING", "None"),
        ("5", "PENDING", "Dependency"),
    ]);
    let rows = rows(root, &submission(root), &queue)?;
    let states: Vec<&str> = rows.iter().map(|row| row.state.as_str()).collect();
    assert_eq!(states, ["done", "done", "done", "running", "pending"]);
    let pretrain = &rows[3];
    assert_eq!(
        (pretrain.step, pretrain.nodes.as_deref()),
        (Some(5), Some("node1"))
    );
    assert_eq!(pretrain.metric, Some(("loss/train".to_owned(), 4.0)));
    let left = pretrain.steps.map(|steps| 2 * (steps - 5));
    assert_eq!(pretrain.seconds_left, left);
    assert_eq!(pretrain.limit_left.as_deref(), Some("0:50"));
    assert_eq!(rows[4].reason.as_deref(), Some("waits for pretrain"));
    assert_eq!(rows[4].limit_left, None);
    Ok(())
}

#[test]
fn what_never_starts_says_what_failed_and_why() -> Outcome {
    let pipeline = pipeline()?;
    let root = pipeline.run.root();
    fs::write(pipeline.run.plan_path(), pipeline.plan.to_toml()?)?;
    pipeline.finish("corpus")?;
    fs::create_dir_all(root.join("tokenizer"))?;
    let failed = |time| Failed {
        error: format!("stage `tokenizer`: no text at {time}\n  hint: give some"),
        host: "node1".to_owned(),
        pid: 7,
        time,
    };
    let jobs = [
        ("3", "FAILED", "NonZeroExitCode"),
        ("4", "PENDING", "DependencyNeverSatisfied"),
        ("5", "PENDING", "Dependency"),
    ];
    let reasons =
        |queue: &BTreeMap<String, JobState>| -> Result<Vec<String>, Box<dyn std::error::Error>> {
            let rows = rows(root, &submission(root), queue)?;
            Ok(rows.into_iter().filter_map(|row| row.reason).collect())
        };
    // Of an earlier job: the log speaks.
    write_json(&root.join("tokenizer/failed.json"), &failed(99))?;
    fs::write(
        root.join("tokenizer.log"),
        "error: first\nsrun: error: x\nerror: the last\n",
    )?;
    let found = reasons(&queue(&jobs))?;
    assert_eq!(
        found,
        [
            "the last",
            "not started: tokenizer failed: the last (DependencyNeverSatisfied)",
            "not started: tokenizer failed: the last",
        ]
    );
    write_json(&root.join("tokenizer/failed.json"), &failed(101))?;
    let own = "stage `tokenizer`: no text at 101";
    assert_eq!(
        reasons(&queue(&jobs))?[1],
        format!("not started: tokenizer failed: {own} (DependencyNeverSatisfied)")
    );
    // Slurm has forgotten all: the folder still knows.
    let found = reasons(&BTreeMap::new())?;
    assert_eq!(found[0], own);
    fs::remove_file(root.join("tokenizer/failed.json"))?;
    fs::remove_file(root.join("tokenizer.log"))?;
    assert!(reasons(&queue(&jobs))?[0].contains("do the nodes see that folder?"));
    Ok(())
}

/// Clusters with `kill_invalid_depend` cancel what waits in vain.
#[test]
fn what_was_cancelled_since_another_failed_names_that_one() -> Outcome {
    let pipeline = pipeline()?;
    let root = pipeline.run.root();
    fs::write(pipeline.run.plan_path(), pipeline.plan.to_toml()?)?;
    pipeline.finish("corpus")?;
    fs::write(root.join("tokenizer.log"), "error: no text\n")?;
    let mut jobs = vec![
        ("3", "FAILED", "NonZeroExitCode"),
        ("4", "CANCELLED", "DependencyNeverSatisfied"),
        ("5", "CANCELLED", "DependencyNeverSatisfied"),
    ];
    let shown = rows(root, &submission(root), &queue(&jobs))?;
    let reasons: Vec<Option<&str>> = shown.iter().map(|row| row.reason.as_deref()).collect();
    let never = Some("not started: tokenizer failed: no text");
    assert_eq!(reasons[2..], [Some("no text"), never, never]);
    // The user's own word.
    pipeline.finish("tokenizer")?;
    jobs.remove(0);
    let shown = rows(root, &submission(root), &queue(&jobs))?;
    assert_eq!(shown[3].reason.as_deref(), Some("it was cancelled"));
    Ok(())
}

#[test]
fn what_slurm_has_forgotten_or_the_folder_does_not_show_is_said_so() -> Outcome {
    let pipeline = pipeline()?;
    let root = pipeline.run.root();
    fs::write(pipeline.run.plan_path(), pipeline.plan.to_toml()?)?;
    let completed = queue(&[("2", "COMPLETED", "None")]);
    let shown = rows(root, &submission(root), &completed)?;
    assert_eq!(
        (&shown[0].state[..], &shown[1].state[..]),
        ("unknown", "completed")
    );
    let reason = shown[1].reason.as_deref().unwrap_or_default();
    assert!(
        reason.contains("corpus/done.json is not seen here"),
        "{reason}"
    );
    // No stage begins before the check has ended well.
    pipeline.finish("corpus")?;
    let shown = rows(root, &submission(root), &BTreeMap::new())?;
    assert_eq!((&shown[0].state[..], &shown[0].reason), ("done", &None));
    // A check that was submitted later is another.
    let mut later = submission(root);
    later.jobs[0].submitted = u64::MAX;
    let shown = rows(root, &later, &BTreeMap::new())?;
    assert_eq!(shown[0].state, "unknown");
    Ok(())
}

#[test]
fn a_check_says_all_that_it_found_wrong() {
    let log = "ok     platform      linux\nWRONG  libtorch      is not found\n                     -> make setup\n\
               WRONG  gpus          0, and 8 are needed\nerror: 2 things are wrong; see above\n";
    let said = last_error(log);
    assert_eq!(
        said.as_deref(),
        Some("libtorch is not found; gpus 0, and 8 are needed")
    );
}
