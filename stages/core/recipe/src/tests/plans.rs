//! Order, references, defaults, overrides, and the plan's text.

use super::{BASE, Project, base_with};
use crate::plan::{Duration, KlPlan, Plan, Source, Task};

fn names(plan: &Plan) -> Vec<&str> {
    plan.stages
        .iter()
        .map(|stage| stage.name.as_str())
        .collect()
}

#[test]
fn stages_come_after_what_they_refer_to() {
    let plan = base_with(&[]);
    let expected = [
        "corpus",
        "tokenizer",
        "pretrain",
        "sft",
        "comparisons",
        "reward",
        "ppo",
    ];
    assert_eq!(names(&plan), expected);
    for (index, stage) in plan.stages.iter().enumerate() {
        for (key, source) in stage.inputs() {
            if let Source::Stage { name } = source {
                let parent = names(&plan).iter().position(|other| *other == name);
                assert!(
                    parent.is_some_and(|parent| parent < index),
                    "{}.{key}",
                    stage.name
                );
            }
        }
    }
}

#[test]
fn dependants_are_transitive() {
    let plan = base_with(&[]);
    let dependants = |name| -> Vec<&str> {
        plan.dependants(name)
            .iter()
            .map(|stage| stage.name.as_str())
            .collect()
    };
    assert_eq!(dependants("comparisons"), ["reward", "ppo"]);
    assert_eq!(
        dependants("tokenizer"),
        ["pretrain", "sft", "comparisons", "reward", "ppo"]
    );
    assert!(dependants("ppo").is_empty());
}

#[test]
fn inputs_name_their_keys() {
    let plan = base_with(&[]);
    let keys = |name: &str| -> Vec<String> {
        let stage = plan.stage(name).unwrap_or_else(|| panic!("no {name}"));
        stage.inputs().into_iter().map(|(key, _)| key).collect()
    };
    assert_eq!(
        keys("ppo"),
        ["model", "reward[0].model", "prompts", "pretrain_data"]
    );
    assert_eq!(keys("pretrain"), ["data", "tokenizer"]);
    assert!(keys("corpus").is_empty());
}

#[test]
fn a_plan_survives_its_text() {
    let overrides = [
        ("stages.ppo.kl.target", "6"),
        ("stages.ppo.value_clip", "false"),
        ("preset", "nplus"),
    ];
    for plan in [base_with(&[]), base_with(&overrides)] {
        let text = plan.to_toml().expect("a text");
        assert_eq!(Plan::from_toml(&text).expect("a plan"), plan, "{text}");
    }
}

#[test]
fn another_version_of_the_plan_is_refused() {
    let text = base_with(&[]).to_toml().expect("a text");
    let newer = text.replace("format_version = 1", "format_version = 9");
    let error = Plan::from_toml(&newer).expect_err("refused").to_string();
    assert_eq!(
        error,
        "format_version is 9, this program reads 1\n  hint: use the version of rlhf that started the run"
    );
    let error = Plan::from_toml("name = 3")
        .expect_err("refused")
        .to_string();
    assert!(error.starts_with("not a plan: "), "{error}");
}

#[test]
fn execution_is_outside_the_hashed_configuration() {
    let before = base_with(&[]);
    let after = base_with(&[
        ("stages.ppo.dtype", "bf16"),
        ("stages.ppo.micro_batch", "2"),
        ("stages.ppo.save_every", "3"),
        ("stages.ppo.keep", "3"),
        ("stages.ppo.checkpointing", "true"),
    ]);
    let json = |plan: &Plan| plan.stage("ppo").expect("ppo").config_json();
    assert_eq!(json(&before), json(&after));
    assert_ne!(
        json(&before),
        json(&base_with(&[("stages.ppo.clip", "0.3")]))
    );
}

#[test]
fn the_value_optimizer_inherits_the_policys() {
    let plan = base_with(&[
        ("stages.ppo.optimizer.warmup", "7"),
        ("stages.ppo.value_optimizer.lr", "3"),
    ]);
    let Task::Ppo(ppo) = &plan.stage("ppo").expect("ppo").task else {
        panic!("no ppo");
    };
    assert_eq!(ppo.policy_optimizer.lr.to_bits(), 1e-4_f64.to_bits());
    assert_eq!(ppo.value_optimizer.lr.to_bits(), 3.0_f64.to_bits());
    assert_eq!(ppo.value_optimizer.warmup, 7);
}

