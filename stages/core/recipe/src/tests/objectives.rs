//! Objectives of pretraining: what they ask of models and tokenizers, and what is refused.

use serde_json::Value;

use super::{BASE, Project, base_with};
use crate::families::Sizes;
use crate::plan::{Objective, Plan, PretrainPlan, Task};
use crate::shape::{Family, ModelShape, Positions};
use crate::stage_numbers;

const MASKED: (&str, &str) = ("stages.pretrain.objective", "masked");
const INFILL: (&str, &str) = ("stages.pretrain.objective", "infill");
const GPT2: (&str, &str) = ("stages.pretrain.model.family", "gpt2");

fn pretrain(plan: &Plan) -> &PretrainPlan {
    match &plan.stage("pretrain").expect("pretrain").task {
        Task::Pretrain(task) => task,
        other => panic!("{other:?}"),
    }
}

fn special_tokens(plan: &Plan) -> &[String] {
    match &plan.stages[1].task {
        Task::Tokenizer(task) => &task.special_tokens,
        other => panic!("{other:?}"),
    }
}

fn refusal(overrides: &[(&str, &str)]) -> String {
    Project::new(BASE).refusal(overrides)
}

#[test]
fn a_tokenizer_that_is_trained_gets_what_the_objectives_need() {
    assert!(special_tokens(&base_with(&[])).is_empty());
    let masked = base_with(&[MASKED]);
    assert_eq!(pretrain(&masked).objective, Objective::Masked);
    assert_eq!(special_tokens(&masked), ["<|mask|>"]);
    let infill = base_with(&[INFILL, GPT2]);
    let all = ["<|mask|>", "<|startofpiece|>", "<|endofpiece|>"];
    assert_eq!(special_tokens(&infill), all);
    let both = BASE.replacen(
        "[stages.sft]",
        "[stages.other]\nkind = \"pretrain\"\ndata = \"stage:corpus\"\nobjective = \"masked\"\n\
         model = { family = \"glm\", layers = 1, width = 16, heads = 2 }\ncontext = 16\nsteps = 1\n\n[stages.sft]",
        1,
    );
    let both = Project::new(&both).load(&[INFILL, GPT2]).expect("a plan");
    assert_eq!(special_tokens(&both), all);
    let too_small = refusal(&[INFILL, GPT2, ("tokenizer.vocab_size", "263")]);
    assert!(
        too_small.contains("tokenizer.vocab_size: must be a whole number of at least 264, is 263"),
        "{too_small}"
    );
}

#[test]
fn a_tokenizer_without_the_tokens_is_refused_by_name() {
    let texts = || (0..50).map(|index| format!("some text number {index} to learn from, again"));
    let lines = "kind = \"bpe\"\nvocab_size = 300\ndata = \"stage:corpus\"";
    let project = Project::new(&BASE.replace(lines, "kind = \"path\"\npath = \"words\""));
    let dir = project.dir.path().join("words");
    std::fs::create_dir(&dir).expect("a folder");
    let plain = datasets::Tokenizer::train(texts(), 275).expect("trained");
    plain.save(&dir).expect("saved");
    assert_eq!(
        project.refusal(&[MASKED]),
        "--set stages.pretrain.objective=masked: stages.pretrain.objective: DIR/words: objective = \
         \"masked\" needs a special token for what is hidden (<|mask|>, [MASK], <mask>), which the \
         tokenizer does not have\n  hint: a tokenizer that is trained gets it ([tokenizer] kind = \
         \"bpe\"); in another one's tokenizer.json it stands among added_tokens with \"special\": true"
    );
    let tokens = ["[MASK]".to_owned()];
    let with = datasets::Tokenizer::train_with(texts(), 275, &tokens).expect("trained");
    with.save(&dir).expect("saved");
    project.load(&[MASKED]).expect("a plan");
    let json = std::fs::read_to_string(dir.join("tokenizer.json")).expect("read");
    let mut json: Value = serde_json::from_str(&json).expect("JSON");
    let added = json["added_tokens"].as_array_mut().expect("added tokens");
    let mask = added.iter_mut().find(|token| token["content"] == "[MASK]");
    mask.expect("the token")["special"] = false.into();
    std::fs::write(dir.join("tokenizer.json"), json.to_string()).expect("written");
    let refusal = project.refusal(&[MASKED]);
    assert!(
        refusal.contains("and the tokenizer's \"[MASK]\" is not special"),
        "{refusal}"
    );
}

