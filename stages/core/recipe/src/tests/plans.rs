//! Order, references, defaults, overrides, and the plan's text.

use std::fs;

use super::bad_places::{config, folder};
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
    let newer = text.replace("format_version = 2", "format_version = 9");
    let error = Plan::from_toml(&newer).expect_err("refused").to_string();
    assert_eq!(
        error,
        "format_version is 9, this program reads 2\n  hint: use the version of rlhf that started the run"
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
    let value = ppo.value_optimizer.as_ref().expect("an optimizer");
    assert_eq!(value.lr.to_bits(), 3.0_f64.to_bits());
    assert_eq!(value.warmup, 7);
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

/// A model folder with the tokenizer of another.
fn with_tokenizer_of(other: &str, project: &Project, name: &str, config: &str) {
    project.write(&format!("{name}/config.json"), config);
    for file in [
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ] {
        let from = project.dir.path().join(other).join(file);
        fs::copy(from, project.dir.path().join(name).join(file)).expect("copied");
    }
}

/// Where tokenizers can be compared they are; a stage's and a folder's count as different.
#[test]
fn the_value_model_starts_from_the_first_reward_model_that_reads_the_policys_ids() {
    let project = Project::new(BASE);
    folder(&project, "policy", &config("LlamaForCausalLM", ""));
    let scalar = config("LlamaForSequenceClassification", "");
    folder(&project, "other", &scalar);
    let narrow = scalar.replace("\"hidden_size\": 16", "\"hidden_size\": 8");
    with_tokenizer_of("policy", &project, "same", &narrow);
    with_tokenizer_of("policy", &project, "fewer", &scalar.replace("270", "269"));
    let own = "path:policy";
    let cases = [
        (own, vec!["path:other"], vec![true], None, 16),
        (own, vec!["path:same"], vec![false], Some(0), 8),
        (
            own,
            vec!["path:other", "path:same"],
            vec![true, false],
            Some(1),
            8,
        ),
        (own, vec!["path:fewer"], vec![true], None, 16),
        (
            "stage:sft",
            vec!["path:other", "stage:reward"],
            vec![true, false],
            Some(1),
            64,
        ),
        ("stage:sft", vec!["path:same"], vec![true], None, 64),
    ];
    for (model, rewards, own_tokenizers, start, width) in cases {
        let rewards: Vec<String> = rewards
            .iter()
            .map(|model| format!("{{ model = \"{model}\" }}"))
            .collect();
        let rewards = format!("reward = [{}]", rewards.join(", "));
        project.write(
            "pipeline.toml",
            &BASE.replace("reward = [{ model = \"stage:reward\" }]", &rewards),
        );
        let plan = project
            .load(&[("stages.ppo.model", model)])
            .expect(&rewards);
        let stage = plan.stage("ppo").expect("ppo");
        let Task::Ppo(ppo) = &stage.task else {
            panic!("no ppo");
        };
        let found: Vec<bool> = ppo
            .reward
            .iter()
            .map(|reward| reward.own_tokenizer)
            .collect();
        assert_eq!(found, own_tokenizers, "{model} {rewards}");
        assert_eq!(ppo.value_start(), start, "{model} {rewards}");
        assert_eq!(ppo.value_shape.width, width, "{model} {rewards}");
        let numbers = crate::stage_numbers(&plan, stage);
        let words = start.map_or("the policy, with a head of zeros".to_owned(), |index| {
            format!("reward[{index}]")
        });
        let said = numbers
            .iter()
            .find(|(key, _)| key == "the value model starts from");
        assert!(
            said.is_some_and(|(_, said)| said.starts_with(&words)),
            "{said:?}"
        );
    }
}

/// Stages that were done before reward models could have tokenizers of their own keep their hash.
#[test]
fn reward_models_that_read_the_policys_ids_add_nothing_to_the_hashed_configuration() {
    let plan = base_with(&[]);
    let config = plan.stage("ppo").expect("ppo").config_json();
    let expected =
        serde_json::json!([{ "model": { "from": "stage", "name": "reward" }, "weight": 1.0 }]);
    assert_eq!(config["reward"], expected);
}

/// Where ids pass, the reward model must hold the episode; where text does, its own tokens decide.
#[test]
fn episodes_must_fit_into_reward_models_that_read_their_ids() {
    let project = Project::new(BASE);
    let scalar = config("LlamaForSequenceClassification", "");
    let scalar = scalar.replace(
        "\"max_position_embeddings\": 64",
        "\"max_position_embeddings\": 40",
    );
    folder(&project, "judge", &scalar);
    let policy = config("LlamaForCausalLM", "");
    with_tokenizer_of("judge", &project, "policy", &policy);
    let judge = ("stages.ppo.reward.0.model", "path:judge");
    let refusal = project.refusal(&[("stages.ppo.model", "path:policy"), judge]);
    assert!(
        refusal.contains(
            "prompt, response and EOS take 49 tokens, the max_positions of reward[0] are 40"
        ),
        "{refusal}"
    );
    project
        .load(&[judge])
        .expect("a stage's tokenizer is not a folder's");
}

#[test]
fn a_file_without_pretraining_needs_no_tokenizer_table() {
    let start = BASE.find("[stages.corpus]").expect("the corpus");
    let end = BASE.find("[stages.pretrain]").expect("the pretraining");
    let project = Project::new(&format!("name = \"data\"\n{}", &BASE[start..end]));
    assert_eq!(names(&project.load(&[]).expect("a plan")), ["corpus"]);
}
