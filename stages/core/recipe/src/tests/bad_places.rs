//! Mistakes beside the file's own text: on the command line, in files, folders and datasets.

use super::{BASE, Project, hub_of};
use crate::error::ConfigError;

#[test]
fn overrides() {
    let project = Project::new(BASE);
    for (key, value, expected) in [
        (
            "stages.sft.modle",
            "x",
            "--set stages.sft.modle=x: stages.sft.modle: unknown key\n  hint: did you mean `model`?",
        ),
        (
            "stages.stf.batch",
            "8",
            "--set stages.stf.batch=8: stages.stf.batch: the file has no stage called \"stf\"\n  hint: did you mean `sft`? known stages: ppo, corpus, pretrain, sft, comparisons, reward",
        ),
        (
            "stages.sft.batch",
            "many",
            "--set stages.sft.batch=many: stages.sft.batch: must be a whole number of at least 1, is \"many\"\n  hint: give a whole number of at least 1",
        ),
        (
            "stages.ppo.reward.3.weight",
            "1",
            "--set stages.ppo.reward.3.weight=1: stages.ppo.reward.3.weight: \"3\" must be the number of an item, from 0 and below 1\n  hint: set a key of a table",
        ),
        (
            "stages.sft.batch.x",
            "1",
            "--set stages.sft.batch.x=1: stages.sft.batch.x: \"x\" is below 16, which is no table\n  hint: set a key of a table",
        ),
        (
            "stages..batch",
            "1",
            "--set stages..batch=1: stages..batch: is no path of keys\n  hint: write --set stages.sft.batch=16",
        ),
    ] {
        let refusal = project.refusal(&[(key, value)]);
        assert!(refusal.starts_with(expected), "{key}: {refusal}");
    }
}

#[test]
fn files() {
    let project = Project::new("name = base");
    let refusal = project.refusal(&[]);
    assert!(
        refusal.starts_with("pipeline.toml:1:8: not valid TOML: "),
        "{refusal}"
    );
    assert_eq!(refusal.lines().count(), 2, "{refusal}");
    let error = crate::load(
        &project.dir.path().join("none.toml"),
        &[],
        &hub_of(project.dir.path(), "none"),
    )
    .expect_err("refused");
    assert!(matches!(error, ConfigError::Read { .. }), "{error}");
    let refusal = Project::new("name = \"empty\"").refusal(&[]);
    assert_eq!(
        refusal,
        "pipeline.toml: stages: there are no stages\n  hint: add a table [stages.NAME] with a kind"
    );
}

/// A model folder of ours or another's, as far as a plan looks at it.
pub(super) fn folder(project: &Project, name: &str, config: &str) {
    project.write(&format!("{name}/config.json"), config);
    project.write(&format!("{name}/model.safetensors"), "");
    let texts = (0..50).map(|index| format!("{name} text {index} to learn from, again and again"));
    let tokenizer = datasets::Tokenizer::train(texts, 270).expect("a tokenizer");
    tokenizer
        .save(&project.dir.path().join(name))
        .expect("saved");
}

pub(super) fn config(architecture: &str, more: &str) -> String {
    format!(
        "{{\"model_type\": \"llama\", \"architectures\": [\"{architecture}\"], \"vocab_size\": 270, \
         \"max_position_embeddings\": 64, \"hidden_size\": 16, \"intermediate_size\": 32, \
         \"num_hidden_layers\": 1, \"num_attention_heads\": 2 {more}}}"
    )
}

#[test]
fn model_folders() {
    let project = Project::new(BASE);
    folder(&project, "policy", &config("LlamaForCausalLM", ""));
    folder(
        &project,
        "judge",
        &config("LlamaForSequenceClassification", ""),
    );
    folder(
        &project,
        "packed",
        &config("LlamaForCausalLM", ", \"quantization_config\": 4"),
    );
    project.write("bare/config.json", &config("LlamaForCausalLM", ""));
    project.write("broken/config.json", "{");
    let cases = [
        ("bare", "no such file: DIR/bare/tokenizer.json"),
        (
            "broken",
            "DIR/broken/config.json: not valid JSON: EOF while parsing an object at line 1 column 1",
        ),
        (
            "packed",
            "DIR/packed/config.json: quantization_config: 4 is not supported\n  hint: supported: none",
        ),
        (
            "judge",
            "must be a language model, DIR/judge/config.json is LlamaForSequenceClassification",
        ),
    ];
    for (name, expected) in cases {
        let refusal = project.refusal(&[("stages.sft.model", name)]);
        let start = format!("--set stages.sft.model={name}: stages.sft.model: {expected}");
        assert!(refusal.starts_with(&start), "{name}: {refusal}");
    }
    project
        .load(&[("stages.sft.model", "path:policy")])
        .expect("a policy from a folder");
}

#[test]
fn datasets_by_path() {
    let project = Project::new(BASE);
    project.write("rows.csv", "");
    project.write("folder/demonstrations.parquet", "");
    let refusal = project.refusal(&[("stages.sft.data", "rows.csv")]);
    assert!(
        refusal.contains("rows.csv is neither .parquet nor .jsonl"),
        "{refusal}"
    );
    let refusal = project.refusal(&[("stages.sft.data", "path:folder")]);
    assert!(
        refusal.contains("no such file: DIR/folder/demonstrations.heldout.parquet"),
        "{refusal}"
    );
    project.write("folder/demonstrations.heldout.parquet", "");
    project
        .load(&[("stages.sft.data", "path:folder")])
        .expect("a dataset");
}
