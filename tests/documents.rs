//! The documents say what is there: the README's tree, the targets of `make`, experiments, metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use runtime::metrics::{METRICS, read_metrics};
use serde_json::{Value, json};
use toml::Table;

use crate::rules::{members, rust_files};
use crate::support::{Outcome, TRAINED, copy_tree, finished_run, repository, rlhf, say, scratch};

/// Entries of the repository's root that are not built: as Git would keep them.
fn root_entries() -> Outcome<BTreeSet<String>> {
    let ignored: BTreeSet<String> = fs::read_to_string(repository().join(".gitignore"))?
        .lines()
        .map(|line| line.trim_matches('/').to_owned())
        .collect();
    let mut entries = BTreeSet::new();
    for entry in fs::read_dir(repository())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != ".git" && !ignored.contains(&name) {
            entries.insert(name);
        }
    }
    Ok(entries)
}

/// The paths in a drawn tree: a code block with a name (or several) per line, folders with a `/` at
/// their end, deeper ones indented, a phrase after two spaces.
fn tree(readme: &str) -> Outcome<BTreeSet<PathBuf>> {
    let blocks = readme.split("\n```").skip(1).step_by(2);
    let is_tree = |block: &&str| block.contains("\nstages/") || block.contains(" stages/");
    let block = blocks
        .into_iter()
        .find(is_tree)
        .ok_or("README.md draws no tree")?;
    let mut paths = BTreeSet::new();
    let mut parents: Vec<(usize, PathBuf)> = Vec::new();
    for line in block.lines().skip(1).filter(|line| !line.trim().is_empty()) {
        let plain: String = line
            .chars()
            .map(|c| if "│├└─".contains(c) { ' ' } else { c })
            .collect();
        let text = plain.trim_start();
        let indent = plain.chars().count() - text.chars().count();
        let names = text.split("  ").next().unwrap_or_default();
        parents.retain(|(depth, _)| *depth < indent);
        let parent = parents
            .last()
            .map(|(_, path)| path.clone())
            .unwrap_or_default();
        for name in names
            .split(' ')
            .filter(|name| !name.contains(['<', '{', '(', '*']))
        {
            let path = parent.join(name.trim_end_matches(['/', ',']));
            if name.ends_with('/') {
                parents.push((indent, path.clone()));
            }
            paths.insert(path);
        }
    }
    Ok(paths)
}