/// A plan that was written before there were objectives.
#[test]
fn a_plan_without_an_objective_is_of_the_usual_one() {
    let plan = base_with(&[]);
    let text = plan.to_toml().expect("TOML");
    let older: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with("objective = "))
        .collect();
    assert_eq!(older.len() + 1, text.lines().count(), "{text}");
    assert_eq!(Plan::from_toml(&older.join("\n")).expect("a plan"), plan);
}

#[test]
fn a_model_is_not_continued_with_more_tokens_than_it_has() {
    let project = Project::new(&BASE.replace(
        "[stages.sft]",
        "[stages.more]\nkind = \"pretrain\"\nmodel = \"path:old\"\ndata = \"stage:corpus\"\nsteps = 1\n\n[stages.sft]",
    ));
    let dir = project.dir.path().join("old");
    std::fs::create_dir(&dir).expect("a folder");
    let texts = (0..50).map(|index| format!("some text number {index} to learn from, again"));
    let tokenizer = datasets::Tokenizer::train(texts, 275).expect("trained");
    tokenizer.save(&dir).expect("saved");
    let shape = |vocab_size| {
        Family::Gpt2.shape(&Sizes {
            vocab_size,
            max_positions: 64,
            layers: 2,
            width: 64,
            heads: 4,
        })
    };
    for (rows, fits) in [(275, true), (274, false)] {
        let config = Value::Object(shape(rows).to_hf()).to_string();
        std::fs::write(dir.join("config.json"), config).expect("written");
        std::fs::write(dir.join("model.safetensors"), "").expect("written");
        match project.load(&[]) {
            Ok(_) => assert!(fits),
            Err(error) => assert!(
                !fits
                    && error
                        .to_string()
                        .contains("has 275 tokens, the model only rows for 274"),
                "{error}"
            ),
        }
    }
}

/// Every family either is refused by name, or its config.json says the whole model.
#[test]
fn a_family_infills_and_says_so_in_its_config_or_is_refused() {
    let mut infilling = Vec::new();
    for (word, family) in crate::model_table::FAMILIES {
        let overrides = [INFILL, ("stages.pretrain.model.family", word)];
        match Project::new(BASE).load(&overrides) {
            Ok(plan) => {
                let shape = &pretrain(&plan).model;
                assert!(matches!(
                    shape.positions,
                    Positions::Learned { places: 40, .. }
                ));
                let stored = Value::Object(shape.to_hf());
                assert_eq!(ModelShape::from_hf(&stored).as_ref(), Ok(shape), "{word}");
                infilling.push(*word);
            }
            Err(error) => {
                let error = error.to_string();
                let named = format!("this one is of family {:?}", family.model_type());
                assert!(
                    error.contains("stages.pretrain.objective: \"infill\" needs a model"),
                    "{error}"
                );
                assert!(
                    error.contains(&named) && error.contains("hint: take"),
                    "{error}"
                );
            }
        }
    }
    assert_eq!(infilling, ["gpt1", "gpt2", "opt"]);
    let sinusoidal = refusal(&[
        INFILL,
        GPT2,
        ("stages.pretrain.model.positions", "sinusoidal"),
    ]);
    assert!(
        sinusoidal.contains("with learned positions"),
        "{sinusoidal}"
    );
}

#[test]
fn masked_tokens_need_layers_that_see_everything() {
    for (overrides, part) in [
        (
            &[("family", "gpt_neo")][..],
            "whose layers all see the whole text",
        ),
        (
            &[("family", "mistral"), ("window", "8")],
            "whose layers all see the whole text",
        ),
        (
            &[("family", "falcon"), ("positions", "alibi")],
            "which ALiBi does not",
        ),
    ] {
        let keys: Vec<(String, &str)> = overrides
            .iter()
            .map(|(key, value)| (format!("stages.pretrain.model.{key}"), *value))
            .collect();
        let mut overrides: Vec<(&str, &str)> =
            keys.iter().map(|(key, value)| (&key[..], *value)).collect();
        overrides.push(MASKED);
        let refusal = refusal(&overrides);
        assert!(
            refusal.contains("\"masked\" needs a model") && refusal.contains(part),
            "{refusal}"
        );
    }
    let plain = base_with(&[MASKED]);
    assert_eq!(pretrain(&plain).model, pretrain(&base_with(&[])).model);
}

