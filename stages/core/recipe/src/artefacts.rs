//! Files and folders that a configuration names: looked at before anything starts.
//!
//! Errors are a message and a hint; the caller knows the key that named the path.

use std::path::Path;

use datasets::{
    DatasetKind, ImportFormat, Objective, SPECIAL_TOKENS, Split, Tokenizer, dataset_file,
};

use crate::objective::trained_objective;
use crate::shape::ModelShape;
use crate::tensors::{WEIGHT_FILES, WEIGHTS};

/// A message and a hint.
pub(crate) type Refusal = (String, String);

/// The format of a name.
pub(crate) fn import_format(name: &str) -> Result<ImportFormat, Refusal> {
    ImportFormat::parse(name).map_err(|error| split_hint(&error.to_string()))
}

/// Fewest ids of a tokenizer that is trained here: every byte and the special tokens.
pub(crate) const MINIMUM_VOCABULARY: u64 = 256 + SPECIAL_TOKENS.len() as u64;

/// Checks that a path leads to a dataset of a kind: a Parquet or JSON Lines file, or a folder of an
/// import or label stage.
pub(crate) fn check_dataset(path: &Path, kind: DatasetKind) -> Result<(), Refusal> {
    let hint = format!(
        "give a .parquet or .jsonl file, or a folder that holds {0}.parquet and {0}.heldout.parquet",
        kind.file_stem()
    );
    if path.is_dir() {
        for split in [Split::Train, Split::Heldout] {
            let file = dataset_file(path, kind, split);
            if !file.is_file() {
                return Err((format!("no such file: {}", file.display()), hint));
            }
        }
        return Ok(());
    }
    let extension = path.extension().and_then(|extension| extension.to_str());
    match extension {
        Some("parquet" | "jsonl") => Ok(()),
        _ => Err((
            format!("{} is neither .parquet nor .jsonl", path.display()),
            hint,
        )),
    }
}

/// Checks that a folder holds a model with its tokenizer and the right head.
pub(crate) fn check_model(dir: &Path, scalar: bool) -> Result<(), Refusal> {
    let config = read_config(dir)?;
    let there = |name: &&&str| dir.join(name).is_file();
    let weights = WEIGHT_FILES.iter().find(there).unwrap_or(&WEIGHTS);
    for file in ["tokenizer.json", weights] {
        let file = dir.join(file);
        if !file.is_file() {
            return Err((
                format!("no such file: {}", file.display()),
                MODEL_HINT.to_owned(),
            ));
        }
    }
    has_head(&config, dir, scalar)
}

/// Checks that a folder's `config.json` says the right head.
pub(crate) fn check_head(dir: &Path, scalar: bool) -> Result<(), Refusal> {
    has_head(&read_config(dir)?, dir, scalar)
}

fn has_head(config: &serde_json::Value, dir: &Path, scalar: bool) -> Result<(), Refusal> {
    let architecture = config
        .pointer("/architectures/0")
        .and_then(serde_json::Value::as_str);
    let is_scalar = architecture.is_some_and(|name| name.ends_with("ForSequenceClassification"));
    if is_scalar == scalar {
        return Ok(());
    }
    let (wanted, hint) = if scalar {
        (
            "a reward model (...ForSequenceClassification)",
            "name a folder that a reward stage made",
        )
    } else {
        (
            "a language model",
            "name a folder that a pretrain, sft or ppo stage made",
        )
    };
    let found = architecture.unwrap_or("without architectures");
    let message = format!(
        "must be {wanted}, {} is {found}",
        dir.join("config.json").display()
    );
    Err((message, hint.to_owned()))
}

const MODEL_HINT: &str = "a model is a folder with config.json, model.safetensors, tokenizer.json, tokenizer_config.json";

fn read_config(dir: &Path) -> Result<serde_json::Value, Refusal> {
    let path = dir.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(|error| {
        (
            format!("{}: cannot be read: {error}", path.display()),
            MODEL_HINT.to_owned(),
        )
    })?;
    serde_json::from_str(&text).map_err(|error| {
        (
            format!("{}: not valid JSON: {error}", path.display()),
            "copy the model anew".to_owned(),
        )
    })
}

/// The shape of the model in a folder.
pub(crate) fn model_shape(dir: &Path) -> Result<ModelShape, Refusal> {
    let config = read_config(dir)?;
    ModelShape::from_hf(&config).map_err(|error| {
        let (message, hint) = split_hint(&error.to_string());
        let path = dir.join("config.json");
        (format!("{}: {message}", path.display()), hint)
    })
}

/// Ids of the tokenizer in a folder.
pub(crate) fn vocab_size(dir: &Path) -> Result<usize, Refusal> {
    let tokenizer = Tokenizer::load(dir).map_err(|error| split_hint(&error.to_string()))?;
    Ok(tokenizer.vocab_size())
}

/// Checks that the tokenizer in a folder has the special tokens of an objective, and a model's `vocab_size` rows for
/// all of its tokens.
pub(crate) fn check_objective(
    dir: &Path,
    objective: Objective,
    vocab_size: usize,
) -> Result<(), Refusal> {
    let refusal = |error: datasets::TokenizerError| {
        let (message, hint) = split_hint(&error.to_string());
        (format!("{}: {message}", dir.display()), hint)
    };
    let tokenizer = Tokenizer::load(dir).map_err(refusal)?;
    objective.check(&tokenizer).map_err(refusal)?;
    let tokens = tokenizer.vocab_size();
    if tokens > vocab_size {
        let message = format!(
            "{}: the tokenizer has {tokens} tokens, the model only rows for {vocab_size}",
            dir.display()
        );
        let hint =
            "a new model can have a larger vocab_size; one that is continued keeps its tokens";
        return Err((message, hint.to_owned()));
    }
    Ok(())
}

/// What the model in a folder was last trained to predict.
pub(crate) fn objective(dir: &Path) -> Result<Objective, Refusal> {
    trained_objective(dir).map_err(|error| split_hint(&error.to_string()))
}

/// Whether two folders hold the same tokenizer.
pub(crate) fn same_tokenizer(one: &Path, other: &Path) -> Result<bool, Refusal> {
    let hash = |dir: &Path| -> Result<String, Refusal> {
        let tokenizer = Tokenizer::load(dir).map_err(|error| split_hint(&error.to_string()))?;
        Ok(tokenizer.hash())
    };
    Ok(hash(one)? == hash(other)?)
}

/// Takes a message of another crate apart: what is wrong, and what to do.
pub(crate) fn split_hint(text: &str) -> Refusal {
    match text.split_once("\n  hint: ") {
        Some((message, hint)) => (message.to_owned(), hint.to_owned()),
        None => (text.to_owned(), "check that the folder is whole".to_owned()),
    }
}