#[test]
fn the_readmes_tree_is_the_disk() -> Outcome {
    let drawn = tree(&fs::read_to_string(repository().join("README.md"))?)?;
    for path in &drawn {
        assert!(
            repository().join(path).exists(),
            "README.md draws {}",
            path.display()
        );
    }
    let first = |path: &PathBuf| {
        path.iter()
            .next()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    let drawn_roots: BTreeSet<String> = drawn.iter().map(first).collect();
    let there = root_entries()?;
    let forgotten: Vec<_> = there
        .iter()
        .filter(|name| !name.starts_with('.') && !drawn_roots.contains(*name))
        .collect();
    assert!(
        forgotten.is_empty(),
        "README.md does not draw {forgotten:?}"
    );
    for (name, folder, _) in members()? {
        let folder = folder.strip_prefix(repository())?;
        assert!(
            drawn.contains(folder),
            "README.md does not draw the crate {name}"
        );
    }
    Ok(())
}

#[test]
fn trees_are_read_as_drawn() -> Outcome {
    let readme = "# x\n```sh\nmake demo\n```\n\n```\na/            phrase  with spaces\n\
                  stages/\n  core/        deep\n    model/     deeper\n  sft/ ppo/    two\nREADME.md .ci/run\n```\n";
    let expected = [
        "a",
        "stages",
        "stages/core",
        "stages/core/model",
        "stages/sft",
        "stages/ppo",
    ];
    let expected = expected
        .into_iter()
        .chain(["README.md", ".ci/run"])
        .map(PathBuf::from)
        .collect();
    assert_eq!(tree(readme)?, expected);
    Ok(())
}

/// A model that is read up to a length that any experiment may ask for.
fn long_model(folder: &Path) -> Outcome {
    copy_tree(&finished_run().join("sft/final"), folder)?;
    fs::remove_file(folder.join("manifest.json"))?;
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
    config["max_position_embeddings"] = json!(8192);
    Ok(fs::write(path, config.to_string())?)
}

#[test]
fn every_experiment_resolves() -> Outcome {
    let folder = scratch()?;
    let stand_in = folder.path().join("model");
    long_model(&stand_in)?;
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(repository().join("experiments"))? {
        let experiment = entry?.path();
        let config = experiment.join("pipeline.toml");
        if !config.exists() {
            // Results of a command, without a pipeline of their own: the page says which.
            assert!(
                experiment.join("README.md").exists(),
                "{}",
                experiment.display()
            );
            continue;
        }
        let text = fs::read_to_string(&config).map_err(|e| format!("{}: {e}", config.display()))?;
        let table: Table = text.parse()?;
        let mut command = rlhf();
        command.arg("plan").arg(&config);
        // Data that is fetched by `make` need not be there.
        let stub = folder.path().join("stub.json");
        fs::write(&stub, "{}")?;
        for (name, stage) in table["stages"].as_table().ok_or("no stages")? {
            // The same for a model.
            let model = stage.get("model").and_then(toml::Value::as_str);
            let folder = model.and_then(|model| model.strip_prefix("path:"));
            if folder.is_some_and(|folder| !experiment.join(folder).exists()) {
                command
                    .arg("--set")
                    .arg(format!("stages.{name}.model=path:{}", stand_in.display()));
            }
            let path = stage.get("path").and_then(toml::Value::as_str);
            if path.is_some_and(|path| !experiment.join(path).exists()) {
                command
                    .arg("--set")
                    .arg(format!("stages.{name}.path={}", stub.display()));
            }
        }
        say(&mut command)?.ended(0);
        names.insert(
            experiment
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
        );
    }
    assert!(
        names.contains("demo") && names.contains("tiny"),
        "{names:?}"
    );
    Ok(())
}

#[test]
fn every_metric_is_declared_once_documented_and_written_somewhere() -> Outcome {
    let mut seen = BTreeSet::new();
    let sources: String = rust_files()?
        .into_iter()
        .filter(|(path, _)| {
            !path.ends_with("runtime/src/metric_names.rs") && path.starts_with("stages")
        })
        .map(|(_, text)| text)
        .collect();
    for metric in METRICS {
        let name = metric.name;
        assert!(seen.insert(name), "{name} is declared twice");
        assert!(
            !metric.unit.is_empty() && metric.meaning.len() > 10,
            "{name} is not documented"
        );
    }
    let never: Vec<_> = seen
        .iter()
        .filter(|name| !sources.contains(&format!("\"{name}\"")))
        .collect();
    assert!(never.is_empty(), "declared and never written: {never:?}");
    Ok(())
}

/// What the tiny pipeline writes has the metrics of the contract, with finite values.
#[test]
fn stages_write_the_metrics_that_are_promised() -> Outcome {
    let supervised = [
        "loss/train",
        "loss/heldout",
        "optimizer/lr",
        "optimizer/grad_norm",
    ];
    let promised: BTreeMap<&str, Vec<&str>> = BTreeMap::from([
        (
            "pretrain",
            [&supervised[..], &["loss/heldout_bits_per_byte"]].concat(),
        ),
        ("sft", supervised.to_vec()),
        (
            "reward",
            [&supervised[..], &["accuracy/heldout", "calibration/ece"]].concat(),
        ),
        (
            "ppo",
            vec![
                "objective/kl",
                "objective/kl_k3",
                "objective/score",
                "objective/gold",
                "objective/entropy",
                "objective/eos_rate",
                "objective/length",
                "ppo/policy_loss",
                "ppo/value_loss",
                "ppo/ptx_loss",
                "ppo/clip_fraction",
                "ppo/value_clip_fraction",
                "ppo/ratio_max",
                "ppo/approx_kl",
                "ppo/explained_variance",
                "ppo/logprob_gap_max",
                "optimizer/lr",
                "optimizer/grad_norm",
            ],
        ),
    ]);
    for stage in TRAINED {
        let rows = read_metrics(&finished_run().join(stage).join("metrics.jsonl"))?;
        let written: BTreeSet<&str> = rows
            .iter()
            .flat_map(|row| row.values.keys().map(String::as_str))
            .collect();
        let missing: Vec<_> = promised[stage]
            .iter()
            .filter(|name| !written.contains(*name))
            .collect();
        assert!(missing.is_empty(), "{stage} does not write {missing:?}");
        for row in &rows {
            for (name, value) in &row.values {
                assert!(
                    value.is_finite(),
                    "{stage}, step {}: {name} is {value}",
                    row.step
                );
            }
        }
    }
    Ok(())
}

/// The targets of the Makefile that `make help` lists.
fn make_targets() -> Outcome<BTreeSet<String>> {
    let said = say(Command::new("make").arg("help").current_dir(repository()))?.ended(0);
    Ok(said
        .out
        .lines()
        .filter_map(|line| line.split_once("  "))
        .flat_map(|(targets, _)| targets.split(' '))
        .map(str::to_owned)
        .collect())
}

#[test]
fn the_documents_name_only_targets_that_exist() -> Outcome {
    let targets = make_targets()?;
    let needed =
        "setup build demo test check pretrain sft reward ppo inspect plan dist gpu-check clean";
    let missing: Vec<_> = needed
        .split(' ')
        .filter(|target| !targets.contains(*target))
        .collect();
    assert!(missing.is_empty(), "`make help` does not list {missing:?}");
    for document in ["README.md", "CONTRIBUTING.md"] {
        let text = fs::read_to_string(repository().join(document))
            .map_err(|error| format!("{document}: {error}"))?;
        // In code: after a backtick, or at the start of a line of a block.
        for before in ["`make ", "\nmake ", "\n$ make ", "&& make "] {
            for rest in text.split(before).skip(1) {
                let end = rest.find(|c: char| !(c.is_ascii_lowercase() || c == '-' || c == '_'));
                let target = &rest[..end.unwrap_or(rest.len())];
                let known = target.is_empty() || target == "help" || targets.contains(target);
                assert!(known, "{document} mentions `make {target}`");
            }
        }
    }
    Ok(())
}
