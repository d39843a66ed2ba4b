//! From a file to a plan: parse, override, check the keys, order the stages, read each.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::error::{ConfigError, Problem};
use crate::hub::FindHub;
use crate::nearest;
use crate::order::{self, Written};
use crate::plan::{ClusterPlan, Plan, StagePlan, Task};
use crate::presets::{self, Constant};
use crate::reader::{Outcome, Reader, location};
use crate::references::Resolver;
use crate::schema::{self, KINDS, KeyCheck};
use crate::tree::{self, Entry, Node, Origin, Value};
use crate::{data_stages, jobs, objective, ppo, training};

/// Reads a `pipeline.toml`, applies overrides (`("stages.sft.batch", "16")`: the text is TOML, or a
/// string where it is none), and resolves every number.
///
/// Nothing is started or written. Paths are looked at: what a stage needs and no stage makes must
/// be there. `hub` is asked for the models that are named `hub:ORG/NAME`.
///
/// # Errors
/// [`ConfigError`]: unreadable, not TOML, or every mistake found, each with its place and a hint.
pub fn load(
    path: &Path,
    overrides: &[(String, String)],
    hub: &FindHub<'_>,
) -> Result<Plan, ConfigError> {
    let read = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let text = std::fs::read_to_string(path).map_err(read)?;
    let absolute = std::path::absolute(path).map_err(read)?;
    let mut root = tree::parse(&text, path)?;
    for (key, value) in overrides {
        tree::set(&mut root, key, value)?;
    }
    let file = path.display().to_string();
    let invalid = |problems| ConfigError::Invalid { problems };
    let config = Config::check(&root, &file).map_err(invalid)?;
    config.resolve(absolute, hub).map_err(invalid)
}

/// A configuration whose keys are all known.
struct Config<'a> {
    file: &'a str,
    root: &'a Node,
    tokenizer: Option<&'a Entry>,
    stages: Vec<(&'a Entry, String, &'static str)>,
}

