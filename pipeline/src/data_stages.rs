//! The stages that need no tensors: the front runs them itself.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use datasets::{
    DataError, DatasetKind, ImportFormat, ImportOptions, Split, Text, Tokenizer, dataset_file,
};
use recipe::plan::{ImportPlan, Plan, StagePlan, Task, TokenizerPlan};
use runtime::{Manifest, RunFolder, WholeFolder};
use serde_json::{Value, json};

use crate::fingerprint::Fingerprint;

/// Runs an import or tokenizer stage; its `final/` appears whole or not at all. `None` for a stage
/// that needs the worker, otherwise what was made, in words.
///
/// # Errors
/// Input that cannot be used, or a disk that cannot be written.
pub fn run(
    plan: &Plan,
    stage: &StagePlan,
    run: &RunFolder,
    fingerprint: &Fingerprint,
) -> Result<Option<String>> {
    let (kind, made) = match &stage.task {
        Task::Import(import) => ("dataset", import_data(import, plan.seed, run, stage)?),
        Task::Tokenizer(tokenizer) => ("tokenizer", train_tokenizer(tokenizer, run, stage)?),
        _ => return Ok(None),
    };
    let mut manifest = Manifest::new(kind, &stage.name, 0);
    manifest.parents = fingerprint
        .parents
        .iter()
        .map(|(name, id)| (format!("stage:{name}"), id.clone()))
        .collect();
    manifest.config = fingerprint.config.clone();
    manifest.notes = made.notes;
    manifest.seal(made.folder.path())?;
    made.folder.commit()?;
    Ok(Some(made.summary))
}

struct Made {
    folder: WholeFolder,
    notes: BTreeMap<String, Value>,
    summary: String,
}

fn import_data(import: &ImportPlan, seed: u64, run: &RunFolder, stage: &StagePlan) -> Result<Made> {
    let folder = WholeFolder::create(&run.stage(&stage.name).final_dir())?;
    let options = ImportOptions {
        format: ImportFormat::parse(&import.format)?,
        path: import.path.clone(),
        heldout: import.heldout,
        seed,
        prompt_turns: import.prompt_turns,
        conversations: import.conversations,
        sentences: import.sentences.unwrap_or_default(),
    };
    let report = datasets::import(&options, folder.path())?;
    let dropped: u64 = report.dropped.values().sum();
    let summary = format!(
        "{} read, {dropped} left out, {} files; {} held-out rows removed because training has \
         their prompt",
        report.read,
        report.files.len(),
        report.heldout_prompts_removed
    );
    let notes = BTreeMap::from([("import".to_owned(), json!(report))]);
    Ok(Made {
        folder,
        notes,
        summary,
    })
}

fn train_tokenizer(tokenizer: &TokenizerPlan, run: &RunFolder, stage: &StagePlan) -> Result<Made> {
    let file = dataset_file(&tokenizer.data.path(run), DatasetKind::Text, Split::Train);
    let mut failure: Option<DataError> = None;
    let texts = datasets::batches::<Text>(&file)?
        .map_while(|batch| batch.map_err(|error| failure = Some(error)).ok())
        .flatten()
        .map(|row| row.text);
    let trained = Tokenizer::train_with(texts, tokenizer.vocab_size, &tokenizer.special_tokens);
    if let Some(error) = failure {
        return Err(error.into());
    }
    let trained = trained.with_context(|| format!("stage `{}`", stage.name))?;
    let folder = WholeFolder::create(&run.stage(&stage.name).final_dir())?;
    trained.save(folder.path())?;
    let notes = BTreeMap::from([("vocab_size".to_owned(), json!(trained.vocab_size()))]);
    let summary = format!("{} tokens", trained.vocab_size());
    Ok(Made {
        folder,
        notes,
        summary,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fingerprint::Fingerprints;
    use crate::fixtures::pipeline;
    use std::collections::BTreeSet;

    #[test]
    fn synthetic_data_becomes_a_corpus_and_a_tokenizer() -> Result<(), Box<dyn std::error::Error>> {
        let mut p = pipeline()?;
        if let Task::Import(import) = &mut p.plan.stages[0].task {
            import.format = "synthetic".into();
            import.path = None;
            import.conversations = 200;
        }
        for name in ["corpus", "tokenizer"] {
            let stage = p.plan.stage(name).ok_or("no such stage")?;
            let fingerprint = Fingerprints::new(&p.plan, &p.run).of(stage, &BTreeSet::new())?;
            let made = run(&p.plan, stage, &p.run, &fingerprint)?;
            assert!(made.is_some());
        }
        let corpus = p.run.stage("corpus").final_dir();
        let manifest = Manifest::verify(&corpus)?.ok_or("no manifest")?;
        assert!(manifest.files.contains_key("text.parquet"));
        let tokenizer =
            Manifest::verify(&p.run.stage("tokenizer").final_dir())?.ok_or("no manifest")?;
        assert_eq!(
            tokenizer.parents,
            [("stage:corpus".to_owned(), manifest.id())].into()
        );
        assert_eq!(
            Tokenizer::load(&p.run.stage("tokenizer").final_dir())?.vocab_size(),
            300
        );
        let sft = p.plan.stage("sft").ok_or("no sft")?;
        let fingerprint = Fingerprints::new(&p.plan, &p.run).of(sft, &BTreeSet::new())?;
        assert_eq!(run(&p.plan, sft, &p.run, &fingerprint)?, None);
        Ok(())
    }
}
