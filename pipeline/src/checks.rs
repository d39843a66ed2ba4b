//! What is looked at before anything starts: that inputs from outside exist and are what they
//! should be, so that a mistake shows at once and not after hours of training.

use std::error::Error;
use std::path::{Path, PathBuf};

use datasets::{
    Comparison, DataError, DatasetKind, Demonstration, ImportFormat, Prompt, Row, Split, Text,
    Tokenizer, dataset_file,
};
use recipe::plan::{StagePlan, Task};
use runtime::Manifest;

/// What is wrong with an input.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// It is not there.
    #[error(
        "stages.{stage}.{key}: {} does not exist\n  hint: paths in a configuration are relative \
         to its file", path.display()
    )]
    Missing {
        /// The stage.
        stage: String,
        /// The key that names it.
        key: String,
        /// The path, resolved.
        path: PathBuf,
    },
    /// A folder that should hold a model or tokenizer does not.
    #[error(
        "stages.{stage}.{key}: {} has no {file}\n  hint: give the folder of a Hugging Face \
         model; for a stage of a run that is its final/", path.display()
    )]
    Incomplete {
        /// The stage.
        stage: String,
        /// The key that names it.
        key: String,
        /// The folder.
        path: PathBuf,
        /// What it lacks.
        file: &'static str,
    },
    /// It is not what it should be.
    #[error("stages.{stage}.{key}: {source}")]
    Unusable {
        /// The stage.
        stage: String,
        /// The key that names it.
        key: String,
        /// What is wrong, naming file and place.
        source: Box<dyn Error + Send + Sync>,
    },
}

/// Checks every input of a stage that comes from outside the run.
///
/// # Errors
/// The first that is missing, malformed or damaged; it names stage, key and path.
pub fn check_inputs(stage: &StagePlan) -> Result<(), InputError> {
    for (key, source) in stage.inputs() {
        if let Some(path) = source.outside() {
            check_path(stage, &key, path)?;
        }
    }
    Ok(())
}

fn check_path(stage: &StagePlan, key: &str, path: &Path) -> Result<(), InputError> {
    let (stage_name, path_buf) = (stage.name.clone(), path.to_path_buf());
    if !path.exists() {
        return Err(InputError::Missing {
            stage: stage_name,
            key: key.into(),
            path: path_buf,
        });
    }
    let checked = match (&stage.task, data_kind(&stage.task, key)) {
        (Task::Import(import), _) => ImportFormat::parse(&import.format).map(drop).map_err(boxed),
        (_, Some(kind)) => check_rows(path, kind).map_err(boxed),
        (_, None) => {
            if let Some(file) = lacks(path, key) {
                let key = key.into();
                return Err(InputError::Incomplete {
                    stage: stage_name,
                    key,
                    path: path_buf,
                    file,
                });
            }
            check_folder(path)
        }
    };
    checked.map_err(|source| InputError::Unusable {
        stage: stage_name,
        key: key.into(),
        source,
    })
}

fn boxed(error: impl Error + Send + Sync + 'static) -> Box<dyn Error + Send + Sync> {
    error.into()
}

/// The first file that a model's or tokenizer's folder should have and has not.
fn lacks(dir: &Path, key: &str) -> Option<&'static str> {
    let wanted: &[&'static str] = if key == "tokenizer" {
        &["tokenizer.json"]
    } else {
        &["config.json", "tokenizer.json"]
    };
    // sentencepiece's file takes the place of tokenizer.json.
    let there = |file: &str| match file {
        "tokenizer.json" => dir.join(file).exists() || dir.join("tokenizer.model").exists(),
        _ => dir.join(file).exists(),
    };
    wanted.iter().find(|file| !there(file)).copied()
}

fn check_folder(dir: &Path) -> Result<(), Box<dyn Error + Send + Sync>> {
    Tokenizer::load(dir)?.require_eos()?;
    Manifest::verify(dir)?;
    Ok(())
}