impl<'a> Config<'a> {
    fn check(root: &'a Node, file: &'a str) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut top = schema::keys("");
        top.extend(["tokenizer", "stages", "cluster"]);
        KeyCheck {
            file,
            known: &top,
            problems: &mut problems,
        }
        .check(root, "", "");
        let tokenizer = root.get("tokenizer");
        if let Some(entry) = tokenizer {
            let keys = schema::keys("tokenizer");
            KeyCheck {
                file,
                known: &keys,
                problems: &mut problems,
            }
            .check_whole(entry, "tokenizer");
        }
        let mut stages = Vec::new();
        let entries = root.at("stages").map_or(&[][..], Node::entries);
        if entries.is_empty() {
            problems.push(Problem {
                location: file.to_owned(),
                key: "stages".to_owned(),
                message: "there are no stages".to_owned(),
                hint: "add a table [stages.NAME] with a kind".to_owned(),
            });
        }
        for entry in entries {
            let path = format!("stages.{}", entry.key);
            match stage_kind(entry, &path, file) {
                Ok(kind) => {
                    KeyCheck {
                        file,
                        known: &schema::keys(kind),
                        problems: &mut problems,
                    }
                    .check_whole(entry, &path);
                    stages.push((entry, path, kind));
                }
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() {
            Ok(Self {
                file,
                root,
                tokenizer,
                stages,
            })
        } else {
            Err(problems)
        }
    }

    fn reader(
        &self,
        node: &'a Node,
        (path, kind): (&str, &'static str),
        origin: &Origin,
        preset: &'static [Constant],
    ) -> Reader<'a> {
        Reader {
            file: self.file,
            table: node,
            path: path.to_owned(),
            prefix: "",
            kind,
            preset,
            origin: origin.clone(),
        }
    }

    fn resolve(&self, source: PathBuf, hub: &FindHub<'_>) -> Result<Plan, Vec<Problem>> {
        let one = |problem| vec![problem];
        let top = self.reader(self.root, ("", ""), &self.root.origin, &[]);
        let name = name(&top).map_err(one)?;
        let seed = top.count_opt("seed", 0).map_err(one)?.unwrap_or(1) as u64;
        let preset = top.text_opt("preset").map_err(one)?;
        let constants = preset_constants(&top, preset.as_deref()).map_err(one)?;
        let dir = source.parent().map(Path::to_owned).unwrap_or_default();
        let names = self
            .stages
            .iter()
            .map(|(entry, _, kind)| (entry.key.clone(), *kind))
            .collect();
        let mut resolver = Resolver {
            pipeline: name.clone(),
            hub,
            dir,
            preset: constants,
            names,
            special_tokens: objective::special_tokens(&self.written()),
            tokenizer: None,
            done: Vec::new(),
        };
        self.resolve_stages(&mut resolver)?;
        let cluster = self.cluster(&resolver.done)?;
        Ok(Plan {
            format_version: Plan::FORMAT_VERSION,
            name,
            seed,
            preset,
            source,
            stages: resolver.done,
            cluster,
        })
    }

    fn cluster(&self, stages: &[StagePlan]) -> Result<Option<ClusterPlan>, Vec<Problem>> {
        let Some(entry) = self.root.get("cluster") else {
            return Ok(None);
        };
        let prepares = |task: &Task| matches!(task, Task::Import(_) | Task::Tokenizer(_));
        let stages: Vec<(&str, bool)> = stages
            .iter()
            .map(|stage| (stage.name.as_str(), prepares(&stage.task)))
            .collect();
        jobs::cluster(entry, self.file, &stages).map(Some)
    }

    /// Reads every stage after those it refers to; one that refers to a faulty one is passed over,
    /// since its faults would only repeat that one's.
    fn resolve_stages(&self, resolver: &mut Resolver<'_>) -> Result<(), Vec<Problem>> {
        let written = self.written();
        let names: Vec<&str> = written.iter().map(|stage| stage.name).collect();
        let trains = match written.iter().find(|stage| stage.kind == "tokenizer") {
            Some(stage) => {
                let reader = self.reader(stage.node, (stage.path, stage.kind), stage.origin, &[]);
                data_stages::trains(&reader).map_err(|problem| vec![problem])?
            }
            None => false,
        };
        let has_tokenizer = names.contains(&Plan::TOKENIZER);
        let edges = order::edges(&written, has_tokenizer);
        let order = order::order(&names, &edges, self.file)?;
        if has_tokenizer && !trains && !written.iter().any(|stage| stage.kind == "pretrain") {
            let reader = self.reader(self.root, ("", "tokenizer"), &self.root.origin, &[]);
            let hint = "remove it: models bring their own tokenizers";
            let message = "no stage of kind \"pretrain\" reads this table";
            return Err(vec![reader.problem("tokenizer", message, hint)]);
        }
        let mut problems = Vec::new();
        let mut faulty = BTreeSet::new();
        for name in &order {
            let Some(stage) = written.iter().find(|stage| stage.name == name) else {
                unreachable!("the order is one of the written stages");
            };
            if edges[name].iter().any(|edge| faulty.contains(&edge.target)) {
                faulty.insert(name.clone());
                continue;
            }
            let reader = self.reader(
                stage.node,
                (stage.path, stage.kind),
                stage.origin,
                resolver.preset,
            );
            if let Err(problem) = resolve_stage(&reader, stage.name, resolver) {
                problems.push(problem);
                faulty.insert(name.clone());
            }
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems)
        }
    }

    /// The stages and the tokenizer, in the order of the file.
    fn written(&self) -> Vec<Written<'_>> {
        let tokenizer = self.tokenizer.map(|entry| Written {
            name: Plan::TOKENIZER,
            path: "tokenizer",
            kind: "tokenizer",
            node: &entry.node,
            origin: &entry.key_origin,
        });
        let stages = self.stages.iter().map(|(entry, path, kind)| Written {
            name: &entry.key,
            path,
            kind,
            node: &entry.node,
            origin: &entry.key_origin,
        });
        tokenizer.into_iter().chain(stages).collect()
    }
}

