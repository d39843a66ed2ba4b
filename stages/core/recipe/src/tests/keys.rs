//! Every key of every kind of table changes the plan: a knob that nothing reads fails here.

use super::{BASE, Project};
use crate::plan::Task;
use crate::schema::{self, KINDS};

/// A key, its value, and what else is set.
type Row = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
);

/// For each key, a value other than [`BASE`]'s, and what else must be set for it to have a meaning.
const VALUES: &[Row] = &[
    ("batch", "64", &[]),
    ("checkpointing", "true", &[]),
    ("sharding", "\"gradients\"", &[]),
    ("clip", "0.3", &[]),
    ("context", "56", &[]),
    ("conversations", "77", &[]),
    ("data", "other.parquet", &[]),
    ("demonstrations", "stage:corpus", &[]),
    ("dropout", "0.2", &[]),
    ("dtype", "bf16", &[]),
    ("ema", "0.9", &[]),
    ("epochs", "7", &[]),
    ("eval_every", "9", &[]),
    ("eval_examples", "9", &[]),
    ("eval_prompts", "9", &[]),
    ("format", "plain-text", &[("path", "other.txt")]),
    ("gamma", "0.9", &[]),
    ("gold", "vader", &[]),
    ("heldout", "0.2", &[]),
    ("inner_epochs", "3", &[]),
    ("iterations", "9", &[]),
    ("keep", "9", &[]),
    ("kl.coef", "0.3", &[]),
    ("kl.horizon", "99", &[("kl.target", "6")]),
    ("kl.target", "6", &[]),
    ("lambda", "0.5", &[]),
    ("lora.alpha", "9", &[("lora.r", "8")]),
    ("lora.dropout", "0.2", &[("lora.r", "8")]),
    ("lora.r", "4", &[("lora.alpha", "16")]),
    ("lora.rslora", "true", &[("lora.r", "8")]),
    ("lora.target_modules", "[\"q\"]", &[("lora.r", "8")]),
    ("max_logprob_gap", "0.2", &[]),
    ("max_new_tokens", "9", &[]),
    ("max_prompt_tokens", "9", &[]),
    ("micro_batch", "2", &[]),
    ("minibatch", "16", &[]),
    ("model.family", "gpt2", &[]),
    ("model.heads", "2", &[]),
    ("model.kv_heads", "1", &[]),
    ("model.layers", "3", &[]),
    ("model.max_positions", "99", &[]),
    ("model.mlp_width", "99", &[]),
    ("model.norm_eps", "1e-3", &[]),
    ("model.rope_theta", "99", &[]),
    ("model.positions", "sinusoidal", &[("model.family", "gpt2")]),
    ("model.window", "8", &[("model.family", "mistral")]),
    ("model.size", "llama-tiny", &[]),
    ("model.tie_embeddings", "true", &[]),
    ("model.vocab_size", "999", &[]),
    ("model.width", "128", &[]),
    ("no_eos_penalty", "0.5", &[]),
    ("no_eos_score", "false", &[]),
    ("nonfinite.skip", "9", &[]),
    ("num_heldout", "9", &[]),
    ("num_prompts", "9", &[]),
    ("objective", "masked", &[]),
    ("optimizer.betas", "[0.5, 0.6]", &[]),
    ("optimizer.clip", "9", &[]),
    ("optimizer.eps", "0.5", &[]),
    ("optimizer.floor", "0.5", &[]),
    ("optimizer.lr", "0.5", &[]),
    ("optimizer.schedule", "linear", &[]),
    ("optimizer.warmup", "9", &[]),
    ("optimizer.warmup_from", "0.5", &[]),
    ("optimizer.weight_decay", "0.5", &[]),
    ("overlong", "drop", &[]),
    ("path", "other.txt", &[("format", "plain-text")]),
    ("pretrain_data", "other.parquet", &[]),
    (
        "pretrain_share",
        "0.25",
        &[("pretrain_data", "stage:corpus")],
    ),
    ("prompt_turns", "9", &[]),
    ("prompts", "other.parquet", &[]),
    ("ptx.coef", "9", &[]),
    ("ptx.context", "32", &[]),
    ("ptx.sequences_per_episode", "9", &[]),
    ("quantize", "int4", &[]),
    ("reference.quantize", "int8", &[]),
    ("responses", "9", &[]),
    ("reward[].quantize", "int4", &[]),
    ("reward[].weight", "0.5", &[]),
    ("rope.factor", "2", &[]),
    ("rope.scaling", "yarn", &[("rope.factor", "2")]),
    ("rope.theta", "5e5", &[]),
    ("sample_batch", "2", &[]),
    ("save_every", "9", &[]),
    ("sentences", "9", &[("format", "passkey")]),
    ("steps", "9", &[]),
    ("temperature", "0.5", &[]),
    ("value_clip", "false", &[]),
    ("value_optimizer.betas", "[0.5, 0.6]", &[]),
    ("value_optimizer.clip", "9", &[]),
    ("value_optimizer.eps", "0.5", &[]),
    ("value_optimizer.floor", "0.5", &[]),
    ("value_optimizer.lr", "0.5", &[]),
    ("value_optimizer.schedule", "linear", &[]),
    ("value_optimizer.warmup", "9", &[]),
    ("value_optimizer.warmup_from", "0.5", &[]),
    ("value_optimizer.weight_decay", "0.5", &[]),
    ("value_model", "shared", &[]),
    ("vf_coef", "0.5", &[("value_model", "shared")]),
    ("whiten_advantages", "false", &[]),
];

