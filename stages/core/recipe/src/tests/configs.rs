//! `config.json`: published ones are read, and what is not computed is refused by its key.

use serde_json::{Value, json};

use super::shapes::named;
use crate::shape::{ModelShape, RopeScaling};

fn gpt2_config() -> Value {
    json!({
        "model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_ctx": 1024,
        "n_embd": 768, "n_head": 12, "n_layer": 12, "n_inner": null,
        "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "resid_pdrop": 0.1, "initializer_range": 0.02,
        "architectures": ["GPT2LMHeadModel"],
    })
}

fn llama_config() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 2048,
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "rms_norm_eps": 1e-6, "hidden_act": "silu",
        "tie_word_embeddings": false, "rope_scaling": null, "pretraining_tp": 1,
    })
}

#[test]
fn published_configs_are_read() {
    assert_eq!(ModelShape::from_hf(&gpt2_config()), Ok(named("gpt2-124m")));
    assert_eq!(ModelShape::from_hf(&llama_config()), Ok(named("llama-7b")));
}

#[test]
fn both_layouts_of_the_rotary_base_are_read() {
    for (key, value) in [
        ("rope_theta", json!(500_000.0)),
        (
            "rope_parameters",
            json!({ "rope_type": "default", "rope_theta": 500_000.0 }),
        ),
        (
            "rope_scaling",
            json!({ "type": "default", "rope_theta": 500_000 }),
        ),
    ] {
        let mut config = llama_config();
        config[key] = value;
        let shape = ModelShape::from_hf(&config).unwrap_or_else(|error| panic!("{key}: {error}"));
        let theta = shape.rotary().map(|rotary| rotary.theta.to_bits());
        assert_eq!(theta, Some(500_000_f64.to_bits()), "{key}");
    }
}

#[test]
fn dynamic_scaling_stretches_the_trained_length_of_the_config() {
    let mut config = llama_config();
    config["rope_scaling"] = json!({ "type": "dynamic", "factor": 2.5 });
    let shape = ModelShape::from_hf(&config).expect("a shape");
    let (trained, longest) = (shape.fixed_positions(), shape.max_positions);
    assert_eq!((trained, longest), (2048, 5120));
    let written = serde_json::Value::Object(shape.to_hf());
    assert_eq!(written["max_position_embeddings"], 2048);
    assert_eq!(written["rope_parameters"]["rope_type"], "dynamic");
    assert_eq!(ModelShape::from_hf(&written), Ok(shape));
}

