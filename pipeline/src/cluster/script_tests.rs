use std::process::Command;

use super::*;
use recipe::plan::JobSize;

fn job() -> SlurmJob {
    SlurmJob {
        size: JobSize {
            nodes: 2,
            ranks_per_node: 8,
            gpus_per_node: 8,
        },
        partition: Some("gpu".to_owned()),
        account: None,
        qos: None,
        constraint: Some("h100&ib".to_owned()),
        cpus_per_node: Some(64),
        memory: None,
        exclusive: true,
        time: Some("1-00:00:00".to_owned()),
        signal_before: 300,
        restarts: 3,
        options: vec!["--mail-type=END".to_owned()],
        setup: vec!["module load cuda".to_owned()],
        environment: [("NOTE".to_owned(), "it's".to_owned())].into(),
        program: None,
        container: None,
    }
}

fn script<'a>(job: &'a SlurmJob, stage: &'a str, seeds: bool, options: &'a [String]) -> Script<'a> {
    Script {
        pipeline: "big",
        stage,
        job,
        root: Path::new("/scratch/a run"),
        seeds,
        options,
        program: Path::new("/opt/rlhf/bin/rlhf"),
        token: "0.1.0-abc",
        gpus: 8,
    }
}

#[test]
fn a_script_says_all_that_the_configuration_says() {
    let job = job();
    let text = script(
        &job,
        "ppo",
        false,
        &["--device".to_owned(), "cuda".to_owned()],
    )
    .text();
    let (header, rest) = text.split_once("\n# Written").expect("a header");
    let expected = "\
#!/usr/bin/env bash
#SBATCH --job-name=big-ppo
#SBATCH --output='/scratch/a run/logs/slurm-ppo-%j.log'
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=64
#SBATCH --partition=gpu
#SBATCH --constraint='h100&ib'
#SBATCH --exclusive
#SBATCH --time=1-00:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --mail-type=END";
    assert_eq!(header, expected);
    let lines = [
        r"export NOTE='it'\''s'",
        "eval 'module load cuda' || failed $? 'module load cuda'",
        "run='/scratch/a run'",
        "job=$SLURM_JOB_ID",
        "restarts=3",
        "srun --nodes=2 --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=120 --cpus-per-task=64 \
         /opt/rlhf/bin/rlhf launch --ranks 8 --exit-if-killed 75 -- run \"$run/cluster/plan.toml\" --only ppo \
         --run-dir \"$run\" --device cuda &",
    ];
    for line in lines {
        assert!(rest.lines().any(|found| found == line), "{line}\n{rest}");
    }
}

#[test]
fn seeds_are_an_array_and_the_check_is_short() {
    let job = job();
    let text = script(&job, "sft", true, &[]).text();
    for words in [
        "--output='/scratch/a run/seed-%a/logs/slurm-sft-%A.log'",
        "run='/scratch/a run'/seed-$SLURM_ARRAY_TASK_ID\n",
        "job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID\n",
    ] {
        assert!(text.contains(words), "{words}\n{text}");
    }
    let text = script(&job, CHECK, false, &[]).text();
    let doctor =
        "/opt/rlhf/bin/rlhf doctor --run-dir '/scratch/a run' --token 0.1.0-abc --gpus 8\n";
    assert!(
        text.contains("#SBATCH --time=15\n") && text.ends_with(doctor),
        "{text}"
    );
    assert!(
        !text.contains("--signal") && !text.contains("--requeue"),
        "{text}"
    );
}

#[test]
fn a_container_sees_the_run_folder_under_its_own_name() {
    let mut job = job();
    let mut container = Container {
        image: "registry/rlhf:1".to_owned(),
        runtime: ContainerRuntime::Pyxis,
        mounts: vec!["/data".to_owned()],
    };
    job.container = Some(container.clone());
    let text = script(&job, "sft", false, &[]).text();
    let words = "--container-image=registry/rlhf:1 \
                 --container-mounts='/scratch/a run:/scratch/a run,/data:/data' /opt/rlhf/bin/rlhf launch";
    assert!(text.contains(words), "{text}");
    container.runtime = ContainerRuntime::Apptainer;
    job.container = Some(container);
    let text = script(&job, "sft", false, &[]).text();
    let words = "apptainer exec --nv --bind '/scratch/a run' --bind /data registry/rlhf:1 /opt/rlhf/bin/rlhf launch";
    assert!(text.contains(words), "{text}");
}

