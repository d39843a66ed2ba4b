//! `[cluster.slurm]` and `[cluster.kubernetes]`: what a stage's job is, and what is refused.

use super::{BASE, Project};
use crate::plan::{JobSize, KubernetesPlan, SlurmJob};
use crate::schema;

fn job(project: &Project, stage: &str, overrides: &[(&str, &str)]) -> SlurmJob {
    let plan = project
        .load(overrides)
        .unwrap_or_else(|error| panic!("{overrides:?}: {error}"));
    let jobs = plan.cluster.and_then(|cluster| cluster.slurm);
    jobs.expect("a cluster")[stage].clone()
}

/// Each key with a value other than what holds without it.
const VALUES: &[(&str, &str)] = &[
    ("partition", "gpu"),
    ("account", "lab"),
    ("qos", "high"),
    ("constraint", "h100"),
    ("nodes", "2"),
    ("gpus_per_node", "8"),
    ("ranks_per_node", "4"),
    ("cpus_per_node", "32"),
    ("memory", "64G"),
    ("exclusive", "true"),
    ("time", "1-00:00:00"),
    ("signal_before", "60"),
    ("restarts", "0"),
    ("options", "[\"--mail-type=END\"]"),
    ("setup", "[\"module load cuda\"]"),
    ("environment", "{ NCCL_DEBUG = \"INFO\" }"),
    ("program", "/opt/rlhf/bin/rlhf"),
    ("container.image", "rlhf.sqsh"),
];

#[test]
fn every_key_changes_the_job_generally_and_of_one_stage() {
    let project = Project::new(&format!("{BASE}\n[cluster.slurm]\n"));
    let usual = job(&project, "ppo", &[]);
    for key in schema::keys("slurm") {
        if ["container.runtime", "container.mounts"].contains(&key) {
            continue;
        }
        let row = VALUES.iter().find(|(known, _)| *known == key);
        let (_, value) = row.unwrap_or_else(|| panic!("no value for {key}"));
        let general = format!("cluster.slurm.{key}");
        assert_ne!(job(&project, "ppo", &[(&general, value)]), usual, "{key}");
        let own = format!("cluster.slurm.stages.ppo.{key}");
        assert_ne!(job(&project, "ppo", &[(&own, value)]), usual, "{key}");
        assert_eq!(job(&project, "sft", &[(&own, value)]), usual, "{key}");
    }
    let image = ("cluster.slurm.container.image", "rlhf.sif");
    let with = job(&project, "sft", &[image]);
    let others = [
        ("cluster.slurm.container.runtime", "apptainer"),
        ("cluster.slurm.container.mounts", "[\"/scratch\"]"),
    ];
    for other in others {
        assert_ne!(job(&project, "sft", &[image, other]), with, "{other:?}");
    }
}

#[test]
fn data_is_prepared_on_one_node_without_gpus_where_all_else_holds() {
    let text = "\n[cluster.slurm]\nnodes = 2\ngpus_per_node = 8\npartition = \"gpu\"\nenvironment = { A = \"1\", B = 2 }\n\
                [cluster.slurm.stages.ppo]\nranks_per_node = 4\n\
                [cluster.slurm.stages.corpus]\npartition = \"cpu\"\nmemory = \"9G\"\nenvironment = { B = \"3\" }\n";
    let project = Project::new(&format!("{BASE}{text}"));
    let corpus = job(&project, "corpus", &[]);
    let size = |nodes, ranks_per_node, gpus_per_node| JobSize {
        nodes,
        ranks_per_node,
        gpus_per_node,
    };
    assert_eq!(corpus.size, size(1, 1, 0));
    assert_eq!(corpus.partition.as_deref(), Some("cpu"));
    assert_eq!(corpus.memory.as_deref(), Some("9G"));
    let variables: Vec<String> = corpus
        .environment
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    assert_eq!(variables, ["A=1", "B=3"]);
    assert_eq!(job(&project, "sft", &[]).size, size(2, 8, 8));
    assert_eq!(job(&project, "ppo", &[]).size, size(2, 4, 8));
}

