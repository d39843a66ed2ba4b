//! Submitting to Kubernetes where `kubectl` is a stand-in: what it is told, and what becomes of its answers.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::kubectl::{Cluster, ended, job, object, plan_hash};
use crate::process::{Front, wait_until};
use crate::support::{Outcome, repository, say, tiny};

#[test]
fn the_manifests_are_those_that_were_looked_at() -> Outcome {
    let cluster = Cluster::new()?;
    let file = cluster.file("pipeline.toml");
    let said = say(cluster.command(&["plan"]).arg(file))?.ended(0);
    let job = "1 nodes x 2 ranks, 8 GPUs each, queue team-queue\n";
    assert!(said.out.contains(job), "{}", said.out);
    fs::remove_dir_all(cluster.file("bin"))?;
    let said = cluster.submit(&["--dry-run", "--device", "cuda"])?.ended(0);
    let mut found: Value = serde_json::from_str(&said.out)?;
    let hash = plan_hash(&found)?;
    // The plan itself has tests of its own.
    found["items"][0]["data"]["plan.toml"] = "PLAN".into();
    let name = found["items"][0]["metadata"]["name"].as_str();
    let name = name.ok_or("no name")?.to_owned();
    let found = format!("{found:#}\n")
        .replace(&hash, "HASH")
        .replace(&name, "tiny-plan-HASH");
    let golden = repository().join("tests/kubernetes/manifests.json");
    let written = Path::new(env!("CARGO_TARGET_TMPDIR")).join("manifests.json");
    fs::write(&written, &found)?;
    let expected = fs::read_to_string(&golden)?;
    assert!(
        found == expected,
        "{} differs from {}",
        written.display(),
        golden.display()
    );
    Ok(())
}

fn kinds(manifests: &Value) -> Vec<String> {
    let items = manifests["items"].as_array().into_iter().flatten();
    items
        .filter_map(|item| item["kind"].as_str().map(str::to_owned))
        .collect()
}

#[test]
fn all_is_applied_once_and_again_where_it_failed() -> Outcome {
    let cluster = Cluster::new()?;
    let said = cluster
        .submit(&[])?
        .ended(0)
        .names(&["kubectl --namespace team get jobs,pods --selector rlhf/run=tiny"]);
    assert!(
        said.out
            .contains("ppo  job tiny-ppo  after tiny-corpus, tiny-reward, tiny-sft"),
        "{}",
        said.out
    );
    assert_eq!(cluster.told()?, ["apply --filename -"]);
    let manifests = cluster.applied()?;
    let shown: Value = serde_json::from_str(&cluster.submit(&["--dry-run"])?.ended(0).out)?;
    assert_eq!(shown, manifests);
    let hash = plan_hash(&manifests)?;
    let (of, complete, failed) = (
        |after| (hash.as_str(), after),
        ended("Complete"),
        ended("Failed"),
    );
    let all = |reward: &Value| {
        [
            job("tiny-corpus", of(""), &complete),
            job("tiny-tokenizer", of("tiny-corpus"), &complete),
            job("tiny-pretrain", of("tiny-corpus"), &complete),
            job("tiny-sft", of("tiny-pretrain"), &complete),
            job("tiny-comparisons", of("tiny-sft"), &complete),
            job("tiny-reward", of("tiny-sft"), reward),
            job("tiny-ppo", of("tiny-reward"), &json!({})),
            json!({"metadata": {"name": "tiny-conductor"}, "spec": {}}),
        ]
    };
    cluster.has(&all(&json!({})))?;
    cluster.submit(&[])?.ended(0).names(&[
        "sft  is done",
        "ppo  stays, as job tiny-ppo",
        "nothing to submit",
    ]);
    assert!(cluster.told()?.is_empty());
    cluster
        .submit(&["--set", "stages.ppo.iterations=1"])?
        .ended(2)
        .names(&[
            "job tiny-reward",
            "other settings",
            "hint: `kubectl --namespace team delete jobs",
        ]);
    // The conductor is gone, and a job waits for it.
    cluster.has(&all(&json!({}))[..7])?;
    cluster.submit(&[])?.ended(0);
    assert_eq!(cluster.told()?, ["apply --filename -"]);
    let kinds = kinds(&cluster.applied()?);
    assert_eq!(kinds, ["ServiceAccount", "Role", "RoleBinding", "Job"]);
    cluster.has(&all(&failed))?;
    cluster.submit(&[])?.ended(0);
    let expected = [
        "delete jobs --ignore-not-found --cascade=foreground tiny-reward tiny-ppo tiny-conductor",
        "apply --filename -",
    ];
    assert_eq!(cluster.told()?, expected);
    let manifests = cluster.applied()?;
    assert!(object(&manifests, "Job", "tiny-sft").is_err());
    // What is done is waited for no more: the reward model may begin at once.
    let reward = object(&manifests, "Job", "tiny-reward")?;
    let after = |job: &Value| job["metadata"]["annotations"]["rlhf/after"].clone();
    assert!(
        reward["spec"]["suspend"].is_null() && after(reward).is_null(),
        "{reward:#}"
    );
    assert_eq!(after(object(&manifests, "Job", "tiny-ppo")?), "tiny-reward");
    Ok(())
}

