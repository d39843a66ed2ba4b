//! Rules of the house: which crate may use which, where `unsafe` and heavy crates may be, sizes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use toml::Table;

use crate::support::{Outcome, repository};

const MAX_LINES: usize = 400;
/// Of a file that describes a family of models.
const MAX_FAMILY_LINES: usize = 150;

/// Bottom to top; a crate may use those before it, within the limits of [`may_use`].
const ORDER: [&str; 8] = [
    "runtime",
    "datasets",
    "recipe",
    "torch-ext",
    "model",
    "generation",
    "judge",
    "trainer",
];
const STAGES: [&str; 6] = ["pretrain", "sft", "label", "reward", "ppo", "eval"];

/// Crates that know no tensors.
const WITHOUT_TENSORS: [&str; 4] = ["runtime", "datasets", "recipe", "pipeline"];

fn may_use(user: &str, used: &str) -> bool {
    let place = |name: &str| ORDER.iter().position(|other| *other == name);
    match user {
        "pipeline" => WITHOUT_TENSORS[..3].contains(&used),
        "worker" => place(used).is_some() || STAGES.contains(&used),
        stage if STAGES.contains(&stage) => place(used).is_some(),
        core => place(core).is_some_and(|at| place(used).is_some_and(|below| below < at)),
    }
}

fn manifest(path: &Path) -> Outcome<Table> {
    Ok(fs::read_to_string(path)?.parse()?)
}

/// The members of the workspace: name, folder, manifest.
pub fn members() -> Outcome<Vec<(String, PathBuf, Table)>> {
    let workspace = manifest(&repository().join("Cargo.toml"))?;
    let members = workspace["workspace"]["members"]
        .as_array()
        .ok_or("no members")?;
    let member = |value: &toml::Value| {
        let folder = repository().join(value.as_str().ok_or("a member is no text")?);
        let manifest = manifest(&folder.join("Cargo.toml"))?;
        let name = manifest["package"]["name"]
            .as_str()
            .ok_or("a member has no name")?;
        Ok((name.to_owned(), folder, manifest))
    };
    members.iter().map(member).collect()
}

/// What a manifest's dependency tables name.
fn dependencies(manifest: &Table, tables: &[&str]) -> BTreeSet<String> {
    let tables = tables
        .iter()
        .filter_map(|table| manifest.get(*table)?.as_table());
    tables.flat_map(|table| table.keys().cloned()).collect()
}

const ALL_TABLES: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

#[test]
fn crates_use_only_what_lies_below_them() -> Outcome {
    let members = members()?;
    let names: Vec<&str> = members.iter().map(|(name, ..)| name.as_str()).collect();
    let known: BTreeSet<&str> = ORDER
        .into_iter()
        .chain(STAGES)
        .chain(["worker", "pipeline"])
        .collect();
    assert_eq!(names.iter().copied().collect::<BTreeSet<_>>(), known);
    for (at, (user, _, manifest)) in members.iter().enumerate() {
        for used in dependencies(manifest, &ALL_TABLES) {
            let Some(place) = names.iter().position(|name| *name == used) else {
                continue;
            };
            assert!(may_use(user, &used), "{user} uses {used}");
            assert!(
                place < at,
                "Cargo.toml lists {used} after {user}, which uses it"
            );
        }
    }
    Ok(())
}

#[test]
fn heavy_crates_stay_where_they_are_needed() -> Outcome {
    let homes: [(&str, &[&str]); 10] = [
        ("polars", &["datasets"]),
        ("tokenizers", &["datasets"]),
        ("minijinja", &["datasets"]),
        ("ratatui", &["pipeline"]),
        ("plotters", &["pipeline"]),
        ("indicatif", &["pipeline"]),
        ("hf-hub", &["pipeline"]),
        ("ureq", &["pipeline"]),
        ("cc", &["torch-ext"]),
        ("torch-sys", &["torch-ext", "worker"]),
    ];
    for (name, _, manifest) in members()? {
        let used = dependencies(&manifest, &["dependencies", "build-dependencies"]);
        for (heavy, homes) in homes {
            assert!(
                !used.contains(heavy) || homes.contains(&&name[..]),
                "{name} uses {heavy}"
            );
        }
        let tensors = dependencies(&manifest, &ALL_TABLES).contains("tch");
        assert!(
            !(tensors && WITHOUT_TENSORS.contains(&&name[..])),
            "{name} uses tch"
        );
    }
    Ok(())
}