/// Keys of which [`BASE`] has the only value there is, keys that name models, those of a pretraining that
/// continues one, and those of adapters' frozen weights: other tests read them.
const FIXED: &[(&str, &str)] = &[
    ("import", "kind"),
    ("pretrain", "kind"),
    ("pretrain", "rope.scaling"),
    ("pretrain", "rope.factor"),
    ("pretrain", "rope.theta"),
    ("sft", "kind"),
    ("sft", "quantize"),
    ("label", "kind"),
    ("label", "labeler.kind"),
    ("label", "labeler.rule"),
    ("reward", "kind"),
    ("reward", "quantize"),
    ("ppo", "kind"),
    ("ppo", "quantize"),
    ("ppo", "lora.share_backbone"),
];

fn stage_of(kind: &str) -> &'static str {
    match kind {
        "import" => "corpus",
        "label" => "comparisons",
        "pretrain" => "pretrain",
        "sft" => "sft",
        "reward" => "reward",
        "ppo" => "ppo",
        other => panic!("no stage of kind {other}"),
    }
}

/// Files that values name, beside a file with this text.
fn project(text: &str) -> Project {
    let project = Project::new(text);
    project.write("other.txt", "some text");
    project.write("other.parquet", "");
    project
}

/// An import stage alone: the others need what [`BASE`]'s makes.
const IMPORT: &str =
    "name = \"import\"\n[stages.corpus]\nkind = \"import\"\nformat = \"synthetic\"\n";

/// The stage's task and execution.
fn stage(project: &Project, name: &str, overrides: &[(String, &str)]) -> String {
    let overrides: Vec<(&str, &str)> = overrides
        .iter()
        .map(|(key, value)| (key.as_str(), *value))
        .collect();
    let plan = project
        .load(&overrides)
        .unwrap_or_else(|error| panic!("{overrides:?}: {error}"));
    let stage = plan
        .stage(name)
        .unwrap_or_else(|| panic!("no stage {name}"));
    format!("{:?} {:?}", stage.task, stage.execution)
}

/// Sets `key` of the stage of a kind, and compares with what holds without it.
fn check_key(project: &Project, kind: &str, key: &str) {
    let row = VALUES.iter().find(|(known, _, _)| *known == key);
    let (_, value, others) = row.unwrap_or_else(|| panic!("{kind}: no value for {key}"));
    let name = stage_of(kind);
    let path = |key: &str| format!("stages.{name}.{}", key.replace("[]", ".0"));
    let mut overrides: Vec<(String, &str)> = others
        .iter()
        .map(|(key, value)| (path(key), *value))
        .collect();
    // A format needs its path and the other way round: both are compared with neither.
    let before = if kind == "import" {
        Vec::new()
    } else {
        overrides.clone()
    };
    overrides.push((path(key), value));
    assert_ne!(
        stage(project, name, &before),
        stage(project, name, &overrides),
        "{kind}: {key} changes nothing"
    );
}

