//! `[cluster.kubernetes]`.

use std::collections::BTreeMap;

use super::{RESTARTS, Site, Stage, Tables};
use crate::error::Problem;
use crate::job_plan::{KubernetesJob, KubernetesPlan};
use crate::reader::Outcome;

/// Seconds from the word to end to the end: some gigabytes of snapshot on a busy file system.
const GRACE_S: usize = 300;

/// Longest label of a domain name.
const LABEL: usize = 63;

/// Longest domain name.
const NAME: usize = 253;

/// Reads the table.
pub(super) fn plan(site: &Site<'_>, stages: &[Stage<'_>]) -> Result<KubernetesPlan, Vec<Problem>> {
    let general = Tables {
        general: &site.general,
        own: None,
        // What releases the others takes one node and no GPU, as what prepares data does.
        prepares_data: true,
    };
    let one = |problem| vec![problem];
    Ok(KubernetesPlan {
        jobs: site.jobs(stages, job)?,
        conductor: job(&general).map_err(one)?,
        namespace: name(&general, ("namespace", LABEL))
            .map_err(one)?
            .unwrap_or_else(|| "default".to_owned()),
        service_account: name(&general, ("service_account", NAME)).map_err(one)?,
    })
}

fn job(tables: &Tables<'_>) -> Outcome<KubernetesJob> {
    let Some(image) = tables.text("image")? else {
        let hint = "name the image that nodes run; the repository's Dockerfile makes one";
        return Err(tables.general.missing("image", hint));
    };
    Ok(KubernetesJob {
        size: tables.size()?,
        image,
        cpus_per_node: tables.count("cpus_per_node", 1)?,
        memory: quantity(tables, "memory")?,
        shm: quantity(tables, "shm")?,
        queue: name(tables, ("queue", LABEL))?,
        volumes: volumes(tables)?,
        environment: super::environment(tables)?,
        node_selector: node_selector(tables)?,
        tolerations: tolerations(tables)?,
        image_pull_secret: name(tables, ("image_pull_secret", NAME))?,
        priority_class: name(tables, ("priority_class", NAME))?,
        grace: tables.count("grace", 1)?.unwrap_or(GRACE_S),
        restarts: tables.count("restarts", 0)?.unwrap_or(RESTARTS),
    })
}

/// Whether a text is a name of Kubernetes' objects: of a label's length without dots.
fn is_name(text: &str, longest: usize) -> bool {
    let part = |part: &str| {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !part.is_empty()
            && part.bytes().all(plain)
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    text.len() <= longest && text.split('.').all(part) && (longest > LABEL || !text.contains('.'))
}

fn name(tables: &Tables<'_>, (key, longest): (&str, usize)) -> Outcome<Option<String>> {
    let (Some(text), Some(reader)) = (tables.text(key)?, tables.of(key)) else {
        return Ok(None);
    };
    if is_name(&text, longest) {
        return Ok(Some(text));
    }
    let message = format!("{text:?} is no name of Kubernetes");
    let hint = "write small letters, digits and -, with a letter or digit at both ends";
    Err(reader.problem(key, message, hint))
}

const SUFFIXES: &[&str] = &["", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti"];

fn quantity(tables: &Tables<'_>, key: &str) -> Outcome<Option<String>> {
    let (Some(text), Some(reader)) = (tables.text(key)?, tables.of(key)) else {
        return Ok(None);
    };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    if digits > 0 && SUFFIXES.contains(&&text[digits..]) {
        return Ok(Some(text));
    }
    let message = format!("{text:?} is no quantity of Kubernetes");
    Err(reader.problem(
        key,
        message,
        "write a whole number with a unit, as in \"500Gi\"",
    ))
}

/// Whether a text is a label's name, with or without a domain before it.
fn is_label(text: &str) -> bool {
    let (domain, label) = text.split_once('/').unzip();
    domain.is_none_or(|domain| is_name(domain, NAME)) && is_value(label.unwrap_or(text))
}

/// Whether a text is a label's value.
fn is_value(text: &str) -> bool {
    let edge = |c: char| c.is_ascii_alphanumeric();
    text.len() <= LABEL
        && text.starts_with(edge)
        && text.ends_with(edge)
        && text.chars().all(|c| edge(c) || "-_.".contains(c))
}

fn volumes(tables: &Tables<'_>) -> Outcome<BTreeMap<String, String>> {
    let example = "{ CLAIM = \"/FOLDER\" }";
    let mut volumes = BTreeMap::new();
    for (claim, mount, reader) in tables.named("volumes", example)? {
        let message = if !is_name(&claim, LABEL) {
            format!("{claim:?} is no name of a claim")
        } else if !mount.starts_with('/') || mount.len() < 2 || mount.contains(':') {
            format!("{mount:?} is no absolute path of a folder")
        } else {
            volumes.insert(claim, mount);
            continue;
        };
        return Err(reader.problem("volumes", message, format!("write volumes = {example}")));
    }
    Ok(volumes)
}

fn node_selector(tables: &Tables<'_>) -> Outcome<BTreeMap<String, String>> {
    let example = "{ LABEL = \"VALUE\" }";
    let mut labels = BTreeMap::new();
    for (label, value, reader) in tables.named("node_selector", example)? {
        if !is_label(&label) || !is_value(&value) {
            let message = format!("{label:?} = {value:?} is no label of a node");
            let hint = format!("write node_selector = {example}");
            return Err(reader.problem("node_selector", message, hint));
        }
        labels.insert(label, value);
    }
    Ok(labels)
}

fn tolerations(tables: &Tables<'_>) -> Outcome<Vec<String>> {
    let taints = tables.texts("tolerations")?;
    let wrong = taints.iter().find(|taint| !is_label(taint));
    match (wrong, tables.of("tolerations")) {
        (Some(wrong), Some(reader)) => {
            let message = format!("{wrong:?} is no key of a taint");
            let hint = "write tolerations = [\"nvidia.com/gpu\"]";
            Err(reader.problem("tolerations", message, hint))
        }
        _ => Ok(taints),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_labels_are_those_of_kubernetes() {
        for name in ["a", "gpu-team", "1a", &"a".repeat(LABEL)] {
            assert!(is_name(name, LABEL), "{name}");
        }
        for name in ["", "-a", "a-", "A", "a_b", "a.b", &"a".repeat(LABEL + 1)] {
            assert!(!is_name(name, LABEL), "{name}");
        }
        assert!(is_name("a.b-c", NAME) && !is_name("a..b", NAME));
        assert!(is_label("nvidia.com/gpu.product") && is_label("zone"));
        assert!(!is_label("nvidia.com/") && !is_label("a/b/c") && !is_label("_a"));
    }
}
