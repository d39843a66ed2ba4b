//! Mistakes in a configuration are refused before anything starts, with exit code 2 and an error that
//! names file, line or field, value and remedy.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::support::{Outcome, Said, assert_nothing_trained, rlhf, rlhf_run, say, scratch, tiny};

/// The tiny pipeline's configuration with a mistake in it, in a folder of its own.
pub struct Case {
    folder: TempDir,
    config: PathBuf,
    text: String,
}

impl Case {
    pub fn tiny() -> Outcome<Self> {
        let folder = scratch()?;
        let config = folder.path().join("pipeline.toml");
        Ok(Self {
            folder,
            config,
            text: fs::read_to_string(tiny())?,
        })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Replaces a line of a stage, and returns the place `FILE:LINE:` of the new one.
    #[track_caller]
    pub fn replace(&mut self, stage: &str, line: &str, with: &str) -> String {
        let table = self
            .text
            .find(&format!("[stages.{stage}]"))
            .expect("the stage");
        let start = table
            + self.text[table..]
                .find(&format!("\n{line}\n"))
                .expect("the line")
            + 1;
        self.text.replace_range(start..start + line.len(), with);
        let line_number = self.text[..start].matches('\n').count() + 1;
        format!("{}:{line_number}:", self.config.display())
    }

    /// Runs it, and checks that it is refused.
    #[track_caller]
    pub fn is_refused(&self, words: &[&str]) -> Said {
        fs::write(&self.config, &self.text).expect("a configuration");
        let run = self.path("run");
        let said = say(&mut rlhf_run(&self.config, &run))
            .expect("rlhf")
            .ended(2)
            .names(words);
        let said = said.names(&["error: ", "hint: "]);
        assert!(said.out.is_empty(), "{}", said.out);
        assert_nothing_trained(&run);
        let mut plan = rlhf();
        let planned = say(plan.arg("plan").arg(&self.config))
            .expect("rlhf")
            .ended(2)
            .names(words);
        assert!(planned.out.is_empty(), "{}", planned.out);
        said
    }
}

#[test]
fn an_unknown_or_misspelt_key() -> Outcome {
    let mut case = Case::tiny()?;
    let place = case.replace(
        "sft",
        r#"model = "stage:pretrain""#,
        r#"modle = "stage:pretrain""#,
    );
    case.is_refused(&[
        &place,
        "stages.sft.modle",
        "unknown key",
        "did you mean `model`?",
    ]);

    let mut case = Case::tiny()?;
    let with = "optimizer = { lr = 3e-3, beta = [0.9, 0.95] }";
    let line = r#"optimizer = { lr = 3e-3, warmup = 10, schedule = "cosine", floor = 0.1 }"#;
    let place = case.replace("pretrain", line, with);
    case.is_refused(&[
        &place,
        "stages.pretrain.optimizer.beta",
        "did you mean `betas`?",
    ]);

    let mut case = Case::tiny()?;
    let place = case.replace("ppo", r#"kind = "ppo""#, r#"kind = "poo""#);
    case.is_refused(&[&place, "stages.ppo.kind", "poo", "ppo"]);
    Ok(())
}

#[test]
fn several_mistakes_are_told_at_once() -> Outcome {
    let mut case = Case::tiny()?;
    let first = case.replace("sft", "steps = 120", "stepps = 120");
    let second = case.replace("reward", "steps = 60", "stps = 60");
    case.is_refused(&[&first, "stages.sft.stepps", &second, "stages.reward.stps"]);
    Ok(())
}

#[test]
fn a_value_of_the_wrong_type_or_out_of_bounds() -> Outcome {
    for (line, with, key, value) in [
        (
            "batch = 16",
            r#"batch = "many""#,
            "stages.sft.batch",
            r#""many""#,
        ),
        ("batch = 16", "batch = 1.5", "stages.sft.batch", "1.5"),
        ("batch = 16", "batch = 0", "stages.sft.batch", "0"),
        (
            "dropout = 0.1",
            "dropout = 1.5",
            "stages.sft.dropout",
            "1.5",
        ),
        (
            r#"overlong = "left""#,
            r#"overlong = "right""#,
            "stages.sft.overlong",
            "right",
        ),
    ] {
        let mut case = Case::tiny()?;
        let place = case.replace("sft", line, with);
        case.is_refused(&[&place, key, value]);
    }
    Ok(())
}

#[test]
fn text_that_is_not_toml() -> Outcome {
    let mut case = Case::tiny()?;
    let place = case.replace("sft", "batch = 16", "batch = = 16");
    case.is_refused(&[&place, "not valid TOML"]);
    Ok(())
}

#[test]
fn a_stage_that_refers_to_itself_or_to_nothing() -> Outcome {
    let line = r#"model = "stage:pretrain""#;
    for (with, words) in [
        (r#"model = "stage:sft""#, ["stages.sft.model", "itself"]),
        (
            r#"model = "stage:pretrian""#,
            ["pretrian", "did you mean `pretrain`?"],
        ),
        (
            r#"model = "stage:corpus""#,
            ["stages.sft.model", "must be a language model"],
        ),
    ] {
        let mut case = Case::tiny()?;
        let place = case.replace("sft", line, with);
        case.is_refused(&[&place]).names(&words);
    }
    let mut case = Case::tiny()?;
    case.replace("sft", line, r#"model = "stage:ppo""#);
    case.is_refused(&["pipeline.toml:", "stages.ppo.model", "sft -> ppo -> sft"]);
    Ok(())
}

#[test]
fn a_file_that_is_missing() -> Outcome {
    let mut case = Case::tiny()?;
    let place = case.replace(
        "sft",
        r#"data = "stage:corpus""#,
        r#"data = "path:gone.parquet""#,
    );
    let path = case.path("gone.parquet");
    case.is_refused(&[&place, "stages.sft.data", &path.to_string_lossy()]);

    let mut case = Case::tiny()?;
    let place = case.replace(
        "sft",
        r#"model = "stage:pretrain""#,
        r#"model = "path:no-model""#,
    );
    case.is_refused(&[
        &place,
        "stages.sft.model",
        &case.path("no-model").to_string_lossy(),
    ]);

    let gone = case.path("gone.toml");
    let said = say(&mut rlhf_run(&gone, &case.path("run")))?.ended(2);
    said.names(&["gone.toml", "hint: "]);
    Ok(())
}

#[test]
fn a_batch_that_does_not_divide() -> Outcome {
    let mut case = Case::tiny()?;
    let place = case.replace("ppo", "minibatch = 8", "minibatch = 7");
    case.is_refused(&[&place, "stages.ppo.minibatch", "must divide batch 32", "7"]);

    let mut case = Case::tiny()?;
    let place = case.replace("sft", "dropout = 0.1", "micro_batch = 5");
    case.is_refused(&[
        &place,
        "stages.sft.micro_batch",
        "must divide batch 16",
        "5",
    ]);
    Ok(())
}

#[test]
fn prompts_longer_than_the_context() -> Outcome {
    let mut case = Case::tiny()?;
    case.replace("ppo", "max_prompt_tokens = 32", "max_prompt_tokens = 60");
    case.is_refused(&["stages.ppo.", "76", "64", "max_p"]);

    let mut case = Case::tiny()?;
    let place = case.replace("sft", "context = 64", "context = 65");
    case.is_refused(&[&place, "stages.sft.context", "65", "64"]);
    Ok(())
}