/// The shell of a job with commands of Slurm that are stand-ins: what it says, and asks of Slurm, in so many starts.
fn ended(stand_ins: &str, restarts: usize, times: usize) -> (String, Vec<Option<i32>>) {
    let dir = tempfile::tempdir().expect("a folder");
    let mut job = job();
    (job.restarts, job.setup) = (restarts, Vec::new());
    let script = Script {
        root: dir.path(),
        ..script(&job, "sft", false, &[])
    };
    std::fs::create_dir(dir.path().join("cluster")).expect("a folder");
    let usual = "squeue() { echo RUNNING; }\nscancel() { :; }\n\
                 scontrol() { echo \"asked: $*\"; return 1; }\nexport SLURM_JOB_ID=5\n";
    let text = format!("{usual}{stand_ins}\n{}", script.text());
    let mut all = String::new();
    let mut codes = Vec::new();
    for _ in 0..times {
        let output = Command::new("bash").args(["-c", &text]).output();
        let output = output.expect("bash");
        all.push_str(&String::from_utf8_lossy(&output.stdout));
        assert!(output.stderr.is_empty(), "{output:?}");
        codes.push(output.status.code());
    }
    (all, codes)
}

#[test]
fn what_was_killed_is_started_again_a_few_times_and_what_failed_is_not() {
    let (said, codes) = ended("srun() { return 75; }", 2, 3);
    assert_eq!(said.matches("asked: requeue 5").count(), 2, "{said}");
    assert!(said.contains("2 starts since came no further"), "{said}");
    assert_eq!(codes, [Some(75); 3]);
    for code in [130, 137, 143] {
        let srun = format!("srun() {{ return {code}; }}");
        assert!(ended(&srun, 1, 1).0.contains("requeue"), "{code}");
    }
    for code in [0, 1, 2] {
        let (said, codes) = ended(&format!("srun() {{ return {code}; }}"), 1, 1);
        assert!(said.is_empty() && codes == [Some(code)], "{code}: {said}");
    }
}

/// The shell of a job with these lines of setup, whose program ends well.
fn set_up(lines: &[&str]) -> (String, Option<i32>) {
    let mut job = job();
    job.setup = lines.iter().map(|line| (*line).to_owned()).collect();
    let script = script(&job, "sft", false, &[]).text();
    let text = format!("srun() {{ echo \"$GREETING\"; }}\nexport SLURM_JOB_ID=5\n{script}");
    let output = Command::new("bash").args(["-c", &text]).output();
    let output = output.expect("bash");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (said, output.status.code())
}

#[test]
fn setup_may_read_what_is_not_set_and_ends_the_job_where_it_fails() {
    let lines = [
        "x=$NOT_SET_ANYWHERE  # as modules do",
        "export GREETING=\"it's $x\"",
    ];
    assert_eq!(set_up(&lines), ("it's \n".to_owned(), Some(0)));
    let (said, code) = set_up(&["(exit 3)", "export GREETING=hello"]);
    assert_eq!(
        (&said[..], code),
        ("error: a line of setup ended with 3: (exit 3)\n", Some(1))
    );
}

/// A snapshot of a million steps comes after one of fewer digits, though not by its letters.
#[test]
fn a_start_that_came_further_is_not_counted() {
    let srun = "srun() {
        if [ -d \"$run/sft/step-999900\" ]; then further=step-1000000; else further=step-999900; fi
        mkdir -p \"$run/sft/$further\"
        return 75
    }";
    let (said, _) = ended(srun, 0, 2);
    assert_eq!(said.matches("asked: requeue 5").count(), 2, "{said}");
    let (said, _) = ended(srun, 0, 3);
    assert!(said.contains("0 starts since came no further"), "{said}");
}

#[test]
fn what_is_cancelled_does_not_come_back_and_what_meets_its_limit_does() {
    let told = |signal: &str| format!("srun() {{ kill -{signal} $$; sleep 0.2; return 130; }}");
    let (said, codes) = ended(&told("USR1"), 1, 1);
    assert!(
        said.contains("the time limit is near; the job goes back"),
        "{said}"
    );
    assert!(
        said.contains("asked: requeue 5") && codes == [Some(130)],
        "{said}"
    );
    let (said, codes) = ended(&told("TERM"), 1, 1);
    assert!(!said.contains("asked") && codes == [Some(130)], "{said}");
    let cancelled = "squeue() { echo COMPLETING; }\nsrun() { return 130; }";
    assert!(!ended(cancelled, 1, 1).0.contains("asked"));
}
