//! Reads the objective of a pretraining stage, and what it asks of the model and of the tokenizer.

use std::path::Path;

use datasets::{Objective, SPAN_PLACES};
use runtime::{Manifest, ManifestError};

use crate::artefacts;
use crate::order::Written;
use crate::plan::{Source, Task};
use crate::reader::{Outcome, Reader};
use crate::references::Resolver;
use crate::shape::{ModelShape, Positions};
use crate::tree::Value;

/// The special tokens that the objectives need which are written; a word that is none is refused when
/// its stage is read.
pub(crate) fn special_tokens(stages: &[Written<'_>]) -> Vec<String> {
    let written = |word: &str| {
        let is_word = |stage: &&Written<'_>| {
            let entry = stage.node.get("objective");
            entry
                .is_some_and(|entry| matches!(&entry.node.value, Value::Text(text) if text == word))
        };
        let mut pretraining = stages.iter().filter(|stage| stage.kind == "pretrain");
        pretraining.any(|stage| is_word(&stage))
    };
    let mut tokens: Vec<String> = Vec::new();
    for (word, objective) in Objective::ALL {
        let needed = objective.special_tokens().filter(|_| written(word));
        for token in needed {
            if !tokens.iter().any(|known| known == token) {
                tokens.push(token.to_owned());
            }
        }
    }
    tokens
}

/// The objective, and `shape` as it needs the model; the tokenizer must have its special tokens, and the model rows
/// for all tokens.
pub(crate) fn objective(
    reader: &Reader<'_>,
    tokenizer: &Source,
    shape: ModelShape,
) -> Outcome<(Objective, ModelShape)> {
    let objective = reader.choice("objective", Objective::ALL)?;
    let shape = fitted(reader, objective, shape)?;
    // A tokenizer that is trained gets the tokens.
    if let Source::Path { path } | Source::Hub { path, .. } = tokenizer {
        artefacts::check_objective(path, objective, shape.vocab_size)
            .map_err(|(message, hint)| reader.problem("objective", message, hint))?;
    }
    Ok((objective, shape))
}

/// The model as its objective needs it; refuses parts that could not be computed with it.
fn fitted(reader: &Reader<'_>, objective: Objective, shape: ModelShape) -> Outcome<ModelShape> {
    if objective == Objective::Causal {
        return Ok(shape);
    }
    let refuse = |why: &str, hint: &str| {
        let (word, family) = (objective.word(), shape.family.model_type());
        let message = format!("{word:?} needs a model {why}, this one is of family {family:?}");
        Err(reader.problem("objective", message, hint))
    };
    if shape.local.is_some() {
        let hint = "take a family without a sliding window, like \"gpt2\" or \"llama\"";
        return refuse("whose layers all see the whole text", hint);
    }
    match (objective, shape.positions) {
        (Objective::Masked, Positions::Alibi) => refuse(
            "that tells a token before from one behind, which ALiBi does not",
            "take positions = \"rotary\"",
        ),
        (Objective::Infill, Positions::Learned { .. }) => Ok(shape.with_places(SPAN_PLACES)),
        (Objective::Infill, _) => refuse(
            "with learned positions, to which those within a span are added",
            "take family \"gpt2\", \"gpt1\" or \"opt\"",
        ),
        _ => Ok(shape),
    }
}

/// What the model in a folder was last trained to predict: the next token, where its manifest says
/// nothing else.
///
/// # Errors
/// A manifest that cannot be read.
pub fn trained_objective(dir: &Path) -> Result<Objective, ManifestError> {
    let manifest = Manifest::read(dir)?;
    let stated = manifest
        .as_ref()
        .map(|manifest| &manifest.config["objective"]);
    let stated = stated.and_then(serde_json::Value::as_str);
    let mut known = Objective::ALL.iter();
    let found = known.find(|(word, _)| Some(*word) == stated);
    Ok(found.map_or(Objective::Causal, |(_, objective)| *objective))
}

/// Refuses to sample from a model that was trained on something else than next tokens, and by no later
/// stage since.
pub(crate) fn check_continues_text(
    reader: &Reader<'_>,
    resolver: &Resolver<'_>,
    model: &Source,
) -> Outcome<()> {
    let objective = match model {
        Source::Stage { name } => match resolver.stage(name).map(|stage| &stage.task) {
            Some(Task::Pretrain(plan)) => plan.objective,
            _ => Objective::Causal,
        },
        Source::Path { path } | Source::Hub { path, .. } => artefacts::objective(path)
            .map_err(|(message, hint)| reader.problem("model", message, hint))?,
    };
    if objective == Objective::Causal {
        return Ok(());
    }
    let message = format!(
        "must continue a text, and this model's objective was {:?}",
        objective.word()
    );
    let hint = "fine-tune it first (a stage of kind sft) and name that stage";
    Err(reader.problem("model", message, hint))
}
