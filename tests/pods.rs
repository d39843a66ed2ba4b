//! What pods of Kubernetes are told, done by processes of this machine.

use std::fs;
use std::net::TcpListener;
use std::process::{Child, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use crate::kubectl::{Cluster, object, plan_text, words};
use crate::process::{send, wait_until};
use crate::support::{Outcome, rlhf};

/// The pods of a job, as processes of this machine.
fn start_pods(
    cluster: &Cluster,
    (manifests, name): (&Value, &str),
    port: u16,
) -> Outcome<Vec<Child>> {
    let job = object(manifests, "Job", name)?;
    let pods = job["spec"]["completions"].as_u64().ok_or("no pods")?;
    fs::write(cluster.file("plan.toml"), plan_text(manifests)?)?;
    let (plan, run) = (cluster.file("plan.toml"), cluster.file("shared/tiny"));
    let (master, here) = (
        format!("{name}-0.{name}:29500"),
        format!("127.0.0.1:{port}"),
    );
    let start = |pod: u64| -> Outcome<Child> {
        let words = words(job)?.into_iter().map(|word| match word.as_str() {
            "$(JOB_COMPLETION_INDEX)" => pod.to_string(),
            "/etc/rlhf/plan.toml" => plan.display().to_string(),
            "/shared/tiny" => run.display().to_string(),
            word if word == master => here.clone(),
            _ => word,
        });
        Ok(rlhf()
            .args(words)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?)
    };
    (0..pods).map(start).collect()
}

#[test]
fn what_pods_are_told_runs_the_stages() -> Outcome {
    let cluster = Cluster::new()?;
    let short = [
        "--device",
        "cpu",
        "--set",
        "stages.pretrain.steps=4",
        "--set",
        "cluster.kubernetes.ranks_per_node=1",
    ];
    cluster.submit(&short)?.ended(0);
    let manifests = cluster.applied()?;
    let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
    for stage in ["corpus", "tokenizer", "pretrain"] {
        let name = format!("tiny-{stage}");
        let pods = start_pods(&cluster, (&manifests, &name), port)?;
        assert_eq!(pods.len(), if stage == "pretrain" { 2 } else { 1 });
        for pod in pods {
            let output = pod.wait_with_output()?;
            let words = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{stage}: {words}");
        }
        assert!(
            cluster
                .file("shared/tiny")
                .join(stage)
                .join("done.json")
                .is_file()
        );
    }
    Ok(())
}

#[test]
fn a_pod_that_loses_another_asks_to_begin_again_and_goes_on() -> Outcome {
    let cluster = Cluster::new()?;
    let options = [
        "--device",
        "cpu",
        "--set",
        "cluster.kubernetes.ranks_per_node=1",
        "--set",
        "stages.pretrain.save_every=2",
    ];
    cluster.submit(&options)?.ended(0);
    let manifests = cluster.applied()?;
    let run = cluster.file("shared/tiny");
    let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
    for stage in ["tiny-corpus", "tiny-tokenizer"] {
        for mut pod in start_pods(&cluster, (&manifests, stage), port)? {
            assert!(pod.wait()?.success());
        }
    }
    let snapshot = || {
        Ok(run.join("pretrain/step-000002").is_dir() || run.join("pretrain/step-000004").is_dir())
    };
    let mut pods = start_pods(&cluster, (&manifests, "tiny-pretrain"), port)?;
    wait_until("a snapshot", snapshot)?;
    // A node is lost: its pod ends without a word.
    let mut lost = pods.pop().ok_or("no pod")?;
    lost.kill()?;
    lost.wait()?;
    let first = pods.pop().ok_or("no pod")?;
    let output = first.wait_with_output()?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(75), "{words}");
    // What is told to end saves, and every pod says so.
    let before = fs::read_to_string(run.join("pretrain/metrics.jsonl"))?
        .lines()
        .count();
    let pods = start_pods(&cluster, (&manifests, "tiny-pretrain"), port)?;
    wait_until("it to go on", || {
        Ok(fs::read_to_string(run.join("pretrain/metrics.jsonl"))?
            .lines()
            .count()
            > before)
    })?;
    send(pods[1].id(), Signal::TERM)?;
    for pod in pods {
        let output = pod.wait_with_output()?;
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(130), "{words}");
    }
    Ok(())
}
