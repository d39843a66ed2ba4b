//! Folders of peft: there and back, and what is refused.

use std::fs;

use model::{Head, weights};
use serde_json::{Value, json};
use tch::Kind;

use crate::golden::{Golden, NAMES, PREFIX, Tensors, bits};

#[test]
fn an_adapter_goes_there_and_back_under_pefts_names() {
    for name in NAMES {
        let golden = Golden::new(name);
        let mut model = golden.adapted(Kind::Float);
        if model.head == Head::Scalar {
            model.reward_shift = -1.25;
        }
        let dirs = ["one", "two"].map(|folder| golden.dir.path().join(folder));
        for dir in &dirs {
            fs::create_dir(dir).expect("a folder");
            model.save_adapter(dir).expect("saved");
        }
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            let [one, two] = dirs
                .each_ref()
                .map(|dir| fs::read(dir.join(file)).expect("read"));
            assert!(one == two, "{file} is another each time");
        }
        let written = weights::read(&dirs[0].join("adapter_model.safetensors")).expect("tensors");
        let theirs = golden.part("adapter/");
        assert!(written.keys().eq(theirs.keys()), "{name}");
        assert!(bits(&written) == bits(&theirs), "{name}");
        let read = golden
            .base(Kind::Float)
            .with_adapter(&dirs[0])
            .expect("read");
        assert!(
            bits(&read.trainable()) == bits(&model.trainable()),
            "{name}"
        );
        assert!((read.reward_shift - model.reward_shift).abs() < 1e-12);
        assert!(golden.gap(&read, &golden.tensors["out"]) < 1e-4, "{name}");
        let config: Value = runtime::files::read_json(&dirs[0].join("adapter_config.json"))
            .expect("a configuration");
        assert_eq!(config["fan_in_fan_out"], json!(name == "gpt2"));
    }
}

/// The refusal of a golden adapter after a change to its configuration.
fn refusal(golden: &Golden, key: &str, value: Value) -> String {
    let path = golden.dir.path().join("adapter/adapter_config.json");
    let mut config: Value = runtime::files::read_json(&path).expect("a configuration");
    let before = config.clone();
    config[key] = value;
    runtime::files::write_json(&path, &config).expect("written");
    let adapter = golden.dir.path().join("adapter");
    let refused = golden.base(Kind::Float).with_adapter(&adapter);
    runtime::files::write_json(&path, &before).expect("written");
    refused.expect_err(key).to_string()
}

#[test]
fn settings_that_are_not_computed_are_refused_by_name() {
    let golden = Golden::new("llama");
    for (key, value) in [
        ("peft_type", json!("IA3")),
        ("use_dora", json!(true)),
        ("bias", json!("lora_only")),
        ("lora_bias", json!(true)),
        ("rank_pattern", json!({"q_proj": 4})),
        ("alpha_pattern", json!({"q_proj": 4})),
        ("layers_to_transform", json!([0])),
        ("layers_pattern", json!("layers")),
        ("layer_replication", json!([[0, 2]])),
        ("init_lora_weights", json!("pissa")),
        ("trainable_token_indices", json!([1])),
        ("target_parameters", json!(["mlp.experts"])),
        ("something_of_a_later_version", json!(1)),
        ("modules_to_save", json!(["lm_head"])),
        ("task_type", json!("SEQ_2_SEQ_LM")),
        ("r", json!(0)),
    ] {
        let text = refusal(&golden, key, value);
        assert!(text.contains("adapter_config.json"), "{text}");
        assert!(
            text.contains(key) && text.contains("\n  hint: "),
            "{key}: {text}"
        );
    }
    let dora = refusal(&golden, "use_dora", json!(true));
    assert!(
        dora.ends_with(
            "use_dora is true: not computed here\n  hint: merge the adapter with peft \
             (`merge_and_unload`), and use the merged model"
        ),
        "{dora}"
    );
}

#[test]
fn tensors_that_do_not_fit_are_refused_by_name() {
    let golden = Golden::new("llama");
    let dir = golden.dir.path().join("adapter");
    let file = dir.join("adapter_model.safetensors");
    let whole = golden.part("adapter/");
    let refuse = |tensors: &Tensors| {
        weights::write(&file, tensors).expect("written");
        let refused = golden.base(Kind::Float).with_adapter(&dir);
        refused.expect_err("refused").to_string()
    };
    let copy = || -> Tensors {
        let all = whole.iter();
        all.map(|(name, t)| (name.clone(), t.shallow_clone()))
            .collect()
    };
    let name = format!("{PREFIX}model.layers.1.self_attn.q_proj.lora_A.weight");

    let mut tensors = copy();
    let tensor = tensors.remove(&name).expect("the tensor");
    let text = refuse(&tensors);
    assert!(
        text.contains(&name) && text.contains("is missing"),
        "{text}"
    );

    tensors.insert(name.clone(), tensor.narrow(0, 0, 2));
    let text = refuse(&tensors);
    assert!(
        text.contains(&format!("`{name}` is [2, 16], expected [3, 16]")),
        "{text}"
    );

    let mut tensors = copy();
    tensors.insert(
        format!("{PREFIX}lm_head.lora_A.weight"),
        tensor.shallow_clone(),
    );
    let text = refuse(&tensors);
    assert!(text.contains("lm_head.lora_A.weight"), "{text}");

    let mut tensors = copy();
    tensors.insert(name.clone(), tensor.to_kind(Kind::Int64));
    let text = refuse(&tensors);
    assert!(text.contains(&name) && text.contains("dtype I64"), "{text}");

    let text = refuse(&Tensors::new());
    assert!(text.contains("it holds no tensors"), "{text}");

    fs::remove_file(&file).expect("removed");
    let missing = golden
        .base(Kind::Float)
        .with_adapter(&dir)
        .expect_err("refused");
    let text = missing.to_string();
    assert!(
        text.contains("adapter_model.safetensors does not exist\n  hint: "),
        "{text}"
    );
    let nowhere = golden.base(Kind::Float).with_adapter(golden.dir.path());
    let text = nowhere.expect_err("refused").to_string();
    assert!(
        text.contains("adapter_config.json does not exist"),
        "{text}"
    );
}

#[test]
fn the_head_of_an_adapter_must_fit_the_model_under_it() {
    // A language model becomes a reward model under the adapters of one.
    let (token, scalar) = (Golden::new("llama"), Golden::new("llama_scalar"));
    let adapter = scalar.dir.path().join("adapter");
    let model = token
        .base(Kind::Float)
        .with_adapter(&adapter)
        .expect("a reward model");
    assert_eq!(model.head, Head::Scalar);
    assert!(!model.params().contains_key("lm_head.weight"));
    let adapter = token.dir.path().join("adapter");
    let refused = scalar.base(Kind::Float).with_adapter(&adapter);
    let text = refused.expect_err("refused").to_string();
    assert!(
        text.contains("the model under it has a scalar head\n  hint: "),
        "{text}"
    );
}
