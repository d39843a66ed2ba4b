//! Models on the hub, as far as a plan knows them.

use super::bad_places::{config, folder};
use super::{BASE, COMMIT, Project};
use crate::plan::{Plan, Source, Task};

const SFT: (&str, &str) = ("stages.sft.model", "hub:org/tiny");

fn project() -> Project {
    let project = Project::new(BASE);
    folder(&project, "hub-model", &config("LlamaForCausalLM", ""));
    // Weights come when they are needed.
    std::fs::remove_file(project.dir.path().join("hub-model/model.safetensors")).expect("removed");
    project
}

fn sft_source(plan: &Plan) -> Source {
    match plan.stage("sft").map(|stage| &stage.task) {
        Some(Task::Sft(sft)) => sft.model.clone(),
        other => panic!("no sft stage: {other:?}"),
    }
}

#[test]
fn a_model_is_resolved_to_its_commit_and_survives_the_plans_text() {
    let project = project();
    let plan = project.load(&[SFT]).expect("a plan");
    let path = project.dir.path().join("hub-model");
    let expected = Source::Hub {
        repo: "org/tiny".into(),
        revision: "main".into(),
        commit: COMMIT.into(),
        path,
    };
    assert_eq!(sft_source(&plan), expected);
    let Some(Task::Sft(sft)) = plan.stage("sft").map(|stage| &stage.task) else {
        panic!("no sft stage")
    };
    assert_eq!(sft.shape.vocab_size, 270);
    let text = plan.to_toml().expect("text");
    assert_eq!(Plan::from_toml(&text).expect("a plan"), plan);
    let numbers = crate::stage_numbers(&plan, plan.stage("sft").expect("sft"));
    assert!(
        numbers.contains(&("model.commit".into(), COMMIT.into())),
        "{numbers:?}"
    );
}

#[test]
fn what_counts_is_the_commit_and_not_how_it_was_asked_for_nor_where_it_lies() {
    let (here, there) = (project(), project());
    let pinned = format!("hub:org/tiny@{COMMIT}");
    let portable = |plan: &Plan| {
        let stage = plan.stage("sft").expect("sft");
        stage.portable_config(|_| Some("hash".into()))
    };
    let unpinned = portable(&here.load(&[SFT]).expect("a plan"));
    let other = portable(
        &there
            .load(&[("stages.sft.model", &pinned)])
            .expect("a plan"),
    );
    assert_eq!(unpinned, other);
    let model = serde_json::json!({"from": "hub", "repo": "org/tiny", "commit": COMMIT});
    assert_eq!(unpinned["model"], model);
}

#[test]
fn a_tokenizer_may_come_from_the_hub() {
    let text = BASE.replace(
        "kind = \"bpe\"\nvocab_size = 300\ndata = \"stage:corpus\"",
        "kind = \"path\"\npath = \"hub:org/tiny\"",
    );
    let project = Project::new(&text);
    folder(&project, "hub-model", &config("LlamaForCausalLM", ""));
    let plan = project.load(&[]).expect("a plan");
    let Some(Task::Pretrain(pretrain)) = plan.stage("pretrain").map(|stage| &stage.task) else {
        panic!("no pretrain stage")
    };
    assert!(matches!(&pretrain.tokenizer, Source::Hub { repo, .. } if repo == "org/tiny"));
}

#[test]
fn mistakes_name_the_key_and_what_to_do() {
    let project = project();
    for (key, value, expected) in [
        (
            "stages.sft.model",
            "hub:org/other",
            "hub:org/other@main is not there\n  hint: check the name",
        ),
        (
            "stages.sft.model",
            "hub:org/tiny@a b",
            "\"a b\" cannot be a revision\n  hint: give a branch",
        ),
        (
            "stages.ppo.reward.0.model",
            "hub:org/tiny",
            "must be a reward model",
        ),
        (
            "stages.sft.data",
            "hub:org/tiny",
            "must be \"stage:NAME\" or a path, is \"hub:org/tiny\"",
        ),
    ] {
        let refusal = project.refusal(&[(key, value)]);
        assert!(
            refusal.starts_with(&format!("--set {key}={value}: ")),
            "{refusal}"
        );
        assert!(refusal.contains(expected), "{refusal}");
    }
}
