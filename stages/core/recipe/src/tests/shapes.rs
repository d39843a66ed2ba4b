//! Parameter counts against published ones; `config.json` there and back.

use serde_json::{Value, json};

use crate::plan::{Dtype, Execution};
use crate::shape::{Family, ModelShape};
use crate::{arithmetic, sizes};

fn named(name: &str) -> ModelShape {
    sizes::named(name).unwrap_or_else(|| panic!("no size {name}"))
}

/// Counts of `transformers`: `sum(p.numel() for p in model.parameters())` of the published folders.
#[test]
fn parameters_are_the_published_ones() {
    for (name, expected) in [
        ("gpt2-82m", 81_912_576),
        ("gpt2-124m", 124_439_808),
        ("gpt2-355m", 354_823_168),
        ("gpt2-774m", 774_030_080),
        ("gpt2-1.5b", 1_557_611_200),
        ("llama-1.1b", 1_100_048_384),
        ("llama-7b", 6_738_415_616),
        ("llama-13b", 13_015_864_320),
        ("llama-33b", 32_528_943_616),
        ("llama-65b", 65_285_660_672),
        ("llama2-7b", 6_738_415_616),
        ("llama2-70b", 68_976_648_192),
        ("llama3-8b", 8_030_261_248),
        ("llama3-70b", 70_553_706_496),
        ("gpt1-117m", 116_534_784),
        ("opt-125m", 125_239_296),
        ("opt-350m", 331_196_416),
        ("opt-1.3b", 1_315_758_080),
        ("pythia-70m", 70_426_624),
        ("pythia-160m", 162_322_944),
        ("pythia-6.9b", 6_857_302_016),
        ("mistral-7b", 7_241_732_096),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-8b", 8_190_735_360),
        ("falcon-7b", 6_921_720_704),
        ("falcon-40b", 41_303_293_952),
        ("chatglm2-6b", 6_243_584_000),
        ("glm4-9b", 9_399_951_360),
    ] {
        assert_eq!(named(name).num_parameters(), expected, "{name}");
    }
}

/// GPT-3's table 2.1 counts in billions, without the embeddings' share being stated.
#[test]
fn parameters_of_gpt3_are_near_the_papers() {
    for (name, billions) in [
        ("gpt3-125m", 0.125),
        ("gpt3-350m", 0.356),
        ("gpt3-760m", 0.760),
        ("gpt3-1.3b", 1.3),
        ("gpt3-2.7b", 2.65),
        ("gpt3-6.7b", 6.66),
        ("gpt3-13b", 12.85),
        ("gpt3-175b", 174.6),
    ] {
        let ours = named(name).num_parameters() as f64 / 1e9;
        assert!((ours / billions - 1.0).abs() < 0.02, "{name}: {ours}");
    }
}

#[test]
fn a_scalar_head_replaces_the_output_projection() {
    let llama = named("llama-7b");
    let projection = 32_000 * 4096;
    assert_eq!(
        llama.num_parameters_scalar(),
        llama.num_parameters() - projection + 4096
    );
    let gpt2 = named("gpt2-124m");
    assert_eq!(gpt2.num_parameters_scalar(), gpt2.num_parameters() + 768);
}

#[test]
fn operations_follow_parameters_and_context() {
    let shape = named("gpt2-124m");
    let matrices = shape.num_matrix_parameters() as f64;
    assert_eq!(
        shape.num_matrix_parameters(),
        12 * 12 * 768 * 768 + 50257 * 768
    );
    let attention = 12.0 * 12.0 * 768.0 * 1024.0;
    let forward = shape.forward_flops_per_token(1024);
    let training = shape.training_flops_per_token(forward, 1024, None);
    let difference = training - (6.0 * matrices + attention);
    assert!(difference.abs() < 1.0, "{difference}");
}

