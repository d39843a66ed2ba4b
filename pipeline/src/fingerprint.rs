//! What a stage is made from: its settings with every input replaced by the hash of its content.
//! Two runs of a stage with equal fingerprints make the same artefact.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use recipe::plan::{CONTENT_KEY, Plan, Source, StagePlan};
use runtime::hash::hash_json;
use runtime::{Manifest, ManifestError, RunFolder};
use serde_json::{Map, Value};

/// A stage's settings and inputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Fingerprint {
    /// The settings as JSON; paths are not in it, contents are.
    pub config: Value,
    /// The stages that it reads, with their manifests' ids; those that are not made yet are absent.
    pub parents: BTreeMap<String, String>,
}

impl Fingerprint {
    /// The stage's hash.
    pub fn hash(&self) -> String {
        hash_json(&self.config)
    }
}

/// Makes fingerprints, and hashes each input once.
#[derive(Debug)]
pub struct Fingerprints<'a> {
    plan: &'a Plan,
    run: &'a RunFolder,
    contents: BTreeMap<PathBuf, String>,
}

impl<'a> Fingerprints<'a> {
    /// For one plan and its run folder.
    pub fn new(plan: &'a Plan, run: &'a RunFolder) -> Self {
        Self {
            plan,
            run,
            contents: BTreeMap::new(),
        }
    }

    /// The fingerprint of a stage. Parents in `pending` will be made (anew), so that their present
    /// content does not count; nor does that of a path which is gone (a stage that is done may
    /// outlive its data; one that is not is refused elsewhere).
    ///
    /// # Errors
    /// An input cannot be read, or is damaged.
    pub fn of(
        &mut self,
        stage: &StagePlan,
        pending: &BTreeSet<String>,
    ) -> Result<Fingerprint, ManifestError> {
        let mut known = Vec::new();
        let mut parents = BTreeMap::new();
        for (_, source) in stage.inputs() {
            let content = self.content(&source, pending)?;
            if let (Source::Stage { name }, Some(id)) = (&source, &content) {
                parents.insert(name.clone(), id.clone());
            }
            known.push((source, content));
        }
        let mut config = stage.portable_config(|source| {
            let found = known.iter().find(|(candidate, _)| candidate == source);
            found.and_then(|(_, content)| content.clone())
        });
        config["seed"] = self.plan.seed.into();
        Ok(Fingerprint { config, parents })
    }

    fn content(
        &mut self,
        source: &Source,
        pending: &BTreeSet<String>,
    ) -> Result<Option<String>, ManifestError> {
        let path = source.path(self.run);
        if matches!(source, Source::Stage { name } if pending.contains(name)) || !path.exists() {
            return Ok(None);
        }
        let Source::Path { .. } = source else {
            return source.content_id(self.run, Manifest::read).map(Some);
        };
        if let Some(known) = self.contents.get(&path) {
            return Ok(Some(known.clone()));
        }
        let id = source.content_id(self.run, Manifest::verify)?;
        self.contents.insert(path, id.clone());
        Ok(Some(id))
    }
}

/// A key that two configurations disagree about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyChange {
    /// The dotted key, as `train.optimizer.lr`.
    pub key: String,
    /// Its old value in JSON; `None` if it was absent.
    pub was: Option<String>,
    /// Its new value in JSON; `None` if it is absent.
    pub is: Option<String>,
}

impl std::fmt::Display for KeyChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { key, was, is } = self;
        if key.ends_with(CONTENT_KEY) && was.is_some() && is.is_some() {
            return write!(f, "{key}: the data behind it is another");
        }
        let side = |value: &Option<String>| value.clone().unwrap_or_else(|| "(absent)".into());
        write!(f, "{key}: {} -> {}", side(was), side(is))
    }
}

/// The keys whose values differ, sorted. A content that is not known yet differs from none.
pub fn diff(old: &Value, new: &Value) -> Vec<KeyChange> {
    let mut changes = Vec::new();
    compare("", Some(old), Some(new), &mut changes);
    changes
}

fn compare(key: &str, old: Option<&Value>, new: Option<&Value>, changes: &mut Vec<KeyChange>) {
    let not_known_yet = key.ends_with(CONTENT_KEY) && new == Some(&Value::Null);
    if old == new || not_known_yet {
        return;
    }
    match (old, new) {
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            for name in union_of_keys(a, b) {
                let dot = if key.is_empty() { "" } else { "." };
                compare(
                    &format!("{key}{dot}{name}"),
                    a.get(name),
                    b.get(name),
                    changes,
                );
            }
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                compare(&format!("{key}[{i}]"), Some(a), Some(b), changes);
            }
        }
        _ => changes.push(KeyChange {
            key: key.to_owned(),
            was: old.map(Value::to_string),
            is: new.map(Value::to_string),
        }),
    }
}

fn union_of_keys<'a>(a: &'a Map<String, Value>, b: &'a Map<String, Value>) -> BTreeSet<&'a str> {
    a.keys().chain(b.keys()).map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{Pipeline, pipeline};
    use serde_json::json;

    type Outcome = Result<(), Box<dyn std::error::Error>>;

    #[test]
    fn differing_keys_are_named_with_both_values() {
        let old = json!({"a": {"b": 1, "gone": [1, 2]}, "betas": [0.9, 0.95], "same": null});
        let new = json!({"a": {"b": 2}, "betas": [0.9, 0.99], "new": "x", "same": null});
        let text: Vec<String> = diff(&old, &new).iter().map(ToString::to_string).collect();
        assert_eq!(
            text,
            [
                "a.b: 1 -> 2",
                "a.gone: [1,2] -> (absent)",
                "betas[1]: 0.95 -> 0.99",
                "new: (absent) -> \"x\"",
            ]
        );
    }

    #[test]
    fn a_content_not_known_yet_differs_from_none() {
        let old = json!({"data": {"from": "stage", "content": "abc"}});
        assert!(diff(&old, &json!({"data": {"from": "stage", "content": null}})).is_empty());
        let changed = diff(&old, &json!({"data": {"from": "stage", "content": "def"}}));
        assert_eq!(
            changed[0].to_string(),
            "data.content: the data behind it is another"
        );
    }

    #[test]
    fn contents_count_and_places_do_not() -> Outcome {
        let here = pipeline()?;
        let there = pipeline()?;
        let none = BTreeSet::new();
        let of =
            |pipeline: &Pipeline, name: &str| -> Result<Fingerprint, Box<dyn std::error::Error>> {
                let stage = pipeline.plan.stage(name).ok_or("no such stage")?;
                Ok(Fingerprints::new(&pipeline.plan, &pipeline.run).of(stage, &none)?)
            };
        let before = of(&here, "corpus")?;
        assert_eq!(before, of(&there, "corpus")?);
        std::fs::write(here.dir.path().join("dialogues.json"), "others")?;
        assert_ne!(before.hash(), of(&here, "corpus")?.hash());

        assert_eq!(
            of(&here, "tokenizer")?.config["data"]["content"],
            Value::Null
        );
        let id = here.finish("corpus")?;
        let child = of(&here, "tokenizer")?;
        assert_eq!(child.config["data"]["content"], Value::from(id.as_str()));
        assert_eq!(child.parents, BTreeMap::from([("corpus".to_owned(), id)]));
        let pending = BTreeSet::from(["corpus".to_owned()]);
        let stage = here.plan.stage("tokenizer").ok_or("no tokenizer")?;
        let child = Fingerprints::new(&here.plan, &here.run).of(stage, &pending)?;
        assert!(child.parents.is_empty());
        Ok(())
    }
}
