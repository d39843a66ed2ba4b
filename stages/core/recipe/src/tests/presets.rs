//! Every preset resolves, speaks where the file is silent, and gives way where it is not.

use super::{BASE, Project, base_with};
use crate::plan::{Duration, PpoPlan, Task};
use crate::presets::{NAMES, Setting, explain};
use crate::{defaults, schema};

fn ppo(overrides: &[(&str, &str)]) -> PpoPlan {
    let plan = base_with(overrides);
    match &plan.stage("ppo").expect("ppo").task {
        Task::Ppo(ppo) => ppo.as_ref().clone(),
        other => panic!("no ppo: {other:?}"),
    }
}

#[test]
fn every_constant_is_a_key_and_has_a_source() {
    let presets = NAMES
        .iter()
        .flat_map(|name| explain(name).expect("a preset"));
    for constant in presets.chain(defaults::explain()) {
        let keys = schema::keys(constant.kind);
        assert!(keys.contains(&constant.key), "{constant:?} is no key");
        assert!(!constant.source.is_empty(), "{constant:?} has no source");
    }
    assert!(explain("unknown").is_none());
}

#[test]
fn no_key_is_stated_twice() {
    for name in NAMES {
        let constants = explain(name).expect("a preset");
        for (index, constant) in constants.iter().enumerate() {
            let again = constants[..index]
                .iter()
                .any(|other| (other.kind, other.key) == (constant.kind, constant.key));
            assert!(!again, "{name}: {} {} twice", constant.kind, constant.key);
        }
    }
}

/// Nothing but references and the model: all else is the preset's.
#[test]
fn presets_resolve_with_a_model_of_their_size() {
    let silent: Vec<&str> = BASE
        .lines()
        .filter(|line| {
            let words = [
                "iterations",
                "batch",
                "minibatch",
                "max_",
                "optimizer",
                "context",
                "epochs",
            ];
            !words.iter().any(|word| line.starts_with(word))
        })
        .collect();
    let project = Project::new(&silent.join("\n"));
    for name in NAMES {
        let mut overrides = vec![
            ("preset", *name),
            ("stages.pretrain.model.max_positions", "4096"),
            ("stages.pretrain.context", "1024"),
            ("stages.reward.steps", "40"),
        ];
        if !["instructgpt", "stiennon2020"].contains(name) {
            overrides.push(("stages.sft.epochs", "1"));
        }
        if *name != "instructgpt" && *name != "nplus" {
            for (key, value) in [
                ("stages.ppo.max_prompt_tokens", "512"),
                ("stages.ppo.max_new_tokens", "48"),
                ("stages.comparisons.max_prompt_tokens", "512"),
                ("stages.comparisons.max_new_tokens", "48"),
            ] {
                overrides.push((key, value));
            }
        }
        let plan = project
            .load(&overrides)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(plan.stages.len(), 7, "{name}");
    }
}

#[test]
fn a_preset_speaks_where_the_file_is_silent() {
    let instructgpt = [
        ("preset", "instructgpt"),
        ("stages.ppo.ptx.context", "64"),
        ("stages.sft.context", "64"),
        ("stages.reward.context", "64"),
    ];
    let plan = ppo(&instructgpt);
    assert_eq!(plan.ema, Some(0.992));
    assert_eq!(
        plan.ptx.as_ref().map(|ptx| ptx.sequences_per_episode),
        Some(8)
    );
    let value = plan.value_optimizer.as_ref().expect("an optimizer");
    assert_eq!(value.lr.to_bits(), 9e-6_f64.to_bits());
    // The file's own word stands.
    assert_eq!(plan.batch, 32);
    assert_eq!(plan.policy_optimizer.lr.to_bits(), 1e-4_f64.to_bits());
    assert_eq!(ppo(&[("preset", "nplus")]).inner_epochs, 4);
    assert_eq!(ppo(&[]).inner_epochs, 1);
}

#[test]
fn the_files_steps_stand_before_the_presets_epochs() {
    let project = Project::new(BASE);
    let plan = project.load(&[("preset", "nplus")]).expect("a plan");
    let Task::Reward(reward) = &plan.stage("reward").expect("reward").task else {
        panic!("no reward");
    };
    assert_eq!(reward.train.duration, Duration::Steps(40));
}

#[test]
fn what_does_not_fit_says_that_the_preset_said_it() {
    let refusal = Project::new(BASE).refusal(&[("preset", "instructgpt")]);
    let expected = "pipeline.toml:34:9: stages.sft.context: must be at most the model's \
                    max_positions 64, is 2048 (the preset's: Ouyang et al. 2022, appendix C)";
    assert!(refusal.contains(expected), "{refusal}");
}

#[test]
fn settings_read_like_toml() {
    assert_eq!(Setting::Pair(0.9, 0.95).to_string(), "[0.9, 0.95]");
    assert_eq!(Setting::Number(1e-5).to_string(), "1e-5");
    assert_eq!(Setting::Text("drop").to_string(), "\"drop\"");
    assert_eq!(Setting::Flag(false).to_string(), "false");
}