#[test]
fn memory_counts_states_and_activations() {
    assert_eq!(arithmetic::training_bytes(10, Dtype::F32), 160);
    assert_eq!(arithmetic::training_bytes(10, Dtype::Bf16), 200);
    assert_eq!(arithmetic::weight_bytes(10, Dtype::F64), 80);
    let shape = named("llama-7b");
    let mut execution = Execution {
        dtype: Dtype::Bf16,
        micro_batch: 1,
        checkpointing: false,
        save_every: 1,
        keep: 1,
    };
    let all = shape.activation_bytes(2048, &execution);
    execution.checkpointing = true;
    assert!(shape.activation_bytes(2048, &execution) * 8 < all);
    assert_eq!(shape.cache_bytes(1, Dtype::Bf16), 2 * 32 * 4096 * 2);
}

#[test]
fn every_size_is_consistent_and_survives_its_config() {
    for name in sizes::names() {
        let shape = named(name);
        shape
            .check()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let config = Value::Object(shape.to_hf());
        assert_eq!(ModelShape::from_hf(&config), Ok(shape), "{name}: {config}");
    }
}

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
fn logits_of_a_long_context_are_counted_by_the_chunk() {
    let shape = named("llama-7b");
    let bytes = |tokens| shape.logit_bytes(tokens, Dtype::Bf16);
    assert_eq!(bytes(2048), 2 * 2048 * 32_000 * 4);
    assert!(bytes(32_768) <= 2 * (512 << 20) && bytes(32_768) > bytes(2048));
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
            "config.json: model_type: \"mamba\" is unknown\n  hint: known model types: openai-gpt, gpt2, gpt_neo, gpt_neox, opt, llama, mistral, qwen2, qwen3, falcon, glm, chatglm",
        ),
        (
            gpt2_config(),
            "model_type",
            json!(null),
            "config.json: model_type: missing\n  hint: the folder must hold a Hugging Face model of one of the types openai-gpt, gpt2, gpt_neo, gpt_neox, opt, llama, mistral, qwen2, qwen3, falcon, glm, chatglm",
        ),
        (
            gpt2_config(),
            "n_embd",
            json!(null),
            "config.json: n_embd: missing\n  hint: the folder must hold a Hugging Face model of type gpt2",
        ),
        (
            gpt2_config(),
            "n_layer",
            json!("12"),
            "config.json: n_layer: must be a whole number of at least 1, is \"12\"\n  hint: check that the folder's config.json is whole",
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
            "config.json: activation_function: \"mish\" is not supported\n  hint: supported: gelu, gelu_new, relu, silu",
        ),
        (
            gpt2_config(),
            "scale_attn_by_inverse_layer_idx",
            json!(true),
            "config.json: scale_attn_by_inverse_layer_idx: true is not supported\n  hint: supported: false",
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
            "config.json: attention_bias: must be true or false, is \"yes\"\n  hint: check that the folder's config.json is whole",
        ),
        (
            llama_config(),
            "hidden_act",
            json!("mish"),
            "config.json: hidden_act: \"mish\" is not supported\n  hint: supported: gelu, gelu_new, relu, silu",
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
            "config.json: low_freq_factor: missing\n  hint: the folder must hold a Hugging Face model of type llama",
        ),
        (
            llama_config(),
            "rope_parameters",
            json!({ "rope_type": "longrope", "rope_theta": 1e4 }),
            "config.json: rope_parameters: {\"rope_theta\":10000.0,\"rope_type\":\"longrope\"} is not supported\n  hint: supported: rope_type default, linear, dynamic, yarn, llama3",
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
            "config.json: quantization_config: {\"bits\":4} is not supported\n  hint: supported: none",
        ),
    ] {
        assert_eq!(refusal(config, key, value), expected, "{key}");
    }
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
fn architectures_are_those_of_transformers() {
    assert_eq!(
        Family::Gpt2.architecture(true),
        "GPT2ForSequenceClassification"
    );
    assert_eq!(Family::Llama.architecture(false), "LlamaForCausalLM");
    assert_eq!(Family::Llama.model_type(), "llama");
}
