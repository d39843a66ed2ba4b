//! How stages become jobs of a cluster: `[cluster.slurm]` and `[cluster.kubernetes]`, and a stage's own `[cluster.slurm.stages.NAME]`
//! above it.
//!
//! None of it is in a stage's hash. A stage that prepares data has no use for the sizes of those that train: it takes
//! one node and no GPU, unless its own table says more.

mod kubernetes;
mod slurm;

use std::collections::BTreeMap;

use crate::error::Problem;
use crate::job_plan::{ClusterPlan, JobSize};
use crate::nearest;
use crate::reader::{Outcome, Reader, location};
use crate::schema::{self, KeyCheck};
use crate::tree::{Entry, Node, Value};

/// Kinds of tables in the schema.
const SLURM: &str = "slurm";
const KUBERNETES: &str = "kubernetes";

/// Keys that are the same for all stages.
const OF_ALL: &[&str] = &["namespace", "service_account"];

/// Keys that say how large a job is.
const SIZES: &[&str] = &[
    "nodes",
    "gpus_per_node",
    "ranks_per_node",
    "cpus_per_node",
    "memory",
    "shm",
    "exclusive",
];

/// A stage: its name, and whether it prepares data.
pub(crate) type Stage<'a> = (&'a str, bool);

/// Starts that come no further, where nothing else is said.
const RESTARTS: usize = 3;

/// Reads `[cluster]`.
pub(crate) fn cluster(
    entry: &Entry,
    file: &str,
    stages: &[Stage<'_>],
) -> Result<ClusterPlan, Vec<Problem>> {
    let mut problems = Vec::new();
    let known: Vec<&'static str> = schema::keys("cluster");
    check(entry, ("cluster", &known), file, &mut problems);
    if !problems.is_empty() {
        return Err(problems);
    }
    let mut plan = ClusterPlan::default();
    if let Some(table) = entry.node.get(SLURM) {
        let site = Site::read((table, SLURM), file, stages)?;
        plan.slurm = Some(site.jobs(stages, slurm::job)?);
    }
    if let Some(table) = entry.node.get(KUBERNETES) {
        let site = Site::read((table, KUBERNETES), file, stages)?;
        plan.kubernetes = Some(kubernetes::plan(&site, stages)?);
    }
    Ok(plan)
}

/// A cluster's table, whose keys are known.
struct Site<'a> {
    general: Reader<'a>,
    own: BTreeMap<&'a str, Reader<'a>>,
}