#[test]
fn a_response_without_eos_gets_another_score_or_a_lower_one() {
    let rule = |overrides: &[(&str, &str)]| {
        let plan = base_with(overrides);
        let Task::Ppo(ppo) = &plan.stage("ppo").expect("ppo").task else {
            panic!("no ppo");
        };
        ppo.eos_rule
    };
    let score = |overrides: &[(&str, &str)]| rule(overrides).without_eos(0.75);
    let close = |a: f64, b: f64| (a - b).abs() < f64::EPSILON;
    assert!(close(score(&[]), -1.0), "the default");
    assert!(close(score(&[("stages.ppo.no_eos_score", "-0.5")]), -0.5));
    assert!(close(score(&[("stages.ppo.no_eos_penalty", "0.5")]), 0.25));
    assert!(close(score(&[("stages.ppo.no_eos_score", "false")]), 0.75));
}

#[test]
fn the_command_line_wins_over_the_file() {
    let plan = base_with(&[
        ("stages.sft.steps", "9"),
        ("stages.ppo.reward.0.weight", "0.5"),
    ]);
    let Task::Sft(sft) = &plan.stage("sft").expect("sft").task else {
        panic!("no sft");
    };
    assert_eq!(sft.train.duration, Duration::Steps(9));
    let Task::Ppo(ppo) = &plan.stage("ppo").expect("ppo").task else {
        panic!("no ppo");
    };
    assert!((ppo.reward[0].weight - 0.5).abs() < f64::EPSILON);
    assert_eq!(ppo.kl, KlPlan::Fixed { coef: 0.02 });
}

#[test]
fn numbers_name_costs_and_every_key() {
    let plan = base_with(&[]);
    let numbers = |name: &str| crate::stage_numbers(&plan, plan.stage(name).expect("the stage"));
    let find = |name: &str, key: &str| {
        let numbers = numbers(name);
        let found = numbers.iter().find(|(known, _)| known == key);
        found
            .unwrap_or_else(|| panic!("{name}: no {key} in {numbers:?}"))
            .1
            .clone()
    };
    // 2 * 300 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 192 + 2 * 64) + 64
    assert_eq!(find("pretrain", "parameters"), "145,216");
    assert_eq!(find("pretrain", "tokens, at most"), "102,400");
    assert_eq!(
        find("sft", "updates"),
        "2 epochs, counted once the data is there"
    );
    assert_eq!(find("comparisons", "samples"), "4,400");
    assert_eq!(find("ppo", "episodes"), "128");
    assert_eq!(find("ppo", "updates"), "16");
    assert_eq!(find("ppo", "pretraining tokens (ptx)"), "8,192");
    assert_eq!(find("ppo", "ema"), "off");
    assert_eq!(find("ppo", "policy_optimizer.lr"), "0.0001");
    assert_eq!(find("ppo", "micro_batch"), "8");
    assert_eq!(find("ppo", "max_logprob_gap"), "0.001");
}

#[test]
fn a_file_without_pretraining_needs_no_tokenizer_table() {
    let start = BASE.find("[stages.corpus]").expect("the corpus");
    let end = BASE.find("[stages.pretrain]").expect("the pretraining");
    let project = Project::new(&format!("name = \"data\"\n{}", &BASE[start..end]));
    assert_eq!(names(&project.load(&[]).expect("a plan")), ["corpus"]);
}

/// The experiments that come with the program, their data replaced by empty files.
#[test]
fn every_experiment_resolves() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../experiments");
    let mut num_experiments = 0;
    for experiment in std::fs::read_dir(folder).expect("the experiments") {
        let file = experiment.expect("an entry").path().join("pipeline.toml");
        let Ok(text) = std::fs::read_to_string(&file) else {
            continue;
        };
        let project = Project::new(&text);
        for line in text.lines() {
            if let Some(path) = line.strip_prefix("path = ") {
                project.write(path.trim_matches('"'), "");
            }
        }
        project
            .load(&[])
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        num_experiments += 1;
    }
    assert!(
        num_experiments >= 2,
        "{num_experiments} experiments in {folder}"
    );
}