#[test]
fn what_cannot_be_is_refused() -> Outcome {
    let cluster = Cluster::new()?;
    cluster
        .submit(&["--run-dir", "/home/me/tiny"])?
        .ended(2)
        .names(&["--run-dir: /home/me/tiny is on no volume", "hint: "]);
    cluster
        .submit(&["--restart", "sft"])?
        .ended(2)
        .names(&["/shared/tiny is not seen from here"]);
    cluster
        .submit(&["--set", "cluster.kubernetes.nodes=3"])?
        .ended(2)
        .names(&["does not divide among 6 ranks"]);
    let mut bare = cluster.command(&["submit", "--to", "kubernetes", "--run-dir", "/shared/tiny"]);
    say(bare.arg(tiny()))?
        .ended(2)
        .names(&["has no table [cluster.kubernetes]", "hint: "]);
    let mut other = job("tiny-sft", ("x", ""), &ended("Complete"));
    other["metadata"]["annotations"]["rlhf/run-dir"] = "/shared/other/tiny".into();
    cluster.has(&[other])?;
    cluster
        .submit(&[])?
        .ended(2)
        .names(&["job tiny-sft in namespace team is of another run folder, /shared/other/tiny"]);
    assert!(cluster.told()?.is_empty());
    cluster.has(&[])?;
    fs::write(cluster.file("bin/refuse"), "")?;
    cluster
        .submit(&[])?
        .ended(2)
        .names(&["kubectl refuses: ", "is forbidden"]);
    let told = cluster.told()?;
    assert!(
        told[1].starts_with("delete jobs ") && told[1].ends_with(" tiny-ppo tiny-conductor"),
        "{told:?}"
    );
    fs::remove_dir_all(cluster.file("bin"))?;
    cluster
        .submit(&[])?
        .ended(2)
        .names(&["kubectl is not there", "--dry-run"]);
    Ok(())
}

#[test]
fn the_conductor_releases_what_is_due_and_says_why_the_rest_is_not() -> Outcome {
    let cluster = Cluster::new()?;
    let mut conduct = cluster.command(&["conduct", "tiny", "--namespace", "team", "--every", "1"]);
    say(&mut conduct)?
        .ended(2)
        .names(&["there are no jobs of tiny in namespace team"]);
    let conductor = json!({"metadata": {"name": "tiny-conductor"}, "spec": {}});
    let (nothing, complete) = (json!({}), ended("Complete"));
    let mut queued = job("tiny-ppo", ("x", "tiny-sft"), &nothing);
    queued["metadata"]["annotations"]["rlhf/queue"] = "fast".into();
    let sft = |suspend: bool, status: &Value| {
        let mut sft = job("tiny-sft", ("x", "tiny-corpus"), status);
        sft["spec"]["suspend"] = suspend.into();
        sft
    };
    let corpus = |status: &Value| job("tiny-corpus", ("x", ""), status);
    cluster.has(&[
        conductor.clone(),
        corpus(&nothing),
        sft(true, &nothing),
        queued.clone(),
    ])?;
    let front = Front::start(&mut conduct, cluster.folder.path())?;
    let asked = cluster.file("bin/asked");
    let looks = |count: usize| {
        let text = fs::read_to_string(&asked).unwrap_or_default();
        Ok(text
            .matches("get jobs --selector rlhf/run=tiny --output json")
            .count()
            >= count)
    };
    wait_until("two looks", || looks(3))?;
    assert!(cluster.told()?.is_empty());
    cluster.has(&[
        conductor.clone(),
        corpus(&complete),
        sft(true, &nothing),
        queued.clone(),
    ])?;
    let patched = |words: &str| {
        let text = fs::read_to_string(&asked).unwrap_or_default();
        Ok(text.contains(words))
    };
    wait_until("sft to be released", || {
        patched(r#"patch jobs tiny-sft --type=merge --patch {"spec":{"suspend":false}}"#)
    })?;
    cluster.has(&[
        conductor.clone(),
        corpus(&complete),
        sft(false, &complete),
        queued.clone(),
    ])?;
    wait_until("ppo to be given to its queue", || {
        patched(
            r#"patch jobs tiny-ppo --type=merge --patch {"metadata":{"labels":{"kueue.x-k8s.io/queue-name":"fast"}}}"#,
        )
    })?;
    cluster.has(&[
        conductor,
        corpus(&complete),
        sft(false, &ended("Failed")),
        queued,
    ])?;
    front.end()?.ended(1).names(&[
        "tiny-sft has failed (PodFailurePolicy: exit code 1)",
        "tiny-ppo is not started, since it needs tiny-sft",
    ]);
    Ok(())
}