#[test]
fn what_is_wrong_is_said_once_with_its_place() {
    let project = Project::new(&format!("{BASE}\n[cluster.slurm]\n"));
    let cases = [
        (
            ("cluster.slurm.partitoin", "gpu"),
            "cluster.slurm.partitoin: unknown key\n  hint: did you mean `partition`?",
        ),
        (
            ("cluster.slrum", "1"),
            "cluster.slrum: unknown key\n  hint: did you mean `slurm`?",
        ),
        (
            ("cluster.slurm.stages.pp", "{ nodes = 2 }"),
            "cluster.slurm.stages.pp: there is no such stage\n  hint: did you mean `ppo`?",
        ),
        (
            ("cluster.slurm.stages.ppo.node", "2"),
            "cluster.slurm.stages.ppo.node: unknown key\n  hint: did you mean `nodes`?",
        ),
        (
            ("cluster.slurm.nodes", "0"),
            "cluster.slurm.nodes: must be a whole number of at least 1, is 0",
        ),
        (
            ("cluster.slurm.time", "one day"),
            "cluster.slurm.time: \"one day\" is no time of Slurm",
        ),
        (
            ("cluster.slurm.time", "\"5\""),
            "cluster.slurm.time: 300 s, and a snapshot is saved 300 s before (signal_before)",
        ),
        (
            ("cluster.slurm.environment", "{ \"A B\" = \"1\" }"),
            "cluster.slurm.environment: \"A B\" is no name of a variable",
        ),
        (
            ("cluster.slurm.container.mounts", "[\"/a\"]"),
            "cluster.slurm.container.mounts: there is no image",
        ),
        (
            ("cluster.slurm.stages.corpus.nodes", "2"),
            "cluster.slurm.stages.corpus.nodes: data is prepared by one process, not by 2",
        ),
        (
            ("cluster.slurm", "2"),
            "cluster.slurm: must be a table, is 2",
        ),
    ];
    for ((key, value), expected) in cases {
        let refusal = project.refusal(&[(key, value)]);
        let message = refusal.split_once(": ").map_or("", |(_, message)| message);
        assert!(message.starts_with(expected), "{refusal}");
        assert_eq!(refusal.matches("hint: ").count(), 1, "{refusal}");
    }
}

#[test]
fn an_option_that_a_key_says_is_refused_with_the_key() {
    let project = Project::new(&format!("{BASE}\n[cluster.slurm]\n"));
    let cases = [
        ("--output=x", "leave it out: logs lie in the run folder"),
        ("-N2", "leave it out: say nodes"),
        ("--nodes 2", "leave it out: say nodes"),
        ("--ntasks-per-node=4", "leave it out: say ranks_per_node"),
        ("--gpus-per-task=1", "leave it out: say gpus_per_node"),
        ("--gres=gpu:1", "leave it out: say gpus_per_node"),
        ("-t 60", "leave it out: say time"),
        ("--no-requeue", "leave it out: say restarts"),
        ("-D /", "leave it out: the run folder is --run-dir"),
        ("-C h100", "write --NAME=VALUE"),
        ("é", "write --NAME=VALUE"),
    ];
    for (option, hint) in cases {
        let options = format!("[\"--mail-type=END\", \"{option}\"]");
        let refusal = project.refusal(&[("cluster.slurm.options", &options)]);
        let expected = format!(
            "cluster.slurm.options: \"{option}\" cannot be given to sbatch here\n  hint: {hint}"
        );
        assert!(refusal.contains(&expected), "{refusal}");
    }
    let admitted = ["--mail-type=END", "--nodelist=a1", "--time-min=30"];
    let options = format!("{admitted:?}");
    let job = job(&project, "ppo", &[("cluster.slurm.options", &options)]);
    assert_eq!(job.options, admitted);
}

/// The same for Kubernetes.
const OF_KUBERNETES: &[(&str, &str)] = &[
    ("namespace", "team"),
    ("service_account", "trainer"),
    ("image", "other"),
    ("nodes", "2"),
    ("gpus_per_node", "8"),
    ("ranks_per_node", "4"),
    ("cpus_per_node", "32"),
    ("memory", "64Gi"),
    ("shm", "16Gi"),
    ("queue", "fast"),
    ("volumes", "{ runs = \"/shared\" }"),
    ("environment", "{ NCCL_DEBUG = \"INFO\" }"),
    ("node_selector", "{ zone = \"a\" }"),
    ("tolerations", "[\"nvidia.com/gpu\"]"),
    ("image_pull_secret", "registry"),
    ("priority_class", "high"),
    ("grace", "60"),
    ("restarts", "0"),
];

