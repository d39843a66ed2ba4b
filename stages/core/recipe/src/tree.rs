//! The configuration as written: a tree in which every value remembers where it came from.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{ConfigError, Problem};
use crate::nearest;

/// Where a value was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// In the file, at a line and column counted from 1.
    File { line: usize, column: usize },
    /// On the command line.
    Set { text: String },
    /// Nowhere: it stands in for what is not said.
    Constant,
}

/// A value and its origin.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub value: Value,
    pub origin: Origin,
}

/// A TOML value.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Text(String),
    Integer(i64),
    Number(f64),
    Flag(bool),
    Date(String),
    List(Vec<Node>),
    Table(Vec<Entry>),
}

/// A key of a table, in the order of the file.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub key: String,
    pub key_origin: Origin,
    pub node: Node,
}

impl Value {
    /// The value as it could stand in the file.
    pub fn written(&self) -> String {
        match self {
            Self::Text(text) => format!("{text:?}"),
            Self::Integer(number) => number.to_string(),
            Self::Number(number) => format!("{number:?}"),
            Self::Flag(flag) => flag.to_string(),
            Self::Date(date) => date.clone(),
            Self::List(items) => {
                let items: Vec<String> = items.iter().map(|item| item.value.written()).collect();
                format!("[{}]", items.join(", "))
            }
            Self::Table(entries) => {
                let pair =
                    |entry: &Entry| format!("{} = {}", entry.key, entry.node.value.written());
                let pairs: Vec<String> = entries.iter().map(pair).collect();
                format!("{{ {} }}", pairs.join(", "))
            }
        }
    }
}

impl Node {
    /// The node under `key`, if this is a table that has it.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Table(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// The node at a dotted path below this one.
    pub fn at(&self, path: &str) -> Option<&Node> {
        path.split('.')
            .try_fold(self, |node, key| Some(&node.get(key)?.node))
    }

    /// The table's entries; none where this is no table.
    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Table(entries) => entries,
            _ => &[],
        }
    }
}

/// Parses TOML text; `file` is its name in messages.
pub(crate) fn parse(text: &str, file: &Path) -> Result<Node, ConfigError> {
    let syntax = |span: Option<std::ops::Range<usize>>, message: &str| {
        let (line, column) = position(text, span.map_or(0, |span| span.start));
        ConfigError::Syntax {
            location: format!("{}:{line}:{column}", file.display()),
            message: message.trim().replace('\n', ", "),
        }
    };
    let table = DeTable::parse(text).map_err(|error| syntax(error.span(), error.message()))?;
    let at = |span: std::ops::Range<usize>| {
        let (line, column) = position(text, span.start);
        Origin::File { line, column }
    };
    let value = convert_table(table.get_ref(), &at)
        .map_err(|(span, message)| syntax(Some(span), &message))?;
    Ok(Node {
        value,
        origin: Origin::File { line: 1, column: 1 },
    })
}

/// Line and column (in characters) of a byte offset, counted from 1.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = before.matches('\n').count() + 1;
    (line, before[start..].chars().count() + 1)
}

type Misfit = (std::ops::Range<usize>, String);

fn convert_table(
    table: &DeTable<'_>,
    at: &impl Fn(std::ops::Range<usize>) -> Origin,
) -> Result<Value, Misfit> {
    let mut pairs: Vec<_> = table.iter().collect();
    pairs.sort_by_key(|(key, _)| key.span().start);
    let mut entries = Vec::with_capacity(pairs.len());
    for (key, value) in pairs {
        entries.push(Entry {
            key: key.get_ref().to_string(),
            key_origin: at(key.span()),
            node: convert(value, at)?,
        });
    }
    Ok(Value::Table(entries))
}

