//! The objects of Kubernetes that run a pipeline.

use std::path::Path;

use recipe::plan::{KubernetesJob, KubernetesPlan, Plan};
use runtime::hash::hash_bytes;
use serde_json::{Map, Value, json};

use super::names::{literal, object_name};
use crate::failure::{Failure, Outcome};

/// The label of all objects of a submission.
pub const RUN: &str = "rlhf/run";
/// Annotations of a job: its stage, its run folder, the hash of its plan, the jobs that come before it, its queue.
pub const STAGE: &str = "rlhf/stage";
/// See [`STAGE`].
pub const RUN_DIR: &str = "rlhf/run-dir";
/// See [`STAGE`].
pub const PLAN: &str = "rlhf/plan";
/// See [`STAGE`].
pub const AFTER: &str = "rlhf/after";
/// See [`STAGE`].
pub const QUEUE: &str = "rlhf/queue";
/// Kueue's label.
pub const QUEUE_NAME: &str = "kueue.x-k8s.io/queue-name";

/// Where pods find their plan.
const PLAN_DIR: &str = "/etc/rlhf";
/// Where the first pod of a job listens.
const PORT: u16 = 29500;
/// The exit code of what may well succeed when it is run again.
const AGAIN: u8 = 75;
/// The exit code of what was asked to end, and has saved.
const INTERRUPTED: u8 = 130;
/// How long pods wait for each other: nodes may have to be made first.
const JOIN_S: u32 = 3600;
/// Most that a `ConfigMap` holds, less what stands around the plan.
const PLAN_BYTES: usize = (1 << 20) - (1 << 12);

/// One stage's job.
#[derive(Debug, Clone)]
pub struct StageJob<'a> {
    /// The stage.
    pub stage: &'a str,
    /// Its object's name.
    pub name: String,
    /// Names of the jobs that come before it.
    pub after: Vec<String>,
    /// How large it is, and so on.
    pub job: &'a KubernetesJob,
}

/// A plan as pods find it.
#[derive(Debug, Clone)]
pub struct Frozen {
    text: String,
    /// Its hash, cut short.
    pub hash: String,
}

impl Frozen {
    /// What clusters are told is no part of it, nor is where its file lies on the machine that submits.
    ///
    /// # Errors
    /// It is too large.
    pub fn new(plan: &Plan) -> Outcome<Self> {
        let plan = Plan {
            cluster: None,
            source: plan.source.file_name().unwrap_or_default().into(),
            ..plan.clone()
        };
        let text = plan.to_toml().map_err(Failure::run)?;
        if text.len() > PLAN_BYTES {
            return Err(Failure::usage(anyhow::anyhow!(
                "the plan has {} bytes, and a ConfigMap holds {PLAN_BYTES}\n  hint: make two pipelines of it",
                text.len()
            )));
        }
        let hash = hash_bytes(text.as_bytes())[..16].to_owned();
        Ok(Self { text, hash })
    }
}

/// What all objects of a submission have in common.
#[derive(Debug, Clone)]
pub struct Manifests<'a> {
    /// The submission's name.
    pub run: &'a str,
    /// What the configuration says.
    pub table: &'a KubernetesPlan,
    /// Options of `rlhf run` for every stage.
    pub options: &'a [String],
}

