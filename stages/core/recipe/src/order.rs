//! The order of the stages: each after what it refers to.

use std::collections::BTreeMap;

use crate::error::Problem;
use crate::nearest;
use crate::plan::Plan;
use crate::reader::location;
use crate::schema;
use crate::tree::{Node, Origin, Value};

/// A stage, or the tokenizer, as written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Written<'a> {
    pub name: &'a str,
    pub path: &'a str,
    pub kind: &'static str,
    pub node: &'a Node,
    pub origin: &'a Origin,
}

/// A reference from one stage to another, and where it was said.
#[derive(Debug, Clone)]
pub(crate) struct Edge {
    pub key: String,
    pub origin: Origin,
    pub target: String,
}

/// The references of every stage, by the stage's name.
///
/// A pretraining stage also needs the tokenizer where that is trained (`trains_tokenizer`).
pub(crate) fn edges(stages: &[Written<'_>], trains_tokenizer: bool) -> BTreeMap<String, Vec<Edge>> {
    let mut all = BTreeMap::new();
    for stage in stages {
        let mut edges = Vec::new();
        collect(stage.node, stage.path, &mut edges);
        if stage.kind == "pretrain" && trains_tokenizer {
            edges.push(Edge {
                key: stage.path.to_owned(),
                origin: stage.origin.clone(),
                target: Plan::TOKENIZER.to_owned(),
            });
        }
        all.insert(stage.name.to_owned(), edges);
    }
    all
}

fn collect(node: &Node, path: &str, edges: &mut Vec<Edge>) {
    match &node.value {
        Value::Text(text) => {
            if let Some(target) = text.strip_prefix("stage:") {
                edges.push(Edge {
                    key: path.to_owned(),
                    origin: node.origin.clone(),
                    target: target.to_owned(),
                });
            }
        }
        Value::List(items) => {
            for (index, item) in items.iter().enumerate() {
                collect(item, &format!("{path}[{index}]"), edges);
            }
        }
        Value::Table(entries) => {
            for entry in entries {
                collect(&entry.node, &schema::join(path, &entry.key), edges);
            }
        }
        Value::Integer(_) | Value::Number(_) | Value::Flag(_) | Value::Date(_) => {}
    }
}

/// Names in an order in which each comes after what it refers to, and otherwise as in the file.
///
/// # Errors
/// References to nothing (all of them), to the stage itself, or in a circle.
pub(crate) fn order(
    names: &[&str],
    edges: &BTreeMap<String, Vec<Edge>>,
    file: &str,
) -> Result<Vec<String>, Vec<Problem>> {
    let dangling: Vec<Problem> = edges
        .values()
        .flatten()
        .filter(|edge| !names.contains(&edge.target.as_str()))
        .map(|edge| {
            let message = format!("there is no stage called {:?}", edge.target);
            problem(
                file,
                edge,
                message,
                nearest::hint(&edge.target, names, "stages"),
            )
        })
        .collect();
    if !dangling.is_empty() {
        return Err(dangling);
    }
    let mut walk = Walk {
        edges,
        file,
        finished: Vec::new(),
        open: Vec::new(),
    };
    for name in names {
        walk.visit(name).map_err(|problem| vec![problem])?;
    }
    Ok(walk.finished)
}

struct Walk<'a> {
    edges: &'a BTreeMap<String, Vec<Edge>>,
    file: &'a str,
    finished: Vec<String>,
    open: Vec<String>,
}

impl Walk<'_> {
    fn visit(&mut self, name: &str) -> Result<(), Problem> {
        if self.finished.iter().any(|done| done == name) {
            return Ok(());
        }
        self.open.push(name.to_owned());
        for edge in self.edges.get(name).map_or(&[][..], Vec::as_slice) {
            if let Some(start) = self.open.iter().position(|open| *open == edge.target) {
                return Err(self.circle(edge, start));
            }
            self.visit(&edge.target)?;
        }
        self.open.pop();
        self.finished.push(name.to_owned());
        Ok(())
    }

    fn circle(&self, edge: &Edge, start: usize) -> Problem {
        let circle = &self.open[start..];
        let message = if circle.len() == 1 {
            format!("the stage refers to itself: \"stage:{}\"", edge.target)
        } else {
            format!(
                "stages refer to each other in a circle: {} -> {}",
                circle.join(" -> "),
                edge.target
            )
        };
        let hint = "refer to a stage that can run before this one";
        problem(self.file, edge, message, hint.to_owned())
    }
}

fn problem(file: &str, edge: &Edge, message: String, hint: String) -> Problem {
    Problem {
        location: location(file, &edge.origin),
        key: edge.key.clone(),
        message,
        hint,
    }
}