impl<'a> Site<'a> {
    fn read(
        (table, kind): (&'a Entry, &'static str),
        file: &'a str,
        stages: &[Stage<'_>],
    ) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let path = format!("cluster.{kind}");
        let mut keys = schema::keys(kind);
        let of_stages: Vec<&'static str> = keys
            .iter()
            .copied()
            .filter(|key| !OF_ALL.contains(key))
            .collect();
        keys.push("stages");
        check(table, (&path, &keys), file, &mut problems);
        let names: Vec<&str> = stages.iter().map(|(name, _)| *name).collect();
        let mut own = BTreeMap::new();
        for stage in table.node.at("stages").map_or(&[][..], Node::entries) {
            let path = format!("{path}.stages.{}", stage.key);
            if !names.contains(&stage.key.as_str()) {
                problems.push(Problem {
                    location: location(file, &stage.key_origin),
                    key: path,
                    message: "there is no such stage".to_owned(),
                    hint: nearest::hint(&stage.key, &names, "stages"),
                });
                continue;
            }
            check(stage, (&path, &of_stages), file, &mut problems);
            own.insert(stage.key.as_str(), reader(stage, (path, kind), file));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let general = reader(table, (path, kind), file);
        Ok(Self { general, own })
    }

    /// The job of each stage.
    fn jobs<T>(
        &self,
        stages: &[Stage<'_>],
        job: fn(&Tables<'_>) -> Outcome<T>,
    ) -> Result<BTreeMap<String, T>, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut jobs = BTreeMap::new();
        for (name, prepares_data) in stages {
            let tables = Tables {
                general: &self.general,
                own: self.own.get(name),
                prepares_data: *prepares_data,
            };
            match job(&tables) {
                Ok(job) => drop(jobs.insert((*name).to_owned(), job)),
                Err(problem) if problems.contains(&problem) => {}
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() {
            Ok(jobs)
        } else {
            Err(problems)
        }
    }
}

fn check(
    entry: &Entry,
    (path, known): (&str, &[&'static str]),
    file: &str,
    problems: &mut Vec<Problem>,
) {
    let mut check = KeyCheck {
        file,
        known,
        problems,
    };
    check.check_whole(entry, path);
}

fn reader<'a>(entry: &'a Entry, (path, kind): (String, &'static str), file: &'a str) -> Reader<'a> {
    Reader {
        file,
        table: &entry.node,
        path,
        prefix: "",
        kind,
        preset: &[],
        origin: entry.key_origin.clone(),
    }
}

/// Where a stage's job is described.
struct Tables<'a> {
    general: &'a Reader<'a>,
    own: Option<&'a Reader<'a>>,
    prepares_data: bool,
}

impl Tables<'_> {
    /// The table that speaks of a key, if one does.
    fn of(&self, key: &str) -> Option<&Reader<'_>> {
        let own = self.own.filter(|own| own.written(key).is_some());
        let general = (!self.prepares_data || !SIZES.contains(&key)).then_some(self.general);
        own.or(general.filter(|general| general.written(key).is_some()))
    }

    fn text(&self, key: &str) -> Outcome<Option<String>> {
        let found = self.of(key).map(|reader| reader.text_opt(key));
        Ok(found.transpose()?.flatten())
    }

    fn count(&self, key: &str, least: u64) -> Outcome<Option<usize>> {
        let found = self.of(key).map(|reader| reader.count_opt(key, least));
        Ok(found.transpose()?.flatten())
    }

    fn texts(&self, key: &str) -> Outcome<Vec<String>> {
        let Some(reader) = self.of(key) else {
            return Ok(Vec::new());
        };
        let text = |node: &Node| match &node.value {
            Value::Text(text) if !text.contains('\n') => Some(text.clone()),
            _ => None,
        };
        let found = match reader.written(key).map(|node| &node.value) {
            Some(Value::List(items)) => items.iter().map(text).collect(),
            _ => None,
        };
        found.ok_or_else(|| {
            let hint = format!("write {key} = [\"...\"]");
            reader.problem(key, "must be a list of texts of one line", hint)
        })
    }

    /// How large the job is.
    fn size(&self) -> Outcome<JobSize> {
        let gpus_per_node = self.count("gpus_per_node", 0)?.unwrap_or(0);
        let size = JobSize {
            nodes: self.count("nodes", 1)?.unwrap_or(1),
            ranks_per_node: self
                .count("ranks_per_node", 1)?
                .unwrap_or(gpus_per_node.max(1)),
            gpus_per_node,
        };
        if self.prepares_data && size.ranks() > 1 {
            let key = if size.nodes > 1 {
                "nodes"
            } else {
                "ranks_per_node"
            };
            let reader = self.of(key).unwrap_or(self.general);
            let message = format!("data is prepared by one process, not by {}", size.ranks());
            return Err(reader.problem(key, message, "leave it out"));
        }
        Ok(size)
    }

    /// A table of texts by name; a stage's own stand beside the general ones.
    fn named(&self, key: &str, example: &str) -> Outcome<Vec<(String, String, &Reader<'_>)>> {
        let mut all = Vec::new();
        for reader in [Some(self.general), self.own].into_iter().flatten() {
            let Some(node) = reader.written(key) else {
                continue;
            };
            let wrong =
                |message: String| reader.problem(key, message, format!("write {key} = {example}"));
            let Value::Table(entries) = &node.value else {
                return Err(wrong(format!(
                    "must be a table, is {}",
                    node.value.written()
                )));
            };
            for Entry {
                key: name, node, ..
            } in entries
            {
                let value = match &node.value {
                    Value::Text(text) => text.clone(),
                    Value::Integer(number) => number.to_string(),
                    other => {
                        return Err(wrong(format!(
                            "{name} must be a text, is {}",
                            other.written()
                        )));
                    }
                };
                all.push((name.clone(), value, reader));
            }
        }
        Ok(all)
    }
}

fn is_variable(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    !name.is_empty()
        && name.bytes().all(plain)
        && !name.starts_with(|first: char| first.is_ascii_digit())
}

/// Variables for the program.
fn environment(tables: &Tables<'_>) -> Outcome<BTreeMap<String, String>> {
    let example = "{ NAME = \"VALUE\" }";
    let mut variables = BTreeMap::new();
    for (name, value, reader) in tables.named("environment", example)? {
        if !is_variable(&name) {
            let message = format!("{name:?} is no name of a variable");
            return Err(reader.problem(
                "environment",
                message,
                format!("write environment = {example}"),
            ));
        }
        variables.insert(name, value);
    }
    Ok(variables)
}