const KUBERNETES: &str = "\n[cluster.kubernetes]\nimage = \"rlhf\"\n";

fn on_kubernetes(project: &Project, overrides: &[(&str, &str)]) -> KubernetesPlan {
    let plan = project
        .load(overrides)
        .unwrap_or_else(|error| panic!("{overrides:?}: {error}"));
    let plan = plan.cluster.and_then(|cluster| cluster.kubernetes);
    plan.expect("a cluster")
}

#[test]
fn every_key_of_kubernetes_changes_jobs_generally_and_of_one_stage() {
    let project = Project::new(&format!("{BASE}{KUBERNETES}"));
    let usual = on_kubernetes(&project, &[]);
    assert_eq!(usual.namespace, "default");
    for key in schema::keys("kubernetes") {
        let row = OF_KUBERNETES.iter().find(|(known, _)| *known == key);
        let (_, value) = row.unwrap_or_else(|| panic!("no value for {key}"));
        let general = format!("cluster.kubernetes.{key}");
        assert_ne!(
            on_kubernetes(&project, &[(&general, value)]),
            usual,
            "{key}"
        );
        let own = format!("cluster.kubernetes.stages.ppo.{key}");
        if ["namespace", "service_account"].contains(&key) {
            let refusal = project.refusal(&[(&own, value)]);
            assert!(
                refusal.contains(&format!("{own}: unknown key")),
                "{refusal}"
            );
            continue;
        }
        let found = on_kubernetes(&project, &[(&own, value)]);
        assert_ne!(found.jobs["ppo"], usual.jobs["ppo"], "{key}");
        assert_eq!(found.jobs["sft"], usual.jobs["sft"], "{key}");
        assert_eq!(found.conductor, usual.conductor, "{key}");
    }
    let found = on_kubernetes(&project, &[("cluster.kubernetes.gpus_per_node", "8")]);
    let sizes = ["ppo", "corpus"].map(|stage| found.jobs[stage].size.gpus_per_node);
    assert_eq!((sizes, found.conductor.size.gpus_per_node), ([8, 0], 0));
}

#[test]
fn what_kubernetes_would_not_take_is_refused() {
    let project = Project::new(&format!("{BASE}\n[cluster.kubernetes]\n"));
    let refusal = project.refusal(&[]);
    assert!(refusal.contains("cluster.kubernetes.image: "), "{refusal}");
    assert_eq!(refusal.matches("hint: ").count(), 1, "{refusal}");
    let project = Project::new(&format!("{BASE}{KUBERNETES}"));
    let cases = [
        (
            ("namespace", "My_Team"),
            "\"My_Team\" is no name of Kubernetes",
        ),
        (
            ("memory", "64 GB"),
            "\"64 GB\" is no quantity of Kubernetes",
        ),
        (
            ("volumes", "{ runs = \"shared\" }"),
            "\"shared\" is no absolute path of a folder",
        ),
        (
            ("volumes", "{ Runs = \"/shared\" }"),
            "\"Runs\" is no name of a claim",
        ),
        (("volumes", "\"/shared\""), "must be a table"),
        (
            ("node_selector", "{ \"a/b/c\" = \"x\" }"),
            "\"a/b/c\" = \"x\" is no label of a node",
        ),
        (
            ("tolerations", "[\"gpu=yes\"]"),
            "\"gpu=yes\" is no key of a taint",
        ),
        (("grace", "0"), "must be a whole number of at least 1, is 0"),
        (("queu", "x"), "unknown key\n  hint: did you mean `queue`?"),
    ];
    for ((key, value), expected) in cases {
        let key = format!("cluster.kubernetes.{key}");
        let refusal = project.refusal(&[(&key, value)]);
        assert!(refusal.contains(&format!("{key}: {expected}")), "{refusal}");
        assert_eq!(refusal.matches("hint: ").count(), 1, "{refusal}");
    }
}
