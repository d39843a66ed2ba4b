//! `rlhf model show` and `rlhf model diff`: what lies in models' files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;
use datasets::Tokenizer;
use model::weights::{StoredTensor, StoredWeights};
use recipe::request::{DiffReport, DiffRequest, ShowReport, ShowRequest, ShownTensor, ValueDiff};
use runtime::events::{Event, emit};
use runtime::files;
use runtime::manifest::Manifest;
use serde_json::Value;
use tch::{Kind, Tensor};

/// Answers `rlhf model show`.
pub fn show(request: &ShowRequest) -> Result<()> {
    let weights = StoredWeights::open(&request.model)?;
    let tensors = weights.tensors().into_iter().map(|(name, tensor)| {
        let StoredTensor { dims, dtype, file } = tensor;
        ShownTensor {
            name,
            dims,
            dtype,
            file,
        }
    });
    let report = ShowReport {
        tensors: tensors.collect(),
        tokenizer: tokenizer(&request.model).map(|tokenizer| {
            let stop = tokenizer.stop_ids().to_vec();
            (tokenizer.vocab_size(), stop, tokenizer.pad_id())
        }),
        manifest: folder(&request.model).map_or(Ok(None), Manifest::read)?,
    };
    answer(&report)
}

/// Answers `rlhf model diff`.
pub fn diff(request: &DiffRequest) -> Result<()> {
    let (one, other) = (&request.one, &request.other);
    let open = |path: &Path| StoredWeights::open(path);
    let (ours, theirs) = (open(one)?, open(other)?);
    let (all, all_theirs) = (ours.tensors(), theirs.tensors());
    let mut report = DiffReport {
        config: different_keys(&config(one)?, &config(other)?),
        same_tokenizer: hash(one) == hash(other),
        only_in_one: without(&all, &all_theirs),
        only_in_other: without(&all_theirs, &all),
        ..DiffReport::default()
    };
    for (name, tensor) in &all {
        let Some(theirs_stored) = all_theirs.get(name) else {
            continue;
        };
        if tensor.dims != theirs_stored.dims {
            let dims = (tensor.dims.clone(), theirs_stored.dims.clone());
            report.shapes.push((name.clone(), dims.0, dims.1));
            continue;
        }
        let read = |weights: &StoredWeights| weights.read(name, Kind::Double);
        match value_diff(name, &read(&ours)?, &read(&theirs)?) {
            None => report.equal += 1,
            Some(difference) => report.values.push(difference),
        }
    }
    answer(&report)
}

fn answer(report: &impl serde::Serialize) -> Result<()> {
    let line = serde_json::to_string(report)?;
    emit(&Event::Output { line });
    Ok(())
}

/// How far `other` is from `one`; `None` where every number is the same (two that are no numbers are).
fn value_diff(name: &str, one: &Tensor, other: &Tensor) -> Option<ValueDiff> {
    let both_nan = one.isnan().logical_and(&other.isnan());
    let apart = (one - other).masked_fill(&both_nan, 0.0);
    let norm = |tensor: &Tensor| tensor.norm().double_value(&[]);
    let max_abs = if apart.numel() == 0 {
        0.0
    } else {
        apart.abs().max().double_value(&[])
    };
    (max_abs != 0.0).then(|| ValueDiff {
        name: name.to_owned(),
        max_abs,
        relative: norm(&apart) / norm(one),
    })
}

fn without(
    all: &BTreeMap<String, StoredTensor>,
    others: &BTreeMap<String, StoredTensor>,
) -> Vec<String> {
    let names = all.keys().filter(|name| !others.contains_key(*name));
    names.cloned().collect()
}

fn folder(model: &Path) -> Option<&Path> {
    model.is_dir().then_some(model)
}

fn config(model: &Path) -> Result<Value> {
    let path = model.join("config.json");
    if !path.exists() {
        return Ok(Value::Null);
    }
    Ok(files::read_json(&path)?)
}

/// The keys whose values differ.
fn different_keys(one: &Value, other: &Value) -> Vec<String> {
    let keys = |value: &Value| -> BTreeSet<String> {
        let object = value.as_object();
        object.into_iter().flat_map(|o| o.keys().cloned()).collect()
    };
    let all = keys(one).into_iter().chain(keys(other));
    let different: BTreeSet<String> = all.filter(|key| one[key] != other[key]).collect();
    different.into_iter().collect()
}

/// The tokenizer beside a model, where there is one that can be read.
fn tokenizer(model: &Path) -> Option<Tokenizer> {
    Tokenizer::load(folder(model)?).ok()
}

fn hash(model: &Path) -> Option<String> {
    tokenizer(model).map(|tokenizer| tokenizer.hash())
}