impl Manifests<'_> {
    fn metadata(&self, name: &str) -> Value {
        let labels = json!({"app.kubernetes.io/name": "rlhf", RUN: self.run});
        json!({"name": name, "namespace": self.table.namespace, "labels": labels})
    }

    /// The name of the job that releases the others.
    pub fn conductor_name(&self) -> String {
        object_name(&[self.run, "conductor"])
    }

    /// The account of the conductor, unless there is one already: it may see and release jobs, and nothing else.
    pub fn account(&self) -> Vec<Value> {
        if self.table.service_account.is_some() {
            return Vec::new();
        }
        let name = self.conductor_name();
        let group = "rbac.authorization.k8s.io";
        let api = format!("{group}/v1");
        let rules = json!([{"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "list", "patch"]}]);
        let subject =
            json!({"kind": "ServiceAccount", "name": name, "namespace": self.table.namespace});
        vec![
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": self.metadata(&name)}),
            json!({"apiVersion": api, "kind": "Role", "metadata": self.metadata(&name), "rules": rules}),
            json!({
                "apiVersion": api, "kind": "RoleBinding", "metadata": self.metadata(&name),
                "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
                "subjects": [subject],
            }),
        ]
    }

    fn plan_name(&self, plan: &Frozen) -> String {
        object_name(&[self.run, "plan", &plan.hash])
    }

    /// The plan, as a file for pods.
    pub fn plan(&self, plan: &Frozen) -> Value {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": self.metadata(&self.plan_name(plan)),
            "immutable": true,
            "data": {"plan.toml": plan.text},
        })
    }

    /// The names under which the pods of a job find each other, where there are several.
    pub fn service(&self, of: &StageJob) -> Option<Value> {
        (of.job.size.nodes > 1).then(|| {
            json!({
                "apiVersion": "v1", "kind": "Service", "metadata": self.metadata(&of.name),
                "spec": {
                    "clusterIP": "None",
                    // Ranks look for each other before they are ready for anything.
                    "publishNotReadyAddresses": true,
                    "selector": {"batch.kubernetes.io/job-name": of.name},
                },
            })
        })
    }

    /// A stage's job in the run folder `root`. What comes after others is held until the conductor releases it.
    pub fn job(&self, of: &StageJob, plan: &Frozen, root: &Path) -> Value {
        let StageJob { job, .. } = of;
        let root = root.to_string_lossy();
        let held = !of.after.is_empty();
        let mut metadata = self.metadata(&of.name);
        metadata["annotations"] = json!({STAGE: of.stage, RUN_DIR: root, PLAN: plan.hash});
        if held {
            metadata["annotations"][AFTER] = of.after.join(",").into();
        }
        if let Some(queue) = &job.queue {
            metadata["annotations"][QUEUE] = queue.clone().into();
            if !held {
                metadata["labels"][QUEUE_NAME] = queue.clone().into();
            }
        }
        let nodes = job.size.nodes;
        let mut pod = self.pod(job);
        if nodes > 1 {
            pod["subdomain"] = of.name.clone().into();
        }
        pod["terminationGracePeriodSeconds"] = job.grace.into();
        pod["volumes"] = volumes(job, &self.plan_name(plan));
        pod["containers"] = json!([self.container(of, &root)]);
        if self.table.service_account.is_none() {
            pod["automountServiceAccountToken"] = false.into();
        }
        let mut spec = json!({
            "completionMode": "Indexed",
            "completions": nodes,
            "parallelism": nodes,
            // When a job falls apart each of its pods ends.
            "backoffLimit": job.restarts * nodes,
            "template": {"metadata": {"labels": self.metadata("")["labels"]}, "spec": pod},
        });
        if held || job.queue.is_some() {
            spec["suspend"] = true.into();
        }
        begins_again(&mut spec, "stage");
        json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec})
    }

    fn container(&self, of: &StageJob, root: &str) -> Value {
        let mut container = json!({
            "name": "stage",
            "image": of.job.image,
            "command": ["rlhf"],
            "args": self.words(of, root),
            "volumeMounts": mounts(of.job),
        });
        let environment = of.job.environment.iter();
        // In a value, too, `$(NAME)` would stand for another variable.
        let variables: Vec<Value> = environment
            .map(|(name, value)| json!({"name": name, "value": literal(value)}))
            .collect();
        if !variables.is_empty() {
            container["env"] = variables.into();
        }
        let resources = resources(of.job);
        if !resources.is_empty() {
            container["resources"] = json!({"requests": resources, "limits": resources});
        }
        container
    }

    /// What a pod says to `rlhf`.
    fn words(&self, of: &StageJob, root: &str) -> Vec<String> {
        let (name, size) = (&of.name, &of.job.size);
        let mut words = vec!["launch".to_owned()];
        let mut option = |key: &str, value: String| words.extend([format!("--{key}"), value]);
        option("ranks", size.ranks_per_node.to_string());
        if size.nodes > 1 {
            option("nodes", size.nodes.to_string());
            // Kubernetes puts the pod's number there.
            option("node-rank", "$(JOB_COMPLETION_INDEX)".to_owned());
            option("master", format!("{name}-0.{name}:{PORT}"));
            option("join-timeout", JOIN_S.to_string());
            option("exit-if-lost", AGAIN.to_string());
        }
        option("exit-if-killed", AGAIN.to_string());
        let file = format!("{PLAN_DIR}/plan.toml");
        words.extend(["--", "run", &file, "--only", of.stage].map(str::to_owned));
        words.extend(["--run-dir".to_owned(), literal(root)]);
        words.extend(self.options.iter().cloned());
        words
    }

    /// The job that releases the others: it asks for next to nothing.
    pub fn conductor(&self) -> Value {
        let job = &self.table.conductor;
        let name = self.conductor_name();
        let mut metadata = self.metadata(&name);
        if let Some(queue) = &job.queue {
            metadata["labels"][QUEUE_NAME] = queue.clone().into();
        }
        let mut pod = self.pod(job);
        let account = self.table.service_account.as_ref();
        pod["serviceAccountName"] = account.unwrap_or(&name).clone().into();
        pod["containers"] = json!([{
            "name": "conductor",
            "image": job.image,
            "command": ["rlhf"],
            "args": ["conduct", self.run, "--namespace", self.table.namespace],
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
        }]);
        let mut spec = json!({
            "backoffLimit": 6,
            "template": {"metadata": {"labels": self.metadata("")["labels"]}, "spec": pod},
        });
        if job.queue.is_some() {
            spec["suspend"] = true.into();
        }
        begins_again(&mut spec, "conductor");
        json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec})
    }

    /// What pods of all kinds have in common.
    fn pod(&self, job: &KubernetesJob) -> Value {
        let mut pod = json!({"restartPolicy": "Never"});
        if let Some(account) = &self.table.service_account {
            pod["serviceAccountName"] = account.clone().into();
        }
        if let Some(secret) = &job.image_pull_secret {
            pod["imagePullSecrets"] = json!([{"name": secret}]);
        }
        if let Some(class) = &job.priority_class {
            pod["priorityClassName"] = class.clone().into();
        }
        if !job.node_selector.is_empty() {
            pod["nodeSelector"] = json!(job.node_selector);
        }
        if !job.tolerations.is_empty() {
            let taints = job.tolerations.iter();
            let taints: Vec<Value> = taints
                .map(|key| json!({"key": key, "operator": "Exists"}))
                .collect();
            pod["tolerations"] = taints.into();
        }
        pod
    }
}

