//! A cluster of Kubernetes whose `kubectl` is a stand-in.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Outcome, Said, repository, rlhf_beside, say, scratch, tiny};

/// `jobs.json` in the folder is what the cluster has; `asked` what it was told, `applied` the manifests; `refuse` makes it
/// refuse what it is told to make.
const KUBECTL: &str = r#"#!/bin/bash
cd "$(dirname "$0")" || exit
[ "$1 $2" = "--namespace team" ] || exit 9
shift 2
echo "$*" >>asked
case $1 in
get) cat jobs.json ;;
apply)
    cat >applied
    if [ -e refuse ]; then
        echo 'Error from server (Forbidden): jobs.batch is forbidden' >&2
        exit 1
    fi
    ;;
esac
"#;

/// The tests' pipeline beside a cluster.
pub struct Cluster {
    pub folder: TempDir,
}

impl Cluster {
    /// A folder of its own, and a cluster without jobs.
    pub fn new() -> Outcome<Self> {
        let cluster = Self { folder: scratch()? };
        let bin = cluster.file("bin");
        fs::create_dir(&bin)?;
        fs::write(bin.join("kubectl"), KUBECTL)?;
        fs::set_permissions(bin.join("kubectl"), fs::Permissions::from_mode(0o755))?;
        let of_kubernetes = repository().join("tests/kubernetes/cluster.toml");
        let text = fs::read_to_string(tiny())? + &fs::read_to_string(of_kubernetes)?;
        fs::write(cluster.file("pipeline.toml"), text)?;
        cluster.has(&[])?;
        Ok(cluster)
    }

    /// A file of that folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `rlhf` with the stand-in before all else; without it, where nothing is found at all.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = rlhf_beside(&self.file("bin"));
        command.args(words);
        command
    }

    /// `rlhf submit --to kubernetes`.
    pub fn submit(&self, options: &[&str]) -> Outcome<Said> {
        let mut command = self.command(&["submit", "--to", "kubernetes"]);
        command.arg(self.file("pipeline.toml"));
        if !options.contains(&"--run-dir") {
            command.args(["--run-dir", "/shared/tiny"]);
        }
        say(command.args(options))
    }

    /// What `kubectl` was told since the last time, but for looks.
    pub fn told(&self) -> Outcome<Vec<String>> {
        let path = self.file("bin/asked");
        let text = fs::read_to_string(&path).unwrap_or_default();
        fs::write(&path, "")?;
        let told = text.lines().filter(|line| !line.starts_with("get "));
        Ok(told.map(str::to_owned).collect())
    }

    /// Has the cluster have these jobs.
    pub fn has(&self, jobs: &[Value]) -> Outcome {
        // At once: a conductor may be reading.
        let new = self.file("bin/new.json");
        fs::write(&new, json!({"items": jobs}).to_string())?;
        Ok(fs::rename(new, self.file("bin/jobs.json"))?)
    }

    /// What was applied last.
    pub fn applied(&self) -> Outcome<Value> {
        let text = fs::read_to_string(self.file("bin/applied"))?;
        Ok(serde_json::from_str(&text)?)
    }
}

/// The object of a kind and a name.
pub fn object<'a>(manifests: &'a Value, kind: &str, name: &str) -> Outcome<&'a Value> {
    let mut all = manifests["items"].as_array().ok_or("no list")?.iter();
    let found = all.find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    Ok(found.ok_or(format!("no {kind} {name} in\n{manifests:#}"))?)
}

/// The hash of the plan, as jobs note it.
pub fn plan_hash(manifests: &Value) -> Outcome<String> {
    let corpus = object(manifests, "Job", "tiny-corpus")?;
    let hash = corpus["metadata"]["annotations"]["rlhf/plan"].as_str();
    Ok(hash.ok_or("no hash")?.to_owned())
}

/// The text of the plan in its `ConfigMap`, the first object.
pub fn plan_text(manifests: &Value) -> Outcome<String> {
    let text = manifests["items"][0]["data"]["plan.toml"].as_str();
    Ok(text.ok_or("no plan")?.to_owned())
}

/// What the pods of a job say to `rlhf`.
pub fn words(job: &Value) -> Outcome<Vec<String>> {
    let words = &job["spec"]["template"]["spec"]["containers"][0]["args"];
    Ok(serde_json::from_value(words.clone())?)
}

/// A job as the cluster shows it.
pub fn job(name: &str, (hash, after): (&str, &str), status: &Value) -> Value {
    let annotations = json!({
        "rlhf/stage": name.trim_start_matches("tiny-"), "rlhf/run-dir": "/shared/tiny", "rlhf/plan": hash, "rlhf/after": after,
    });
    json!({
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"suspend": !after.is_empty()}, "status": status,
    })
}

/// The status of a job that has ended.
pub fn ended(how: &str) -> Value {
    json!({"conditions": [{"type": how, "status": "True", "reason": "PodFailurePolicy", "message": "exit code 1"}]})
}