/// The refusal of a configuration in which one key is another value.
fn refusal(mut config: Value, key: &str, value: Value) -> String {
    config[key] = value;
    match ModelShape::from_hf(&config) {
        Ok(shape) => panic!("{key}: accepted as {shape:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn foreign_gpt2_configs_are_refused_by_name() {
    for (config, key, value, expected) in [
        (
            gpt2_config(),
            "model_type",
            json!("mamba"),
            "model_type: \"mamba\" is unknown\n  hint: known model types: openai-gpt, gpt2, gpt_neo, gpt_neox, opt, llama, mistral, qwen2, qwen3, falcon, glm, chatglm",
        ),
        (
            gpt2_config(),
            "model_type",
            json!(null),
            "model_type: missing\n  hint: the folder must hold a Hugging Face model of one of the types openai-gpt, gpt2, gpt_neo, gpt_neox, opt, llama, mistral, qwen2, qwen3, falcon, glm, chatglm",
        ),
        (
            gpt2_config(),
            "n_embd",
            json!(null),
            "n_embd: missing\n  hint: the folder must hold a Hugging Face model of type gpt2",
        ),
        (
            gpt2_config(),
            "n_layer",
            json!("12"),
            "n_layer: must be a whole number of at least 1, is \"12\"\n  hint: check that the folder's config.json is whole",
        ),
        (
            gpt2_config(),
            "n_head",
            json!(7),
            "model shape: heads 7 times head_dim 109 must be width 768\n  hint: choose a number of heads that divides the width",
        ),
        (
            gpt2_config(),
            "activation_function",
            json!("mish"),
            "activation_function: \"mish\" is not supported\n  hint: supported: gelu, gelu_new, relu, silu",
        ),
        (
            gpt2_config(),
            "scale_attn_by_inverse_layer_idx",
            json!(true),
            "scale_attn_by_inverse_layer_idx: true is not supported\n  hint: supported: false",
        ),
    ] {
        assert_eq!(refusal(config, key, value), expected, "{key}");
    }
}

#[test]
fn foreign_llama_configs_are_refused_by_name() {
    for (config, key, value, expected) in [
        (
            llama_config(),
            "attention_bias",
            json!("yes"),
            "attention_bias: must be true or false, is \"yes\"\n  hint: check that the folder's config.json is whole",
        ),
        (
            llama_config(),
            "hidden_act",
            json!("mish"),
            "hidden_act: \"mish\" is not supported\n  hint: supported: gelu, gelu_new, relu, silu",
        ),
        (
            llama_config(),
            "num_key_value_heads",
            json!(5),
            "model shape: kv_heads 5 must divide heads 32\n  hint: give as many key heads as query heads, or a divisor of them",
        ),
        (
            llama_config(),
            "rope_scaling",
            json!({ "rope_type": "llama3", "factor": 8.0 }),
            "low_freq_factor: missing\n  hint: the folder must hold a Hugging Face model of type llama",
        ),
        (
            llama_config(),
            "rope_parameters",
            json!({ "rope_type": "longrope", "rope_theta": 1e4 }),
            "rope_parameters: {\"rope_theta\":10000.0,\"rope_type\":\"longrope\"} is not supported\n  hint: supported: rope_type default, linear, dynamic, yarn, llama3",
        ),
        (
            llama_config(),
            "rope_scaling",
            json!({ "type": "linear", "factor": 0.0 }),
            "model shape: the factor of rope_scaling must be above 0, is 0\n  hint: it says how many times longer the context became",
        ),
        (
            llama_config(),
            "rope_scaling",
            json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0 }),
            "model shape: low_freq_factor 4 must be below high_freq_factor 4\n  hint: Llama 3's are 1 and 4",
        ),
        (
            llama_config(),
            "rope_scaling",
            json!({ "type": "yarn", "factor": 4.0, "finetuned": true }),
            "rope_scaling.finetuned: true is not supported\n  hint: supported: rope_type, type, rope_theta, partial_rotary_factor, factor, original_max_position_embeddings, low_freq_factor, high_freq_factor, beta_fast, beta_slow, attention_factor, mscale, mscale_all_dim, truncate",
        ),
        (
            llama_config(),
            "partial_rotary_factor",
            json!(0.5),
            "partial_rotary_factor: 0.5 is not supported\n  hint: supported: 1 in this family",
        ),
        (
            llama_config(),
            "rope_scaling",
            json!({ "type": "dynamic", "factor": 0.5 }),
            "model shape: the factor of dynamic scaling must be at least 1, is 0.5\n  hint: 2 makes rows of twice the trained length possible",
        ),
        (
            llama_config(),
            "quantization_config",
            json!({ "bits": 4 }),
            "quantization_config: {\"bits\":4} is not supported\n  hint: supported: none",
        ),
    ] {
        assert_eq!(refusal(config, key, value), expected, "{key}");
    }
}

/// As transformers 5.23 reads it: outside the table, in it, else the context.
#[test]
fn the_context_trained_on_is_found_where_it_is_stated() {
    let table = |more: Value| {
        let mut table = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        });
        table["original_max_position_embeddings"] = more;
        table
    };
    for (outside, inside, expected) in [
        (json!(512), json!(1024), 512),
        (json!(null), json!(1024), 1024),
        (json!(null), json!(null), 2048),
    ] {
        let mut config = llama_config();
        config["original_max_position_embeddings"] = outside;
        config["rope_scaling"] = table(inside);
        let shape = ModelShape::from_hf(&config).expect("a Llama");
        let scaling = shape.rotary().map(|rotary| rotary.scaling);
        assert!(
            matches!(scaling, Some(RopeScaling::Llama3 { original, .. }) if original == expected),
            "{scaling:?}"
        );
    }
}

/// What transformers 5.23 takes for a key that is absent, and for one that is `null`.
#[test]
fn absent_keys_have_the_defaults_of_transformers() {
    let read = |model_type: &str, more: Value| {
        let mut config = llama_config();
        config["model_type"] = json!(model_type);
        for key in ["rms_norm_eps", "rope_scaling"] {
            config.as_object_mut().expect("an object").remove(key);
        }
        for (key, value) in more.as_object().expect("an object") {
            config[key] = value.clone();
        }
        ModelShape::from_hf(&config).unwrap_or_else(|error| panic!("{model_type}: {error}"))
    };
    let sliding = json!({ "use_sliding_window": true, "max_window_layers": 0 });
    for (model_type, more, window) in [
        ("mistral", json!({}), Some(4096)),
        ("mistral", json!({ "sliding_window": null }), None),
        ("mistral", json!({ "sliding_window": 7 }), Some(7)),
        ("qwen2", sliding.clone(), Some(4096)),
        ("qwen3", sliding, Some(4096)),
        ("qwen2", json!({}), None),
    ] {
        let local = read(model_type, more.clone()).local;
        let found = local.map(|local| local.window);
        assert_eq!(found, window, "{model_type} {more}");
    }
    for (model_type, norm_eps) in [("glm", 1.5625e-7), ("llama", 1e-6)] {
        let found = read(model_type, json!({})).norm_eps;
        assert_eq!(found.to_bits(), f64::to_bits(norm_eps), "{model_type}");
    }
}

