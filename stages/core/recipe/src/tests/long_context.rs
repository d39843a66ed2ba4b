//! Stages that continue a model at a longer context.

use super::{BASE, Project};
use crate::plan::{Plan, Source, Task};
use crate::shape::{ModelShape, RopeScaling, Rotary};

/// [`BASE`] with a second pretraining after the first, and a third after that.
fn project() -> Project {
    let stage = |name: &str, model: &str, context: usize| {
        format!(
            "\n[stages.{name}]\nkind = \"pretrain\"\nmodel = \"stage:{model}\"\ndata = \"stage:corpus\"\n\
             steps = 5\ncontext = {context}\n"
        )
    };
    let longer = stage("longer", "pretrain", 64);
    let longest = stage("longest", "longer", 64);
    Project::new(&format!("{BASE}{longer}{longest}"))
}

fn shape<'a>(plan: &'a Plan, stage: &str) -> &'a ModelShape {
    let stage = plan.stage(stage).expect("the stage");
    stage.model_shape().expect("a model")
}

fn rotary<'a>(plan: &'a Plan, stage: &str) -> &'a Rotary {
    shape(plan, stage).rotary().expect("rotary positions")
}

#[test]
fn a_pretraining_continues_a_model_with_its_tokenizer() {
    let plan = project().load(&[]).expect("a plan");
    assert_eq!(shape(&plan, "longer"), shape(&plan, "pretrain"));
    let longer = plan.stage("longer").expect("the stage");
    let keys: Vec<String> = longer.inputs().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["data", "model"]);
    let Task::Pretrain(task) = &longer.task else {
        panic!("no pretraining: {longer:?}");
    };
    let name = "pretrain".to_owned();
    assert_eq!(task.tokenizer, Source::Stage { name });
    let dependants: Vec<&str> = plan
        .dependants("longer")
        .iter()
        .map(|stage| stage.name.as_str())
        .collect();
    assert_eq!(dependants, ["longest"]);
}

#[test]
fn every_method_lengthens_and_survives_config_json() {
    let scalings = [
        ("linear", RopeScaling::Linear { factor: 4.0 }),
        (
            "dynamic",
            RopeScaling::Dynamic {
                factor: 4.0,
                original: 64,
            },
        ),
        (
            "llama3",
            RopeScaling::Llama3 {
                factor: 4.0,
                low_frequency: 1.0,
                high_frequency: 4.0,
                original: 64,
            },
        ),
    ];
    for (method, expected) in scalings {
        let plan = project()
            .load(&[
                ("stages.longer.rope.scaling", method),
                ("stages.longer.rope.factor", "4"),
                ("stages.longer.rope.theta", "5e5"),
                ("stages.longer.context", "256"),
            ])
            .unwrap_or_else(|error| panic!("{method}: {error}"));
        let longer = shape(&plan, "longer");
        let Rotary { theta, scaling, .. } = *rotary(&plan, "longer");
        assert_eq!((longer.max_positions, theta), (256, 5e5), "{method}");
        assert_eq!(scaling, expected, "{method}");
        let written = serde_json::Value::Object(longer.to_hf());
        assert_eq!(ModelShape::from_hf(&written).as_ref(), Ok(longer));
        let plan = Plan::from_toml(&plan.to_toml().expect("TOML")).expect("a plan");
        assert_eq!(
            shape(&plan, "longest").rotary(),
            shape(&plan, "longer").rotary()
        );
    }
}

#[test]
fn factors_of_two_stages_multiply() {
    for method in ["linear", "dynamic", "yarn", "llama3"] {
        let staged = project()
            .load(&[
                ("stages.longer.rope.scaling", method),
                ("stages.longer.rope.factor", "4"),
                ("stages.longest.rope.factor", "2.5"),
            ])
            .unwrap_or_else(|error| panic!("{method}: {error}"));
        let at_once = project()
            .load(&[
                ("stages.longer.rope.scaling", method),
                ("stages.longer.rope.factor", "10"),
            ])
            .unwrap_or_else(|error| panic!("{method}: {error}"));
        assert_eq!(shape(&staged, "longest"), shape(&at_once, "longer"));
        assert_eq!(shape(&staged, "longest").max_positions, 640);
    }
}

#[test]
fn a_base_alone_is_no_scaling() {
    let plan = project()
        .load(&[
            ("stages.sft.rope.factor", "2"),
            ("stages.sft.rope.theta", "1e6"),
        ])
        .expect("a plan");
    let Rotary { theta, scaling, .. } = *rotary(&plan, "sft");
    assert_eq!((theta, scaling), (1e6, RopeScaling::None));
    let Task::Sft(task) = &plan.stage("sft").expect("sft").task else {
        panic!("no fine-tuning");
    };
    assert_eq!((task.context, task.shape.max_positions), (128, 128));
}

#[test]
fn what_cannot_be_lengthened_is_refused_at_its_key() {
    let rows: &[(&[(&str, &str)], &str)] = &[
        (
            &[
                ("stages.pretrain.model.family", "gpt2"),
                ("stages.longer.rope.factor", "2"),
            ],
            "stages.longer.rope: has no meaning for this model of family \"gpt2\", whose positions are learned\n  hint: leave it out, or continue a model with rotary positions, like one of family \"llama\"",
        ),
        (
            &[("stages.pretrain.rope.factor", "2")],
            "stages.pretrain.rope.factor: has no meaning for a model that is made anew\n  hint: choose the new model's context and model.rope_theta; rope lengthens model = \"stage:NAME\"",
        ),
        (
            &[("stages.longer.rope.scaling", "yarn")],
            "stages.longer.rope.factor: missing key\n  hint: write factor = how many times longer the context becomes",
        ),
        (
            &[("stages.longer.rope.factor", "0.5")],
            "stages.longer.rope.factor: must be a number at least 1, is 0.5\n  hint: give a number at least 1",
        ),
        (
            &[
                ("stages.longer.rope.scaling", "linear"),
                ("stages.longer.rope.factor", "2"),
                ("stages.longest.rope.scaling", "yarn"),
                ("stages.longest.rope.factor", "2"),
            ],
            "stages.longest.rope.scaling: must be that of the model, which is scaled as \"linear\" already\n  hint: leave it out: the model keeps its method, and the factors multiply",
        ),
        (
            &[
                ("stages.longer.rope.factor", "2"),
                ("stages.longer.context", "129"),
            ],
            "stages.longer.context: must be at most the model's max_positions 128, is 129\n  hint: shorten it, or give the model more max_positions when it is pretrained",
        ),
        (
            &[
                ("stages.sft.rope.scaling", "dynamic"),
                ("stages.sft.rope.factor", "2"),
                ("stages.ppo.max_new_tokens", "33"),
            ],
            "stages.ppo.model: prompt and response take 65 tokens, the model has dynamic rotary scaling and was trained on 64: beyond them a token's angles change with the tokens that follow it\n  hint: lengthen it with scaling \"yarn\" or \"linear\", or shorten max_prompt_tokens or max_new_tokens",
        ),
    ];
    for (overrides, expected) in rows {
        let refusal = project().refusal(overrides);
        assert!(refusal.contains(expected), "{refusal}");
    }
}

#[test]
fn dynamic_scaling_within_the_trained_length_is_fit_for_ppo() {
    let plan = project()
        .load(&[
            ("stages.sft.rope.scaling", "dynamic"),
            ("stages.sft.rope.factor", "2"),
        ])
        .expect("48 tokens of 64");
    assert_eq!(shape(&plan, "ppo").max_positions, 128);
}