#[test]
fn later_stages_take_an_infilling_model_over_without_its_places() {
    let plan = base_with(&[INFILL, GPT2]);
    let of = |name: &str| {
        plan.stage(name)
            .and_then(|stage| stage.model_shape())
            .expect("a model")
    };
    let (base, sft) = (of("pretrain"), of("sft"));
    assert_eq!(*sft, base.clone().without_places());
    assert_eq!(base.num_parameters() - sft.num_parameters(), 40 * 64);
    let usual = Family::Gpt2.shape(&Sizes {
        vocab_size: 300,
        max_positions: 64,
        layers: 2,
        width: 64,
        heads: 4,
    });
    assert_eq!(*sft, usual);
}

#[test]
fn a_model_that_never_continued_a_text_is_not_sampled_from() {
    for (stage, objective) in [("comparisons", MASKED), ("ppo", MASKED), ("ppo", INFILL)] {
        let key = format!("stages.{stage}.model");
        let refusal = refusal(&[objective, GPT2, (&key, "stage:pretrain")]);
        let expected = format!(
            "--set {key}=stage:pretrain: {key}: must continue a text, and this model's objective was {:?}\n  \
             hint: fine-tune it first (a stage of kind sft) and name that stage",
            objective.1
        );
        assert_eq!(refusal, expected);
    }
    base_with(&[MASKED, ("stages.reward.model", "stage:pretrain")]);
    base_with(&[("stages.ppo.model", "stage:pretrain")]);
}

/// [`BASE`] with a stage that goes on from the pretrained model.
fn continued() -> Project {
    let stage = "\n[stages.more]\nkind = \"pretrain\"\nmodel = \"stage:pretrain\"\n\
                 data = \"stage:corpus\"\nsteps = 5\n";
    Project::new(&format!("{BASE}{stage}"))
}

#[test]
fn a_model_is_continued_with_any_objective() {
    let objective = ("stages.more.objective", "masked");
    let plan = continued().load(&[objective]).expect("a plan");
    assert_eq!(special_tokens(&plan), ["<|mask|>"]);
    assert_eq!(pretrain(&plan).objective, Objective::Causal);
    let Task::Pretrain(more) = &plan.stage("more").expect("more").task else {
        panic!("no pretraining");
    };
    assert_eq!(more.objective, Objective::Masked);
    for first in [GPT2, INFILL] {
        let infill = [("stages.more.objective", "infill"), GPT2, first];
        let plan = continued().load(&infill).expect("a plan");
        let more = plan.stage("more").and_then(|stage| stage.model_shape());
        let positions = more.map(|shape| shape.positions);
        assert!(
            matches!(positions, Some(Positions::Learned { places: 40, .. })),
            "{positions:?}"
        );
    }
    // What goes on with next tokens continues texts again.
    let settings = [MASKED, ("stages.ppo.model", "stage:more")];
    continued().load(&settings).expect("a plan");
}

/// Stages that were done before there were other objectives keep their hash.
#[test]
fn the_usual_objective_adds_nothing_to_the_hashed_configuration() {
    for (overrides, stated) in [(&[GPT2][..], false), (&[GPT2, MASKED], true)] {
        let plan = base_with(overrides);
        let config = plan
            .stage("pretrain")
            .expect("pretrain")
            .portable_config(|_| None);
        assert_eq!(config.get("objective").is_some(), stated, "{config}");
        let positions = &config["model"]["positions"]["learned"];
        assert_eq!(*positions, serde_json::json!({ "unused": 0 }), "{config}");
        let tokenizer = plan.stages[1].portable_config(|_| None);
        assert_eq!(
            tokenizer.get("special_tokens").is_some(),
            stated,
            "{tokenizer}"
        );
    }
}

#[test]
fn a_plan_shows_the_objective_and_counts_the_longer_rows() {
    let numbers = |overrides: &[(&str, &str)]| {
        let plan = base_with(overrides);
        stage_numbers(&plan, plan.stage("pretrain").expect("pretrain"))
    };
    let entry = |numbers: &[(String, String)], name: &str| {
        let found = numbers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.clone()).expect("an entry")
    };
    for (overrides, objective, tokens) in [
        (&[GPT2][..], "causal", "1,024"),
        (&[GPT2, MASKED], "masked", "1,024"),
        // 64 tokens of text, at most 10 spans of two more tokens each, 16 rows.
        (&[GPT2, INFILL], "infill", "1,344"),
    ] {
        let numbers = numbers(overrides);
        assert_eq!(entry(&numbers, "objective"), objective);
        assert_eq!(entry(&numbers, "tokens per update, at most"), tokens);
    }
}