/// What kind of rows a key names; `None` for models and tokenizers.
fn data_kind(task: &Task, key: &str) -> Option<DatasetKind> {
    match (task, key) {
        (Task::Sft(_), "data") | (_, "demonstrations") => Some(DatasetKind::Demonstrations),
        (Task::Reward(_), "data") => Some(DatasetKind::Comparisons),
        (_, "data" | "pretrain_data") => Some(DatasetKind::Text),
        (_, "prompts") => Some(DatasetKind::Prompts),
        _ => None,
    }
}

fn check_rows(path: &Path, kind: DatasetKind) -> Result<(), DataError> {
    match kind {
        // Text may be larger than memory: its schema and first rows must do.
        DatasetKind::Text => {
            let file = dataset_file(path, kind, Split::Train);
            datasets::batches::<Text>(&file)?
                .next()
                .transpose()
                .map(drop)
        }
        DatasetKind::Demonstrations => both_splits::<Demonstration>(path),
        DatasetKind::Comparisons => both_splits::<Comparison>(path),
        DatasetKind::Prompts => both_splits::<Prompt>(path),
    }
}

fn both_splits<R: Row>(path: &Path) -> Result<(), DataError> {
    for split in [Split::Train, Split::Heldout] {
        datasets::load_split::<R>(path, split)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::pipeline;
    use recipe::plan::Source;
    use std::fs;

    type Outcome = Result<(), Box<dyn std::error::Error>>;

    /// The `sft` stage of the fixture, with model and data from outside.
    fn stage(model: PathBuf, data: PathBuf) -> Result<StagePlan, Box<dyn std::error::Error>> {
        let mut stage = pipeline()?.plan.stages.pop().ok_or("no stage")?;
        if let Task::Sft(sft) = &mut stage.task {
            sft.model = Source::Path { path: model };
            sft.data = Source::Path { path: data };
        }
        Ok(stage)
    }

    fn complaint(stage: &StagePlan) -> Result<String, Box<dyn std::error::Error>> {
        Ok(check_inputs(stage)
            .err()
            .ok_or("must be refused")?
            .to_string())
    }

    #[test]
    fn inputs_that_cannot_be_used_are_named() -> Outcome {
        let dir = tempfile::tempdir()?;
        let (model, data) = (dir.path().join("model"), dir.path().join("data.jsonl"));
        let stage = stage(model.clone(), data)?;
        let message = complaint(&stage)?;
        assert!(message.contains("stages.sft.model") && message.contains("does not exist"));
        fs::create_dir(&model)?;
        fs::write(model.join("config.json"), "{}")?;
        assert!(complaint(&stage)?.contains("has no tokenizer.json"));
        fs::write(model.join("tokenizer.json"), "{}")?;
        assert!(complaint(&stage)?.contains("stages.sft.model: "));
        Ok(())
    }

    #[test]
    fn data_is_read_as_the_kind_that_its_key_means() -> Outcome {
        let dir = tempfile::tempdir()?;
        let data = dir.path().join("data.jsonl");
        let mut stage = stage(dir.path().into(), data.clone())?;
        if let Task::Sft(sft) = &mut stage.task {
            sft.model = Source::Stage {
                name: "pretrain".into(),
            };
        }
        fs::write(
            &data,
            r#"{"id": "1", "text": "no messages here", "source": "x"}"#,
        )?;
        let message = complaint(&stage)?;
        assert!(
            message.contains("stages.sft.data") && message.contains("messages"),
            "{message}"
        );
        let row = |i: usize| {
            let said = format!(
                r#"[{{"role":"user","content":"q{i}"}},{{"role":"assistant","content":"a"}}]"#
            );
            format!("{{\"id\":\"{i}\",\"messages\":{said}}}\n")
        };
        fs::write(&data, (0..200).map(row).collect::<String>())?;
        check_inputs(&stage)?;
        Ok(())
    }
}