fn resolve_stage(reader: &Reader<'_>, name: &str, resolver: &mut Resolver<'_>) -> Outcome<()> {
    let (task, execution) = match reader.kind {
        "tokenizer" => {
            let (chosen, plan) = data_stages::tokenizer(reader, resolver)?;
            resolver.tokenizer = Some(chosen);
            let Some(plan) = plan else {
                return Ok(());
            };
            (Task::Tokenizer(plan), data_stages::NO_EXECUTION)
        }
        "import" => (
            Task::Import(data_stages::import(reader, resolver)?),
            data_stages::NO_EXECUTION,
        ),
        "label" => {
            let plan = data_stages::label(reader, resolver)?;
            (Task::Label(plan), data_stages::label_execution(reader)?)
        }
        "pretrain" => {
            let plan = training::pretrain(reader, resolver)?;
            let execution = training::execution(reader, "batch", plan.train.batch)?;
            (Task::Pretrain(plan), execution)
        }
        "sft" => {
            let plan = training::sft(reader, resolver)?;
            let execution = training::execution(reader, "batch", plan.train.batch)?;
            (Task::Sft(plan), execution)
        }
        "reward" => {
            let plan = training::reward(reader, resolver)?;
            let execution = training::execution(reader, "batch", plan.train.batch)?;
            (Task::Reward(plan), execution)
        }
        "ppo" => {
            let (plan, execution) = ppo::ppo(reader, resolver)?;
            (Task::Ppo(Box::new(plan)), execution)
        }
        other => unreachable!("{other:?} is none of the kinds"),
    };
    resolver.done.push(StagePlan {
        name: name.to_owned(),
        task,
        execution,
    });
    Ok(())
}

/// What lies in a run folder beside stages.
const TAKEN: &[&str] = &["tokenizer", "logs", "lock", "cluster"];

/// The kind of a stage, and the check of its name.
fn stage_kind(entry: &Entry, path: &str, file: &str) -> Result<&'static str, Problem> {
    let problem = |origin: &Origin, key: &str, message: String, hint: String| Problem {
        location: location(file, origin),
        key: key.to_owned(),
        message,
        hint,
    };
    if !is_plain_name(&entry.key) || TAKEN.contains(&entry.key.as_str()) {
        let message = format!("{:?} cannot be a stage's name", entry.key);
        let hint = format!(
            "use letters, digits, - and _; {} are taken",
            TAKEN.join(", ")
        );
        return Err(problem(&entry.key_origin, path, message, hint));
    }
    let key = format!("{path}.kind");
    let Some(kind) = entry.node.get("kind") else {
        let hint = format!("write kind = one of {}", KINDS.join(", "));
        return Err(problem(
            &entry.key_origin,
            &key,
            "missing key".to_owned(),
            hint,
        ));
    };
    let text = match &kind.node.value {
        Value::Text(text) => text.as_str(),
        _ => "",
    };
    KINDS
        .iter()
        .find(|known| **known == text)
        .copied()
        .ok_or_else(|| {
            let message = format!("must be a kind of stage, is {}", kind.node.value.written());
            problem(
                &kind.node.origin,
                &key,
                message,
                nearest::hint(text, KINDS, "kinds"),
            )
        })
}

fn name(top: &Reader<'_>) -> Outcome<String> {
    let Some(name) = top.text_opt("name")? else {
        return Err(top.missing(
            "name",
            "write name = \"...\"; the run folder is called after it",
        ));
    };
    if is_plain_name(&name) {
        return Ok(name);
    }
    let hint = "use letters, digits, - and _: it names the run folder";
    Err(top.problem("name", format!("{name:?} cannot be a folder's name"), hint))
}

fn is_plain_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    !name.is_empty() && !name.starts_with('-') && name.chars().all(plain)
}

fn preset_constants(top: &Reader<'_>, preset: Option<&str>) -> Outcome<&'static [Constant]> {
    let Some(preset) = preset else {
        return Ok(&[]);
    };
    presets::constants(preset).ok_or_else(|| {
        let hint = nearest::hint(preset, presets::NAMES, "presets");
        top.problem(
            "preset",
            format!("there is no preset called {preset:?}"),
            hint,
        )
    })
}
