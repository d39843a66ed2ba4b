//! Parameter counts against published ones; named sizes, resized and stored.

use serde_json::Value;

use super::base_with;
use crate::families::Sizes;
use crate::plan::{Dtype, Execution, Quantization};
use crate::shape::{Family, ModelShape};
use crate::tensors::Head;
use crate::{arithmetic, sizes, stage_numbers};

pub(super) fn named(name: &str) -> ModelShape {
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
        ("llama2-13b", 13_015_864_320),
        ("llama2-70b", 68_976_648_192),
        ("llama3-8b", 8_030_261_248),
        ("llama3-70b", 70_553_706_496),
        ("gpt1-117m", 116_534_784),
        ("opt-125m", 125_239_296),
        ("opt-350m", 331_196_416),
        ("opt-1.3b", 1_315_758_080),
        ("opt-2.7b", 2_651_596_800),
        ("opt-6.7b", 6_658_473_984),
        ("opt-13b", 12_853_473_280),
        ("opt-30b", 29_974_540_288),
        ("pythia-70m", 70_426_624),
        ("pythia-160m", 162_322_944),
        ("pythia-410m", 405_334_016),
        ("pythia-1b", 1_011_781_632),
        ("pythia-1.4b", 1_414_647_808),
        ("pythia-2.8b", 2_775_208_960),
        ("pythia-6.9b", 6_857_302_016),
        ("pythia-12b", 11_846_072_320),
        ("mistral-7b", 7_241_732_096),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-8b", 8_190_735_360),
        ("falcon-7b", 6_921_720_704),
        ("falcon-40b", 41_303_293_952),
        ("chatglm2-6b", 6_243_584_000),
        ("chatglm3-6b", 6_243_584_000),
        ("glm4-9b", 9_399_951_360),
    ] {
        assert_eq!(named(name).num_parameters(), expected, "{name}");
    }
}

/// GPT-3's table D.1 and OPT's names count in billions, without the embeddings' share being stated.
#[test]
fn parameters_of_the_largest_are_near_the_papers() {
    for (name, billions) in [
        ("gpt3-125m", 0.125),
        ("gpt3-350m", 0.356),
        ("gpt3-760m", 0.760),
        ("gpt3-1.3b", 1.3),
        ("gpt3-2.7b", 2.65),
        ("gpt3-6.7b", 6.66),
        ("gpt3-13b", 12.85),
        ("gpt3-175b", 174.6),
        ("opt-66b", 66.0),
        ("opt-175b", 175.0),
    ] {
        let ours = named(name).num_parameters() as f64 / 1e9;
        assert!((ours / billions - 1.0).abs() < 0.02, "{name}: {ours}");
    }
}

/// Constants that no count of parameters shows.
#[test]
fn constants_are_those_of_the_published_folders() {
    for (name, norm_eps, theta) in [
        ("llama-33b", 1e-6, 1e4),
        ("llama-65b", 1e-5, 1e4),
        ("glm4-9b", 1.5625e-7, 5e6),
        ("chatglm3-6b", 1e-5, 1e4),
    ] {
        let shape = named(name);
        let found = (shape.norm_eps, shape.rotary().map(|rotary| rotary.theta));
        assert_eq!(found, (norm_eps, Some(theta)), "{name}");
    }
}

#[test]
fn a_resized_model_keeps_its_proportions() {
    for (name, width, heads, kv_heads, mlp_width) in [
        ("gpt2-124m", 768, 6, 6, 3072),
        ("gpt2-124m", 768, 24, 24, 3072),
        ("gpt2-124m", 384, 12, 12, 1536),
        ("gpt1-117m", 384, 12, 12, 1536),
        ("llama2-7b", 2048, 16, 16, 5504),
        ("llama2-70b", 4096, 32, 4, 14336),
        // 28 heads in groups of 8 would leave half a key head.
        ("llama2-70b", 3584, 28, 2, 12544),
        ("falcon-7b", 2272, 71, 1, 9088),
        ("opt-350m", 512, 8, 8, 2048),
    ] {
        let base = named(name);
        let resized = base.resized(&Sizes {
            vocab_size: base.vocab_size,
            max_positions: base.max_positions,
            layers: base.layers,
            width,
            heads,
        });
        let found = (resized.kv_heads, resized.mlp_width);
        assert_eq!(found, (kv_heads, mlp_width), "{name} of width {width}");
        let stored = Value::Object(resized.to_hf());
        assert_eq!(ModelShape::from_hf(&stored), Ok(resized), "{name}");
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
fn quantised_matrices_take_a_quarter_or_less() {
    assert_eq!(Quantization::Int8.matrix_bytes([3, 65]), 3 * (65 + 4));
    assert_eq!(Quantization::Int4.matrix_bytes([3, 65]), 3 * 2 * (32 + 8));
    // GPT-2's matrices are stored the other way round.
    let shape = sizes::named("gpt2-124m").expect("a size");
    let (outputs, matrices) = (12 * (2304 + 768 + 3072 + 768), 84_934_656);
    let rest = 4 * (124_439_808 - matrices);
    for (quantize, expected) in [
        (None, 4 * 124_439_808),
        (Some(Quantization::Int8), rest + matrices + 4 * outputs),
        (Some(Quantization::Int4), rest + matrices * 5 / 8),
    ] {
        let found = arithmetic::frozen_bytes(&shape, Head::Token, Dtype::F32, quantize);
        assert_eq!(found, expected, "{quantize:?}");
    }
}

#[test]
fn memory_counts_states_and_activations() {
    assert_eq!(arithmetic::state_bytes(10, Dtype::F32), 80);
    assert_eq!(arithmetic::state_bytes(10, Dtype::Bf16), 120);
    assert_eq!(arithmetic::weight_bytes(10, Dtype::F64), 80);
    let shape = named("llama-7b");
    let mut execution = Execution {
        dtype: Dtype::Bf16,
        micro_batch: 1,
        sample_batch: 1,
        checkpointing: false,
        sharding: crate::plan::Sharding::None,
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

/// Also those that fit on no machine here.
#[test]
fn every_size_has_a_plan() {
    let names = sizes::names();
    assert!(names.len() > 50, "{} sizes", names.len());
    for name in names {
        let model = format!("{{ size = \"{name}\" }}");
        let short = ("stages.pretrain.context", "32");
        let plan = base_with(&[("stages.pretrain.model", &model), short]);
        let numbers = stage_numbers(&plan, plan.stage("pretrain").expect("pretrain"));
        let memory = numbers
            .iter()
            .find(|(key, _)| key == "peak memory, predicted");
        assert!(
            memory.is_some_and(|(_, bytes)| !bytes.starts_with("0.0")),
            "{name}"
        );
    }
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