#[test]
fn lints_hold_everywhere_and_unsafe_stays_in_torch_ext() -> Outcome {
    let workspace = manifest(&repository().join("Cargo.toml"))?;
    assert_eq!(
        workspace["workspace"]["lints"]["rust"]["unsafe_code"].as_str(),
        Some("forbid")
    );
    for (name, _, manifest) in members()? {
        let inherits = manifest["lints"]
            .get("workspace")
            .and_then(toml::Value::as_bool);
        assert_eq!(inherits, (name != "torch-ext").then_some(true), "{name}");
    }
    for (path, text) in rust_files()? {
        if path.starts_with("stages/core/torch-ext") || path.ends_with("tests/rules.rs") {
            continue;
        }
        let is_unsafe = |line: &&str| {
            let is_comment = line.trim_start().starts_with("//");
            let starts = ["unsafe {", "unsafe fn", "unsafe impl"];
            !is_comment && starts.iter().any(|start| line.contains(start))
        };
        assert_eq!(text.lines().find(is_unsafe), None, "{}", path.display());
    }
    Ok(())
}

/// Every Rust file of the repository, by its path relative to the root.
pub fn rust_files() -> Outcome<Vec<(PathBuf, String)>> {
    let mut found = Vec::new();
    let mut folders = vec![repository()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let built = name.starts_with('.') || ["target", "runs", "dist"].contains(&&name[..]);
            if path.is_dir() && !built {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path)?;
                found.push((path.strip_prefix(repository())?.to_path_buf(), text));
            }
        }
    }
    assert!(found.len() > 100, "only {} files are found", found.len());
    Ok(found)
}

#[test]
fn files_are_no_longer_than_they_may_be() -> Outcome {
    let mut num_families = 0;
    let mut long = Vec::new();
    for (path, text) in rust_files()? {
        let defines = ["const DEFINITION: Definition", "const MODEL_TYPE: &str"];
        let is_family = path.starts_with("stages/core/recipe/src/families")
            && defines.iter().any(|words| text.contains(words));
        num_families += usize::from(is_family);
        let most = if is_family {
            MAX_FAMILY_LINES
        } else {
            MAX_LINES
        };
        let lines = text.lines().count();
        if lines > most {
            long.push(format!("{} ({lines}, at most {most})", path.display()));
        }
    }
    assert!(num_families > 10, "{num_families} families are found");
    assert!(long.is_empty(), "too long: {}", long.join(", "));
    Ok(())
}

#[test]
fn every_library_says_what_it_is() -> Outcome {
    for (name, folder, _) in members()? {
        let mut roots = ["src/lib.rs", "src/main.rs"]
            .map(|file| folder.join(file))
            .into_iter();
        let root = roots
            .find(|file| file.exists())
            .ok_or(format!("{name} has no root"))?;
        let text = fs::read_to_string(&root)?;
        let opening: String = text
            .lines()
            .take_while(|line| line.starts_with("//!"))
            .collect();
        for part in ["rchitecture invariant", "eading order"] {
            assert!(opening.contains(part), "{} says no {part}", root.display());
        }
    }
    Ok(())
}

/// Of a file, and of all: environments, models and runs do not belong here.
const MAX_FILE_BYTES: u64 = 512 << 10;
const MAX_TOTAL_BYTES: u64 = 16 << 20;

#[test]
fn nothing_large_is_in_the_repository() -> Outcome {
    let listed = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(repository())
        .output()?;
    if !listed.status.success() {
        // An archive of the sources has no list.
        return Ok(());
    }
    let names = String::from_utf8(listed.stdout)?;
    let mut total = 0;
    for name in names.split_terminator('\0') {
        // A file may be deleted and not yet committed.
        let bytes = fs::metadata(repository().join(name)).map_or(0, |metadata| metadata.len());
        assert!(bytes <= MAX_FILE_BYTES, "{name} has {bytes} bytes");
        total += bytes;
    }
    assert!(total > 0 && total <= MAX_TOTAL_BYTES, "{total} bytes");
    Ok(())
}