fn chatglm_config() -> Value {
    json!({
        "model_type": "chatglm", "padded_vocab_size": 65024, "seq_length": 32768, "num_layers": 28,
        "hidden_size": 4096, "num_attention_heads": 32, "multi_query_attention": true,
        "multi_query_group_num": 2, "kv_channels": 128, "ffn_hidden_size": 13696,
        "layernorm_epsilon": 1e-5, "add_qkv_bias": true,
    })
}

/// `ChatGLM2`'s program divides positions by `rope_ratio`; its successors multiply the base by it.
#[test]
fn chatglms_are_lengthened_in_the_way_of_their_generation() {
    for (name, theta, factor) in [
        ("THUDM/chatglm2-6b-32k", 1e4, Some(50.0)),
        ("THUDM/chatglm3-6b-32k", 5e5, None),
        ("THUDM/glm-4-9b-chat", 5e5, None),
    ] {
        let mut config = chatglm_config();
        config["_name_or_path"] = json!(name);
        config["rope_ratio"] = json!(50);
        let shape = ModelShape::from_hf(&config).expect("a GLM");
        let rotary = shape.rotary().expect("rotary positions");
        let scaling = factor.map_or(RopeScaling::None, |factor| RopeScaling::Linear { factor });
        assert_eq!((rotary.theta, rotary.scaling), (theta, scaling), "{name}");
        let stored = Value::Object(shape.to_hf());
        assert_eq!(ModelShape::from_hf(&stored), Ok(shape), "{name}");
    }
    let told = refusal(chatglm_config(), "rope_ratio", json!(50));
    assert!(
        told.contains("rope_ratio: 50.0") && told.contains("_name_or_path"),
        "{told}"
    );
    let told = refusal(chatglm_config(), "multi_query_attention", json!(false));
    assert!(told.contains("multi_query_attention: false"), "{told}");
}

#[test]
fn sinusoidal_positions_are_for_tables_without_unused_rows() {
    let opt = Value::Object(named("opt-125m").to_hf());
    let told = refusal(opt, "position_embedding_type", json!("sinusoidal"));
    assert!(told.contains("supported: absolute"), "{told}");
}

#[test]
fn two_rotary_bases_must_agree() {
    let mut config = llama_config();
    config["rope_theta"] = json!(10_000.0);
    config["rope_parameters"] = json!({ "rope_type": "default", "rope_theta": 500_000.0 });
    let error = ModelShape::from_hf(&config)
        .expect_err("refused")
        .to_string();
    assert!(
        error.contains("rope_theta is stated twice, as 10000 and 500000"),
        "{error}"
    );
}

#[test]
fn sizes_beyond_every_model_are_refused() {
    for (config, key, value, told) in [
        (llama_config(), "num_hidden_layers", 1_u64 << 62, "layers"),
        (llama_config(), "num_hidden_layers", 10_001, "layers"),
        (llama_config(), "hidden_size", 1 << 40, "width"),
        (llama_config(), "num_attention_heads", 1 << 40, "heads"),
        (llama_config(), "head_dim", 1 << 16, "heads times head_dim"),
        (llama_config(), "intermediate_size", u64::MAX, "mlp_width"),
        (
            llama_config(),
            "max_position_embeddings",
            1 << 25,
            "max_positions",
        ),
        (llama_config(), "vocab_size", 1 << 29, "vocab_size"),
        (gpt2_config(), "n_layer", 1 << 62, "layers"),
    ] {
        let error = refusal(config, key, json!(value));
        assert!(
            error.contains(&format!("{told} must be at most")),
            "{key}: {error}"
        );
    }
    for family in ["mistral", "gpt_neo"] {
        let key = if family == "gpt_neo" {
            "num_layers"
        } else {
            "num_hidden_layers"
        };
        let mut config = llama_config();
        config["model_type"] = json!(family);
        config["num_heads"] = json!(32);
        let error = refusal(config, key, json!(1_u64 << 62));
        assert!(error.contains("layers must be at most"), "{error}");
    }
}