#[test]
fn every_key_of_every_stage_changes_its_plan() {
    let whole = project(BASE);
    let import = project(IMPORT);
    let mut num_checked = 0;
    for kind in KINDS {
        let project = if *kind == "import" { &import } else { &whole };
        for key in schema::keys(kind) {
            let is_model = ["model", "reward[].model"].contains(&key);
            if !is_model && !FIXED.contains(&(kind, key)) {
                check_key(project, kind, key);
                num_checked += 1;
            }
        }
    }
    assert!(num_checked > 110, "{num_checked} keys were checked");
}

#[test]
fn every_value_belongs_to_a_key() {
    for (key, _, _) in VALUES {
        let known = KINDS.iter().any(|kind| schema::keys(kind).contains(key));
        assert!(known, "{key} is in no schema");
    }
}

#[test]
fn models_are_read() {
    let project = Project::new(BASE);
    for (key, value) in [
        ("stages.sft.model", "stage:pretrain"),
        ("stages.comparisons.model", "stage:pretrain"),
        ("stages.reward.model", "stage:pretrain"),
        ("stages.ppo.model", "stage:pretrain"),
    ] {
        let plan = project
            .load(&[(key, value)])
            .unwrap_or_else(|error| panic!("{key}: {error}"));
        let name = key.split('.').nth(1).expect("a stage");
        let inputs = plan.stage(name).expect("the stage").inputs();
        assert_eq!(
            format!("{:?}", inputs[0].1),
            "Stage { name: \"pretrain\" }",
            "{key}"
        );
    }
}

#[test]
fn top_level_keys_are_read() {
    let project = Project::new(BASE);
    let overrides = [("name", "other"), ("seed", "7"), ("preset", "nplus")];
    let plan = project.load(&overrides).expect("a plan");
    assert_eq!((plan.name.as_str(), plan.seed), ("other", 7));
    assert_eq!(plan.preset.as_deref(), Some("nplus"));
}

#[test]
fn tokenizer_keys_are_read() {
    let project = project(BASE);
    let overrides = [
        ("tokenizer.vocab_size", "400"),
        ("tokenizer.data", "other.parquet"),
    ];
    let plan = project.load(&overrides).expect("a plan");
    let Task::Tokenizer(tokenizer) = &plan.stages[0].task else {
        panic!("the tokenizer comes first: {:?}", plan.stages[0]);
    };
    assert_eq!(tokenizer.vocab_size, 400);
    assert!(
        format!("{:?}", tokenizer.data).contains("other.parquet"),
        "{:?}",
        tokenizer.data
    );
    let Task::Pretrain(pretrain) = &plan.stage("pretrain").expect("pretrain").task else {
        panic!("no pretraining");
    };
    assert_eq!(pretrain.model.vocab_size, 400);
}

#[test]
fn a_tokenizer_can_be_a_folder() {
    let texts =
        (0..50).map(|index| format!("some text number {index} to learn from, again and again"));
    let tokenizer = datasets::Tokenizer::train(texts, 270).expect("a tokenizer");
    let tokenizer_lines = "kind = \"bpe\"\nvocab_size = 300\ndata = \"stage:corpus\"";
    let project = Project::new(&BASE.replace(tokenizer_lines, "kind = \"path\"\npath = \"words\""));
    std::fs::create_dir(project.dir.path().join("words")).expect("a folder");
    tokenizer
        .save(&project.dir.path().join("words"))
        .expect("saved");
    let plan = project.load(&[]).expect("a plan");
    assert!(plan.stage("tokenizer").is_none(), "nothing is trained");
    let Task::Pretrain(pretrain) = &plan.stage("pretrain").expect("pretrain").task else {
        panic!("no pretraining");
    };
    assert_eq!(pretrain.model.vocab_size, 270);
}