fn convert(
    value: &Spanned<DeValue<'_>>,
    at: &impl Fn(std::ops::Range<usize>) -> Origin,
) -> Result<Node, Misfit> {
    let misfit = |what: &str| (value.span(), format!("{what} does not fit 64 bits"));
    let converted = match value.get_ref() {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => Value::Integer(
            i64::from_str_radix(number.as_str(), number.radix())
                .map_err(|_| misfit(number.as_str()))?,
        ),
        DeValue::Float(number) => Value::Number(
            number
                .as_str()
                .parse()
                .map_err(|_| misfit(number.as_str()))?,
        ),
        DeValue::Boolean(flag) => Value::Flag(*flag),
        DeValue::Datetime(date) => Value::Date(date.to_string()),
        DeValue::Array(items) => Value::List(
            items
                .iter()
                .map(|item| convert(item, at))
                .collect::<Result<_, _>>()?,
        ),
        DeValue::Table(table) => convert_table(table, at)?,
    };
    Ok(Node {
        value: converted,
        origin: at(value.span()),
    })
}

/// Applies `--set path=text`: the text is TOML, or a string where it is not.
///
/// Tables on the way are made where they are absent, except stages: a stage that the file does not
/// have is an error. List items are named by their number (`stages.ppo.reward.0.weight`).
pub(crate) fn set(root: &mut Node, path: &str, text: &str) -> Result<(), Problem> {
    let origin = Origin::Set {
        text: format!("--set {path}={text}"),
    };
    let value = match DeValue::parse(text) {
        Ok(value) => convert(&value, &|_| origin.clone())
            .map_err(|(_, message)| refuse(path, text, message, "give a smaller number"))?,
        Err(_) => Node {
            value: Value::Text(text.to_owned()),
            origin: origin.clone(),
        },
    };
    let keys: Vec<&str> = path.split('.').collect();
    if keys.iter().any(|key| key.is_empty()) {
        let hint = "write --set stages.sft.batch=16";
        return Err(refuse(path, text, "is no path of keys".to_owned(), hint));
    }
    known_stage(root, &keys).map_err(|(message, hint)| refuse(path, text, message, &hint))?;
    *descend(root, &keys, &origin)
        .map_err(|message| refuse(path, text, message, "set a key of a table"))? = value;
    Ok(())
}

fn refuse(path: &str, text: &str, message: String, hint: &str) -> Problem {
    Problem {
        location: format!("--set {path}={text}"),
        key: path.to_owned(),
        message,
        hint: hint.to_owned(),
    }
}

fn known_stage(root: &Node, keys: &[&str]) -> Result<(), (String, String)> {
    let [top, stage, ..] = keys else {
        return Ok(());
    };
    if *top != "stages" || root.at(&format!("stages.{stage}")).is_some() {
        return Ok(());
    }
    let stages = root.at("stages").map_or(&[][..], Node::entries);
    let names: Vec<&str> = stages.iter().map(|entry| entry.key.as_str()).collect();
    let message = format!("the file has no stage called {stage:?}");
    Err((message, nearest::hint(stage, &names, "stages")))
}

/// The place at `keys` below `node`, made where it is absent.
fn descend<'a>(node: &'a mut Node, keys: &[&str], origin: &Origin) -> Result<&'a mut Node, String> {
    let Some((key, rest)) = keys.split_first() else {
        return Ok(node);
    };
    let next = match &mut node.value {
        Value::List(items) => {
            let num_items = items.len();
            let index = key.parse::<usize>().ok().filter(|&index| index < num_items);
            let index = index.ok_or_else(|| {
                format!("{key:?} must be the number of an item, from 0 and below {num_items}")
            })?;
            &mut items[index]
        }
        Value::Table(entries) => {
            let index = entries.iter().position(|entry| entry.key == *key);
            let index = index.unwrap_or_else(|| {
                entries.push(empty(key, origin));
                entries.len() - 1
            });
            &mut entries[index].node
        }
        value => {
            return Err(format!(
                "{key:?} is below {}, which is no table",
                value.written()
            ));
        }
    };
    descend(next, rest, origin)
}

fn empty(key: &str, origin: &Origin) -> Entry {
    Entry {
        key: key.to_owned(),
        key_origin: origin.clone(),
        node: Node {
            value: Value::Table(Vec::new()),
            origin: origin.clone(),
        },
    }
}
