//! The part of a plan that says how stages become jobs of a cluster.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What clusters are told.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterPlan {
    /// `[cluster.slurm]`: the job of each stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slurm: Option<BTreeMap<String, SlurmJob>>,
    /// `[cluster.kubernetes]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<KubernetesPlan>,
}

/// How large a job is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSize {
    /// Machines.
    pub nodes: usize,
    /// Processes on each.
    pub ranks_per_node: usize,
    /// GPUs on each.
    pub gpus_per_node: usize,
}

impl JobSize {
    /// Processes on all machines.
    pub fn ranks(&self) -> usize {
        self.nodes * self.ranks_per_node
    }
}

/// Inside of what a job's program runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The image, in the runtime's words.
    pub image: String,
    /// What starts it.
    pub runtime: ContainerRuntime,
    /// Folders of the cluster that it sees, beside the run folder.
    pub mounts: Vec<String>,
}

/// Programs that start containers within jobs of Slurm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContainerRuntime {
    /// The plugin that gives `srun` the option `--container-image`.
    Pyxis,
    /// Apptainer or Singularity.
    Apptainer,
}

/// One stage's job on Slurm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SlurmJob {
    /// How large it is.
    pub size: JobSize,
    /// Partition, account, quality of service, constraint on nodes, memory on each node: in Slurm's words.
    pub partition: Option<String>,
    /// Who pays.
    pub account: Option<String>,
    /// Quality of service.
    pub qos: Option<String>,
    /// Which nodes.
    pub constraint: Option<String>,
    /// Processors on each node; `None`: what Slurm gives.
    pub cpus_per_node: Option<usize>,
    /// Memory on each node, as `64G`; `None`: what Slurm gives.
    pub memory: Option<String>,
    /// Whole nodes.
    pub exclusive: bool,
    /// The time limit, as `1-12:00:00`; `None`: the partition's.
    pub time: Option<String>,
    /// Seconds before the limit at which the stage saves a snapshot and is put into the queue again.
    pub signal_before: usize,
    /// How often a stage that was killed, or stopped by its limit, is begun again without having got further.
    pub restarts: usize,
    /// Further options of `sbatch`, as they are.
    pub options: Vec<String>,
    /// Lines of shell before the program.
    pub setup: Vec<String>,
    /// Variables for the program.
    pub environment: BTreeMap<String, String>,
    /// `rlhf` on the nodes; `None`: the one that submits.
    pub program: Option<String>,
    /// Inside of what it runs.
    pub container: Option<Container>,
}

/// Stages on Kubernetes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KubernetesPlan {
    /// The namespace of all objects.
    pub namespace: String,
    /// The account of all pods; `None`: one that is made.
    pub service_account: Option<String>,
    /// The job of each stage.
    pub jobs: BTreeMap<String, KubernetesJob>,
    /// The job that releases the others.
    pub conductor: KubernetesJob,
}

/// One stage's job on Kubernetes: a pod on each node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KubernetesJob {
    /// How large it is.
    pub size: JobSize,
    /// What pods run.
    pub image: String,
    /// Processors of each pod.
    pub cpus_per_node: Option<usize>,
    /// Memory of each pod, as `500Gi`.
    pub memory: Option<String>,
    /// The bound of shared memory among the processes of a pod, as `16Gi`; `None`: that of the pod.
    pub shm: Option<String>,
    /// The local queue of Kueue.
    pub queue: Option<String>,
    /// Claims of volumes, and where they are mounted.
    pub volumes: BTreeMap<String, String>,
    /// Variables for the program.
    pub environment: BTreeMap<String, String>,
    /// Labels of nodes that will do.
    pub node_selector: BTreeMap<String, String>,
    /// Keys of taints that are no obstacle.
    pub tolerations: Vec<String>,
    /// The secret with which the image is fetched.
    pub image_pull_secret: Option<String>,
    /// How urgent it is.
    pub priority_class: Option<String>,
    /// Seconds that a pod has to save a snapshot when it is told to end.
    pub grace: usize,
    /// How often a job may fall apart and begin again.
    pub restarts: usize,
}
