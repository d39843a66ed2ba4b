//! `rlhf model show` and `rlhf model diff`.

use std::collections::BTreeMap;
use std::iter;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use recipe::numbers::grouped;
use recipe::plan::Objective;
use recipe::request::{DiffReport, DiffRequest, ShowReport, ShowRequest, ShownTensor};
use recipe::shape::{ModelShape, Positions};
use recipe::trained_objective;
use runtime::files::read_json;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::model::aligned;
use super::{ask, print};
use crate::cli::{DiffArgs, ShowArgs};
use crate::failure::{Failure, Outcome};
use crate::hub::Models;

/// Prints what a model is and which tensors its files hold.
///
/// # Errors
/// Nothing is there, no libtorch, or what the worker says.
pub fn show(args: &ShowArgs) -> Outcome {
    let model = existing(&Models::default(), &args.model)?;
    let request = ShowRequest {
        model: model.clone(),
    };
    let report: ShowReport = parse(&ask("show", &request)?)?;
    let facts = facts(&model, &report).into_iter();
    let lines = facts.map(|(label, words)| format!("  {label:<11} {words}"));
    let name = args.model.display().to_string();
    let mut text = iter::once(name).chain(lines).collect::<Vec<_>>().join("\n");
    if args.tensors {
        text = text + "\n" + aligned(&rows(&report.tensors)).trim_end();
    }
    // A reader that has seen enough (`| head`) is no failure.
    let _ = print(&text);
    Ok(())
}

/// Prints how two models' files differ.
///
/// # Errors
/// They differ; nothing is there, no libtorch, or what the worker says.
pub fn diff(args: &DiffArgs) -> Outcome {
    let models = Models::default();
    let request = DiffRequest {
        one: existing(&models, &args.one)?,
        other: existing(&models, &args.other)?,
    };
    let report: DiffReport = parse(&ask("diff", &request)?)?;
    let lines = differences(&report);
    if lines.is_empty() {
        let _ = print(&format!("equal: {} tensors", report.equal));
        return Ok(());
    }
    let _ = print(&lines.join("\n"));
    let (one, other) = (args.one.display(), args.other.display());
    Err(Failure::Run(anyhow!("{one} and {other} differ")))
}

/// What is there, or on the hub.
fn existing(models: &Models, words: &Path) -> Outcome<PathBuf> {
    let path = models.path(words)?;
    if path.exists() {
        return Ok(path);
    }
    Err(Failure::Usage(anyhow!(
        "{} does not exist\n  hint: give a model's folder, a file of weights, or hub:ORG/NAME",
        path.display()
    )))
}

fn parse<T: DeserializeOwned>(answer: &str) -> Outcome<T> {
    let report = serde_json::from_str(answer);
    Ok(report.context("rlhf and rlhf-worker are of different versions")?)
}

/// What there is to say of a model, a line each.
fn facts(path: &Path, report: &ShowReport) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    let config = path.join("config.json");
    if config.exists() {
        match read_json(&config) {
            Ok(config) => facts.extend(shape_facts(&config)),
            Err(error) => facts.push(("family", error.to_string())),
        }
    }
    let mut files: BTreeMap<&str, Vec<&ShownTensor>> = BTreeMap::new();
    for tensor in &report.tensors {
        files.entry(&tensor.file).or_default().push(tensor);
    }
    let numbers = report.tensors.iter().map(numel).sum();
    facts.push(("numbers", grouped(numbers)));
    for (file, tensors) in files {
        let mut types: BTreeMap<&str, usize> = BTreeMap::new();
        for tensor in &tensors {
            *types.entry(&tensor.dtype).or_default() += 1;
        }
        let types = types
            .into_iter()
            .map(|(name, count)| format!("{count} {name}"));
        let types = types.collect::<Vec<_>>().join(", ");
        facts.push((
            "weights",
            format!("{file}: {} tensors ({types})", tensors.len()),
        ));
    }
    if let Some((tokens, stop, pad)) = &report.tokenizer {
        let words = format!(
            "{} ids, replies end with {stop:?}, pads with {pad}",
            grouped(*tokens as u64)
        );
        facts.push(("tokenizer", words));
    }
    if let Ok(objective @ (Objective::Masked | Objective::Infill)) = trained_objective(path) {
        let words = format!("{} (continues no text)", objective.word());
        facts.push(("objective", words));
    }
    if let Some(manifest) = &report.manifest {
        let (stage, step) = (&manifest.stage, manifest.step);
        facts.push((
            "made by",
            format!("{stage}, step {step} ({})", manifest.id()),
        ));
        let parents = manifest.parents.iter();
        facts.extend(parents.map(|(name, id)| ("made from", format!("{name} ({id})"))));
    }
    facts
}

/// Family and shape, or why `config.json` says neither.
fn shape_facts(config: &Value) -> Vec<(&'static str, String)> {
    let class = config.pointer("/architectures/0").and_then(Value::as_str);
    let class = class.unwrap_or("no architecture");
    let shape = match ModelShape::from_hf(config) {
        Ok(shape) => shape,
        Err(error) => return vec![("family", format!("{class}: {error}"))],
    };
    let family = format!("{} ({class})", shape.family.model_type());
    let words = format!(
        "{} layers, width {}, {} heads of {} ({} of keys), MLP {}, context {}, vocabulary {}{}",
        shape.layers,
        shape.width,
        shape.heads,
        shape.head_dim,
        shape.kv_heads,
        shape.mlp_width,
        shape.max_positions,
        shape.vocab_size,
        if shape.tie_embeddings { ", tied" } else { "" },
    );
    let mut facts = vec![("family", family), ("shape", words)];
    if let Positions::Learned {
        places: places @ 1..,
        ..
    } = shape.positions
    {
        facts.push(("positions", format!("and {places} places within spans")));
    }
    facts
}

fn numel(tensor: &ShownTensor) -> u64 {
    tensor.dims.iter().map(|dim| dim.unsigned_abs()).product()
}

fn rows(tensors: &[ShownTensor]) -> Vec<[String; 4]> {
    let header = ["tensor", "dtype", "shape", "numbers"].map(str::to_owned);
    let row = |tensor: &ShownTensor| {
        let (name, dtype) = (tensor.name.clone(), tensor.dtype.clone());
        [
            name,
            dtype,
            format!("{:?}", tensor.dims),
            grouped(numel(tensor)),
        ]
    };
    iter::once(header).chain(tensors.iter().map(row)).collect()
}

/// A line for every difference; none where there is none.
fn differences(report: &DiffReport) -> Vec<String> {
    let mut lines = Vec::new();
    if !report.config.is_empty() {
        lines.push(format!("config.json   {}", report.config.join(", ")));
    }
    if !report.same_tokenizer {
        lines.push("tokenizer     differs".to_owned());
    }
    let only = |names: &[String], place: &str| -> Vec<String> {
        let line = |name: &String| format!("only {place}  {name}");
        names.iter().map(line).collect()
    };
    lines.extend(only(&report.only_in_one, "in 1st"));
    lines.extend(only(&report.only_in_other, "in 2nd"));
    for (name, one, other) in &report.shapes {
        lines.push(format!("shape         {name}: {one:?}, {other:?}"));
    }
    for value in &report.values {
        let (name, max_abs, relative) = (&value.name, value.max_abs, value.relative);
        lines.push(format!(
            "numbers       {name}: {max_abs:.1e} at most, {relative:.1e} of the norm"
        ));
    }
    if !lines.is_empty() {
        lines.push(format!("equal         {} tensors", report.equal));
    }
    lines
}
