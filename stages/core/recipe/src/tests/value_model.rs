//! A value model that shares the policy's trunk: its keys, and what `rlhf plan` says of it.

use super::lora::{SHARED, number};
use super::{BASE, Project, base_with};
use crate::plan::{Plan, PpoPlan, Task};

const ON_TRUNK: (&str, &str) = ("stages.ppo.value_model", "shared");

fn ppo(plan: &Plan) -> &PpoPlan {
    match &plan.stage("ppo").expect("ppo").task {
        Task::Ppo(ppo) => ppo,
        other => panic!("{other:?}"),
    }
}

fn count(plan: &Plan, name: &str) -> u64 {
    let text = number(plan, "ppo", name).replace(',', "");
    text.parse().unwrap_or_else(|_| panic!("{name}: {text}"))
}

#[test]
fn the_loss_is_weighed_as_said_or_as_published() {
    let usual = base_with(&[ON_TRUNK]);
    assert_eq!(ppo(&usual).vf_coef, Some(0.1));
    assert_eq!(ppo(&usual).value_optimizer, None);
    assert_eq!(ppo(&usual).value_start(), None);
    let said = base_with(&[ON_TRUNK, ("stages.ppo.vf_coef", "0.5")]);
    assert_eq!(ppo(&said).vf_coef, Some(0.5));
    // A preset's optimizer of a value model is of no use, and in nobody's way.
    let preset = base_with(&[
        ON_TRUNK,
        ("preset", "instructgpt"),
        ("stages.ppo.ptx.context", "64"),
        ("stages.sft.context", "64"),
        ("stages.reward.context", "64"),
    ]);
    assert_eq!(ppo(&preset).value_optimizer, None);
}

/// Stages that were done before value models could share a trunk keep their hash.
#[test]
fn a_value_model_of_its_own_adds_nothing_to_the_hashed_configuration() {
    let said = base_with(&[("stages.ppo.value_model", "separate")]);
    let (said, usual) = [said, base_with(&[])]
        .map(|plan| plan.stage("ppo").expect("ppo").config_json())
        .into();
    assert_eq!(said, usual);
    assert!(usual.get("vf_coef").is_none());
    assert_eq!(usual["value_optimizer"]["lr"], 1e-4);
}

#[test]
fn what_has_no_meaning_beside_it_is_refused() {
    let project = Project::new(BASE);
    for (settings, expected) in [
        (
            &[ON_TRUNK, ("stages.ppo.value_optimizer.lr", "1e-5")][..],
            "stages.ppo.value_optimizer: has no meaning beside value_model = \"shared\": the policy's optimizer \
             trains the value head\n  hint: leave it out, and weigh the value loss with vf_coef",
        ),
        (
            &[("stages.ppo.vf_coef", "0.1")],
            "stages.ppo.vf_coef: has no meaning without value_model = \"shared\": a value model of its own has a loss of its own\n  \
             hint: add value_model = \"shared\", or write value_optimizer = { lr = ... }",
        ),
        (
            &[ON_TRUNK, ("stages.ppo.vf_coef", "0")],
            "stages.ppo.vf_coef: must be ",
        ),
        (
            &[("stages.ppo.value_model", "reward")],
            "stages.ppo.value_model: must be one of \"separate\", \"shared\", is \"reward\"",
        ),
    ] {
        let refusal = project.refusal(settings);
        assert!(refusal.contains(expected), "{settings:?}: {refusal}");
    }
}

#[test]
fn a_head_on_the_trunk_costs_a_row_of_numbers() {
    let (separate, shared) = (base_with(&[]), base_with(&[ON_TRUNK]));
    assert_eq!(count(&shared, "parameters of the value head"), 64);
    let words = number(&shared, "ppo", "the value model starts from");
    assert!(
        words.starts_with("the policy, whose trunk it shares"),
        "{words}"
    );
    let flops = |plan: &Plan| -> f64 {
        let text = number(plan, "ppo", "FLOPs, at most");
        text.parse().expect("a number")
    };
    // Of an episode: sampling, reference, reward, value once, and both updated (three times as much each); on pretraining
    // text the policy alone, which is 48 tokens, as prompt and response are.
    let (whole, saved) = (1.0 + 1.0 + 1.0 + 1.0 + 3.0 + 3.0 + 3.0, 1.0 + 3.0);
    let share = 1.0 - flops(&shared) / flops(&separate);
    assert!((share - saved / whole).abs() < 0.05, "{share}");
    // Weights and moments in f32: at the peak of so small a model no gradient is there.
    let kib = |plan: &Plan| -> f64 {
        let text = number(plan, "ppo", "peak memory, predicted");
        let value = text.strip_suffix(" MiB").expect("a size in MiB");
        value.parse::<f64>().expect("a number") * 1024.0
    };
    let expected = (ppo(&separate).value_shape.num_parameters_scalar() - 64) * 12;
    let saved = kib(&separate) - kib(&shared);
    assert!(
        (saved - expected as f64 / 1024.0).abs() < 0.11 * 1024.0,
        "{saved} {expected}"
    );
}

#[test]
fn adapters_and_a_value_head_stand_on_one_trunk() {
    let plan = base_with(&[ON_TRUNK, ("stages.ppo.lora.r", "4")]);
    let lora = ppo(&plan).lora.as_ref().expect("adapters");
    assert_eq!(lora.policy, lora.value);
    let numbers = lora.policy.num_parameters(&ppo(&plan).shape);
    assert_eq!(count(&plan, "trained parameters"), numbers);
    // Reward models may be adapters on the same frozen weights.
    let plan = base_with(&[&SHARED[..], &[ON_TRUNK]].concat());
    let lora = ppo(&plan).lora.as_ref().expect("adapters");
    assert!(lora.share_backbone && lora.policy == lora.value);
}
