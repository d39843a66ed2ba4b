//! Adapters: which matrices their targets name, what they cost, and what is refused.

use super::bad_places::{config, folder};
use super::{BASE, Project, base_with};
use crate::families::Sizes;
use crate::lora::LoraPlan;
use crate::numbers::stage_numbers;
use crate::plan::{Plan, PpoLora, Quantization, Task};
use crate::shape::{Family, ModelShape};
use crate::tensors::{Head, tensors};

fn sft_lora(overrides: &[(&str, &str)]) -> LoraPlan {
    let plan = base_with(overrides);
    match &plan.stage("sft").expect("sft").task {
        Task::Sft(sft) => sft.lora.clone().expect("adapters"),
        other => panic!("{other:?}"),
    }
}

fn ppo_lora(plan: &Plan) -> PpoLora {
    match &plan.stage("ppo").expect("ppo").task {
        Task::Ppo(ppo) => ppo.lora.clone().expect("adapters"),
        other => panic!("{other:?}"),
    }
}

/// The base configuration with a reward model that is adapters, and a ppo stage that shares them.
pub(super) const SHARED: [(&str, &str); 3] = [
    ("stages.reward.lora.r", "4"),
    ("stages.reward.lora.dropout", "0.1"),
    ("stages.ppo.lora.share_backbone", "true"),
];

