//! `kubectl`: what Kubernetes is told, and what it says of jobs.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::{Command, Stdio};

use serde::Deserialize;

use super::manifests::{AFTER, QUEUE, QUEUE_NAME, RUN};
use crate::failure::Failure;

/// Why Kubernetes did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KubectlError {
    /// It is not there.
    #[error(
        "kubectl is not there\n  hint: install it, and log in to the cluster; `--dry-run` prints the manifests anywhere"
    )]
    Missing,
    /// The system does not start it.
    #[error("cannot start kubectl")]
    Start(#[source] io::Error),
    /// Kubernetes refuses, in its own words.
    #[error("kubectl refuses: {0}")]
    Refused(String),
    /// It says what is not understood.
    #[error("kubectl answers what is no list of jobs")]
    Answer(#[source] serde_json::Error),
}

impl From<KubectlError> for Failure {
    fn from(error: KubectlError) -> Self {
        match error {
            KubectlError::Missing | KubectlError::Refused(_) => Self::usage(error),
            KubectlError::Start(_) | KubectlError::Answer(_) => Self::run(error),
        }
    }
}

impl KubectlError {
    /// Whether asking again is of no use.
    pub fn is_for_good(&self) -> bool {
        match self {
            Self::Missing | Self::Start(_) => true,
            Self::Refused(words) => words.contains("(Forbidden)"),
            Self::Answer(_) => false,
        }
    }
}

/// Objects of one namespace.
#[derive(Debug, Clone)]
pub struct Kubectl<'a> {
    /// The namespace.
    pub namespace: &'a str,
}

impl Kubectl<'_> {
    fn ask(&self, arguments: &[&str], input: &str) -> Result<Vec<u8>, KubectlError> {
        let mut child = Command::new("kubectl")
            .args(["--namespace", self.namespace])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => KubectlError::Missing,
                _ => KubectlError::Start(error),
            })?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that ends before it has read all says why.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output().map_err(KubectlError::Start)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let words = String::from_utf8_lossy(&output.stderr);
        Err(KubectlError::Refused(words.trim().replace('\n', "; ")))
    }

    /// The jobs of a run by name.
    ///
    /// # Errors
    /// No `kubectl`, no cluster, its refusal.
    pub fn jobs(&self, run: &str) -> Result<BTreeMap<String, Job>, KubectlError> {
        let selector = format!("{RUN}={run}");
        let answer = self.ask(
            &["get", "jobs", "--selector", &selector, "--output", "json"],
            "",
        )?;
        let list: List = serde_json::from_slice(&answer).map_err(KubectlError::Answer)?;
        let jobs = list.items.into_iter();
        Ok(jobs.map(|job| (job.metadata.name.clone(), job)).collect())
    }

    /// Makes objects, or leaves those that are there as they should be.
    ///
    /// # Errors
    /// Its refusal of one; those before it are made.
    pub fn apply(&self, manifests: &str) -> Result<(), KubectlError> {
        self.ask(&["apply", "--filename", "-"], manifests).map(drop)
    }

    /// Takes jobs away, and waits until their pods have ended. Those that are not there are no error.
    ///
    /// # Errors
    /// Its refusal.
    pub fn delete(&self, jobs: &[&str]) -> Result<(), KubectlError> {
        if jobs.is_empty() {
            return Ok(());
        }
        let options = ["--ignore-not-found", "--cascade=foreground"];
        let words = [&["delete", "jobs"], &options[..], jobs].concat();
        self.ask(&words, "").map(drop)
    }

    /// Lets a job that is held begin: by itself, or through its queue.
    ///
    /// # Errors
    /// Its refusal.
    pub fn release(&self, job: &Job) -> Result<(), KubectlError> {
        let patch = match job.metadata.annotations.get(QUEUE) {
            // Kueue lifts the suspension of what is in its queues.
            Some(queue) => serde_json::json!({"metadata": {"labels": {QUEUE_NAME: queue}}}),
            None => serde_json::json!({"spec": {"suspend": false}}),
        };
        let words = ["patch", "jobs", job.name(), "--type=merge", "--patch"];
        self.ask(&[&words[..], &[&patch.to_string()]].concat(), "")
            .map(drop)
    }
}

#[derive(Debug, Deserialize)]
struct List {
    items: Vec<Job>,
}

/// What Kubernetes says of a job.
#[derive(Debug, Clone, Deserialize)]
pub struct Job {
    metadata: Metadata,
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Clone, Deserialize)]
struct Metadata {
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Deserialize)]
struct Spec {
    #[serde(default)]
    suspend: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Status {
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone, Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

impl Job {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.metadata.name
    }

    /// What was noted of it.
    pub fn annotation(&self, key: &str) -> &str {
        let value = self.metadata.annotations.get(key);
        value.map_or("", String::as_str)
    }

    /// The jobs that come before it.
    pub fn after(&self) -> impl Iterator<Item = &str> {
        let names = self.annotation(AFTER).split(',');
        names.filter(|name| !name.is_empty())
    }

    fn condition(&self, kind: &str) -> Option<&Condition> {
        let mut all = self.status.conditions.iter();
        all.find(|condition| condition.kind == kind && condition.status == "True")
    }

    /// Whether it has done its work.
    pub fn is_complete(&self) -> bool {
        self.condition("Complete").is_some()
    }

    /// Why it has failed, if it has.
    pub fn failure(&self) -> Option<String> {
        let Condition {
            reason, message, ..
        } = self.condition("Failed")?;
        Some(format!("{reason}: {message}"))
    }

    /// Whether it waits to be released.
    pub fn is_held(&self) -> bool {
        let in_queue = self.metadata.labels.contains_key(QUEUE_NAME);
        self.spec.suspend && !in_queue && self.after().next().is_some()
    }

    /// Whether it runs, or will.
    pub fn is_live(&self) -> bool {
        !self.is_complete() && self.failure().is_none()
    }
}