/// What is lost for no fault of its own begins again, what fails by itself does not.
fn begins_again(spec: &mut Value, container: &str) {
    let code = |action: &str, codes: &[u8]| {
        let codes = json!({"containerName": container, "operator": "In", "values": codes});
        json!({"action": action, "onExitCodes": codes})
    };
    let disrupted = json!({"type": "DisruptionTarget", "status": "True"});
    spec["podFailurePolicy"] = json!({"rules": [
        {"action": "Ignore", "onPodConditions": [disrupted]},
        code("Ignore", &[INTERRUPTED]),
        code("FailJob", &[1, 2]),
    ]});
    // Two pods of one number would be in each other's way.
    spec["podReplacementPolicy"] = "Failed".into();
}

fn resources(job: &KubernetesJob) -> Map<String, Value> {
    let mut resources = Map::new();
    let gpus = (job.size.gpus_per_node > 0).then(|| job.size.gpus_per_node.to_string());
    let cpus = job.cpus_per_node.map(|cpus| cpus.to_string());
    let all = [
        ("cpu", cpus),
        ("memory", job.memory.clone()),
        ("nvidia.com/gpu", gpus),
    ];
    for (name, value) in all {
        if let Some(value) = value {
            resources.insert(name.to_owned(), value.into());
        }
    }
    resources
}

fn volumes(job: &KubernetesJob, plan: &str) -> Value {
    let mut volumes = vec![json!({"name": "plan", "configMap": {"name": plan}})];
    // Processes of a pod exchange through it far more than the usual 64 MiB.
    let shm = match &job.shm {
        Some(size) => json!({"medium": "Memory", "sizeLimit": size}),
        None => json!({"medium": "Memory"}),
    };
    volumes.push(json!({"name": "shm", "emptyDir": shm}));
    for (place, claim) in job.volumes.keys().enumerate() {
        let claim = json!({"claimName": claim});
        volumes.push(json!({"name": format!("claim-{place}"), "persistentVolumeClaim": claim}));
    }
    volumes.into()
}

fn mounts(job: &KubernetesJob) -> Value {
    let mut mounts = vec![
        json!({"name": "plan", "mountPath": PLAN_DIR, "readOnly": true}),
        json!({"name": "shm", "mountPath": "/dev/shm"}),
    ];
    for (place, mount) in job.volumes.values().enumerate() {
        mounts.push(json!({"name": format!("claim-{place}"), "mountPath": mount}));
    }
    mounts.into()
}