#[test]
fn targets_are_roles_or_names_in_every_family() {
    let key = "stages.sft.lora.target_modules";
    let rows: [(&str, &str, &[&str]); 8] = [
        (
            "llama",
            r#"["q", "v"]"#,
            &["self_attn.q_proj", "self_attn.v_proj"],
        ),
        ("llama", r#"["up_proj"]"#, &["mlp.up_proj"]),
        (
            "llama",
            r#"["self_attn.o_proj", "output"]"#,
            &["self_attn.o_proj"],
        ),
        // What is fused is taken whole.
        ("gpt2", r#"["q", "v"]"#, &["attn.c_attn"]),
        ("gpt2", r#"["c_proj"]"#, &["attn.c_proj", "mlp.c_proj"]),
        (
            "gpt_neox",
            r#"["k", "down"]"#,
            &["attention.query_key_value", "mlp.dense_4h_to_h"],
        ),
        ("glm", r#"["gate"]"#, &["mlp.gate_up_proj"]),
        (
            "falcon",
            r#""all-linear""#,
            &[
                "mlp.dense_4h_to_h",
                "mlp.dense_h_to_4h",
                "self_attention.dense",
                "self_attention.query_key_value",
            ],
        ),
    ];
    for (family, targets, expected) in rows {
        let lora = sft_lora(&[("stages.pretrain.model.family", family), (key, targets)]);
        assert_eq!(lora.target_modules, expected, "{family}: {targets}");
    }
}

#[test]
fn a_table_that_is_there_turns_adapters_on_with_the_defaults() {
    let lora = sft_lora(&[("stages.sft.lora", "{}")]);
    assert_eq!((lora.r, lora.target_modules.len()), (8, 7));
    assert!((lora.scale() - 2.0).abs() < 1e-12);
    let lora = sft_lora(&[("stages.sft.lora.rslora", "true")]);
    assert!((lora.scale() - 16.0 / 8f64.sqrt()).abs() < 1e-12);
    // Stages that were done before there were adapters keep their hash.
    let plan = base_with(&[]);
    for stage in ["sft", "reward", "ppo"] {
        let config = plan.stage(stage).expect("the stage").config_json();
        assert!(config.get("lora").is_none(), "{config}");
    }
    let plan = base_with(&SHARED);
    let text = plan.to_toml().expect("a text");
    assert_eq!(Plan::from_toml(&text).expect("a plan"), plan);
}

#[test]
fn an_adapter_has_the_sizes_of_its_matrix_whatever_the_layout() {
    let sizes = Sizes {
        vocab_size: 41,
        max_positions: 16,
        layers: 2,
        width: 24,
        heads: 4,
    };
    for family in Family::ALL {
        let shape = family.shape(&sizes);
        let lora = LoraPlan {
            r: 3,
            alpha: 6.0,
            dropout: 0.0,
            rslora: false,
            target_modules: all_linear(&shape),
        };
        let adapters = lora.tensors(&shape);
        let matrices = tensors(&shape, Head::Token);
        for matrix in matrices {
            let Some(name) = matrix.name.strip_suffix(".weight") else {
                continue;
            };
            let dims = |end: &str| {
                let name = format!("{name}.{end}");
                let spec = adapters.iter().find(|spec| spec.name == name)?;
                Some(spec.dims.clone())
            };
            let (Some(a), Some(b)) = (dims("lora_A.weight"), dims("lora_B.weight")) else {
                continue;
            };
            let mut expected = vec![b[0], a[1]];
            if shape.names().in_out {
                expected.reverse();
            }
            assert_eq!(matrix.dims, expected, "{family:?} {name}");
            assert_eq!((a[0], b[1]), (3, 3));
        }
        let per_layer = 2 * lora.target_modules.len();
        assert_eq!(adapters.len(), 2 * per_layer, "{family:?}");
    }
}

fn all_linear(shape: &ModelShape) -> Vec<String> {
    let matrices = crate::tensors::matrices(shape);
    matrices.iter().map(|m| m.name.to_owned()).collect()
}

#[test]
fn names_that_no_matrix_has_are_refused_with_the_nearest() {
    let project = Project::new(BASE);
    let rows = [
        (
            ("stages.sft.lora.target_modules", r#"["q_prj"]"#),
            "a block of llama has no matrix called \"q_prj\"\n  hint: did you mean `q_proj`?",
        ),
        (
            ("stages.sft.lora.target_modules", r#"["lm_head"]"#),
            "a block of llama has no matrix called \"lm_head\"\n  hint: known names: q, q_proj, k,",
        ),
        (
            ("stages.sft.lora.target_modules", "[]"),
            "must be \"all-linear\" or a list of names, is []",
        ),
        (
            ("stages.sft.lora.target_modules", "[3]"),
            "must be \"all-linear\" or a list of names, is [3]",
        ),
        (
            ("stages.sft.lora.r", "0"),
            "must be a whole number of at least 1, is 0",
        ),
        (
            ("stages.sft.lora.alpha", "0"),
            "must be a number above 0, is 0",
        ),
        (
            ("stages.sft.lora.rank", "4"),
            "unknown key\n  hint: did you mean `r`?",
        ),
        (
            ("stages.sft.lora.lora_alpha", "4"),
            "unknown key\n  hint: did you mean `alpha`?",
        ),
        // PPO's log-probabilities must be those that were sampled.
        (("stages.ppo.lora.dropout", "0.1"), "unknown key"),
        (("stages.sft.lora", "true"), "must be a table, is true"),
    ];
    for (written, expected) in rows {
        let refusal = project.refusal(&[written]);
        assert!(refusal.contains(expected), "{written:?}: {refusal}");
    }
}

#[test]
fn a_shared_backbone_needs_adapters_on_the_policys_start() {
    let lora = ppo_lora(&base_with(&SHARED));
    assert!(lora.share_backbone);
    // The value model begins with the reward model's adapters, and drops nothing.
    assert_eq!((lora.policy.r, lora.value.r), (8, 4));
    assert!(lora.value.dropout == 0.0, "{lora:?}");
    let apart = ppo_lora(&base_with(&[("stages.ppo.lora.r", "5")]));
    assert_eq!((apart.share_backbone, apart.value.r), (false, 5));

    let project = Project::new(BASE);
    let expected = "needs reward models that are adapters on what the policy starts from\n  hint: ";
    let refusal = project.refusal(&SHARED[2..]);
    assert!(refusal.contains(expected), "{refusal}");
    let other = [&SHARED[..], &[("stages.reward.model", "stage:pretrain")]].concat();
    let refusal = project.refusal(&other);
    assert!(refusal.contains(expected), "{refusal}");
    // One with a tokenizer of its own is no adapters on them, and the value model stands on the policy.
    let judge = judge_of_its_own(&project);
    let refusal = project.refusal(&[&SHARED[..], &[judge]].concat());
    assert!(refusal.contains(expected), "{refusal}");
}

/// A reward model of one narrow layer whose tokenizer is not the policy's.
fn judge_of_its_own(project: &Project) -> (&'static str, &'static str) {
    folder(
        project,
        "judge",
        &config("LlamaForSequenceClassification", ""),
    );
    ("stages.ppo.reward.0.model", "path:judge")
}

/// Adapters and head of the value model are on the policy's weights, and the reward model costs its own.
#[test]
fn a_value_model_without_a_reward_model_of_its_ids_is_adapters_on_the_policy() {
    let project = Project::new(BASE);
    let settings = [judge_of_its_own(&project), ("stages.ppo.lora.r", "4")];
    let plan = project.load(&settings).expect("a plan");
    let lora = ppo_lora(&plan);
    assert_eq!(lora.policy, lora.value);
    let numbers = |name: &str| -> u64 {
        let text = number(&plan, "ppo", name).replace(',', "");
        text.parse().expect("a count")
    };
    let head = 64;
    assert_eq!(
        numbers("trained parameters of the value model"),
        numbers("trained parameters") + head
    );
    let Task::Ppo(ppo) = &plan.stage("ppo").expect("ppo").task else {
        panic!("no ppo");
    };
    let other = base_with(&settings[1..]);
    let kib = |plan: &Plan| -> f64 {
        let text = number(plan, "ppo", "peak memory, predicted");
        let (value, unit) = text.split_once(' ').expect("a unit");
        let value: f64 = value.parse().expect("a number");
        value * if unit == "MiB" { 1024.0 } else { 1.0 }
    };
    let narrower = ppo.shape.num_parameters_scalar() - ppo.reward[0].shape.num_parameters_scalar();
    let expected = narrower as f64 * 4.0 / 1024.0;
    let saved = kib(&other) - kib(&plan);
    assert!(
        (saved - expected).abs() < 0.1 * 1024.0,
        "{saved} {expected}"
    );
}

pub(super) fn number(plan: &Plan, stage: &str, name: &str) -> String {
    let stage = plan.stage(stage).expect("the stage");
    let numbers = stage_numbers(plan, stage);
    let found = numbers.iter().find(|(key, _)| key == name);
    found
        .unwrap_or_else(|| panic!("no {name} in {numbers:?}"))
        .1
        .clone()
}

#[test]
fn what_is_trained_is_counted_exactly() {
    let plan = base_with(&[
        ("stages.sft.lora.r", "4"),
        ("stages.sft.lora.target_modules", r#"["q", "down"]"#),
        ("stages.reward.lora.r", "4"),
        ("stages.reward.lora.target_modules", r#"["q", "down"]"#),
    ]);
    // Two layers of width 64 and MLP 192.
    let adapters = 2 * (4 * (64 + 64) + 4 * (192 + 64));
    assert_eq!(number(&plan, "sft", "trained parameters"), "3,072");
    assert_eq!(adapters, 3072);
    let with_head = number(&plan, "reward", "trained parameters");
    assert_eq!(with_head, "3,136");
    let all = number(&base_with(&[]), "sft", "parameters");
    assert_eq!(number(&plan, "sft", "parameters"), all);
}

#[test]
fn weights_under_adapters_take_fewer_bits() {
    let plan = base_with(&[
        ("stages.sft.lora.r", "4"),
        ("stages.sft.quantize", "int4"),
        ("stages.reward.lora.r", "4"),
        ("stages.reward.quantize", "int8"),
        ("stages.ppo.lora.r", "4"),
        ("stages.ppo.quantize", "int4"),
    ]);
    let (Task::Sft(sft), Task::Reward(reward), Task::Ppo(ppo)) = (
        &plan.stage("sft").expect("sft").task,
        &plan.stage("reward").expect("reward").task,
        &plan.stage("ppo").expect("ppo").task,
    ) else {
        panic!("{plan:?}");
    };
    assert_eq!(sft.quantize, Some(Quantization::Int4));
    assert_eq!(reward.quantize, Some(Quantization::Int8));
    assert_eq!(ppo.reference_quantize, Some(Quantization::Int4));
    // What the value model's adapters stand on.
    assert_eq!(ppo.reward[0].quantize, Some(Quantization::Int4));
    let text = plan.to_toml().expect("a text");
    assert_eq!(Plan::from_toml(&text).expect("a plan"), plan);

    let of_reward = |more: &[(&str, &str)]| {
        let plan = base_with(&[more, &[("stages.ppo.lora.r", "4")]].concat());
        match &plan.stage("ppo").expect("ppo").task {
            Task::Ppo(ppo) => (ppo.reference_quantize, ppo.reward[0].quantize),
            other => panic!("{other:?}"),
        }
    };
    let int4 = ("stages.ppo.quantize", "int4");
    let key = "stages.ppo.reward.0.quantize";
    let (four, eight) = (Some(Quantization::Int4), Some(Quantization::Int8));
    assert_eq!(of_reward(&[int4, (key, "int8")]), (four, eight));
    assert_eq!(of_reward(&[int4, (key, "false")]), (four, None));
    assert_eq!(of_reward(&[(key, "int8")]), (None, eight));
}

#[test]
fn few_bits_that_would_be_trained_or_have_no_meaning_are_refused() {
    let project = Project::new(BASE);
    let needs =
        "needs lora: without adapters all weights are trained, and those of few bits cannot be";
    let int4 = |stage| (stage, "int4");
    for key in ["stages.sft.quantize", "stages.reward.quantize"] {
        let refusal = project.refusal(&[int4(key)]);
        let expected =
            format!("{key}: {needs}\n  hint: add lora = {{ r = 8 }}, or leave quantize out");
        assert!(refusal.contains(&expected), "{refusal}");
    }
    let refusal = project.refusal(&[int4("stages.ppo.quantize")]);
    let expected = format!(
        "stages.ppo.quantize: {needs}\n  hint: add lora = {{ r = 8 }}, or quantise only what is frozen: reference = "
    );
    assert!(refusal.contains(&expected), "{refusal}");

    let beside_lora = [
        ("stages.ppo.lora.r", "4"),
        int4("stages.ppo.reference.quantize"),
    ];
    let refusal = project.refusal(&beside_lora);
    let expected = "the reference is the policy without its adapters\n  hint: write quantize in the stage's own table";
    assert!(refusal.contains(expected), "{refusal}");
    let shared = [&SHARED[..], &[int4("stages.ppo.reward.0.quantize")]].concat();
    let refusal = project.refusal(&shared);
    assert!(
        refusal.contains("has no meaning beside share_backbone"),
        "{refusal}"
    );
    let refusal = project.refusal(&[("stages.pretrain.quantize", "int4")]);
    assert!(refusal.contains("unknown key"), "{refusal}");
}
