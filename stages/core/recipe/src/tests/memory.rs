//! What `rlhf plan` predicts for a PPO of four 7B models in bf16.

use super::base_with;
use super::lora::{SHARED, number};

const SEVEN: [(&str, &str); 5] = [
    ("stages.pretrain.model", r#"{ size = "llama2-7b" }"#),
    ("stages.ppo.dtype", "bf16"),
    ("stages.ppo.checkpointing", "true"),
    ("stages.ppo.max_prompt_tokens", "512"),
    ("stages.ppo.max_new_tokens", "512"),
];
const INT4: (&str, &str) = ("stages.ppo.quantize", "int4");
const BY_ROWS: [(&str, &str); 2] = [
    ("stages.ppo.micro_batch", "1"),
    ("stages.ppo.sample_batch", "1"),
];

/// On a GPU.
fn predicted(more: &[(&str, &str)]) -> String {
    let plan = base_with(&[&SEVEN[..], more].concat());
    number(&plan, "ppo", "peak memory on a GPU, predicted")
}

/// Bytes of a number that the plan prints.
fn in_bytes(text: &str) -> f64 {
    let (value, unit) = text.split_once(' ').expect("a unit");
    let scale = match unit {
        "MiB" => 20,
        "GiB" => 30,
        other => panic!("{other}"),
    };
    value.parse::<f64>().expect("a number") * f64::from(1 << scale)
}

/// `memory/peak` less `memory/start` of runs on two CPU cores (experiments/benchmarks/README.md), MB.
#[test]
fn predictions_are_within_a_tenth_of_what_was_measured() {
    let gpt2 = r#"{ family = "gpt2", layers = 8, width = 768, heads = 12, vocab_size = 8192 }"#;
    let llama = r#"{ family = "llama", layers = 8, width = 768, heads = 12, kv_heads = 4, mlp_width = 2048, vocab_size = 8192 }"#;
    let settings = [
        ("stages.pretrain.context", "256"),
        ("stages.pretrain.batch", "8"),
        ("stages.pretrain.micro_batch", "8"),
        ("stages.sft.context", "256"),
        ("stages.sft.batch", "16"),
        ("stages.sft.micro_batch", "8"),
        ("stages.comparisons.num_prompts", "60"),
        ("stages.comparisons.num_heldout", "4"),
        ("stages.comparisons.responses", "4"),
        ("stages.comparisons.max_new_tokens", "64"),
        ("stages.comparisons.sample_batch", "240"),
        ("stages.reward.context", "40"),
        ("stages.reward.micro_batch", "4"),
        ("stages.ppo.batch", "16"),
        ("stages.ppo.micro_batch", "8"),
        ("stages.ppo.max_new_tokens", "32"),
        ("stages.ppo.ptx.context", "64"),
        ("stages.ppo.ema", "0.9"),
        ("stages.ppo.eval_prompts", "4"),
    ];
    for (model, measured) in [
        (
            gpt2,
            [
                ("pretrain", 1841.0),
                ("sft", 2100.0),
                ("comparisons", 1417.0),
                ("reward", 1332.0),
                ("ppo", 2892.0),
            ],
        ),
        (
            llama,
            [
                ("pretrain", 1782.0),
                ("sft", 2026.0),
                ("comparisons", 857.0),
                ("reward", 1209.0),
                ("ppo", 2777.0),
            ],
        ),
    ] {
        let plan = base_with(&[&[("stages.pretrain.model", model)], &settings[..]].concat());
        for (stage, measured) in measured {
            let ratio = in_bytes(&number(&plan, stage, "peak memory, predicted")) / 1e6 / measured;
            assert!((0.9..1.1).contains(&ratio), "{stage} of {model}: {ratio}");
        }
    }
}

/// A bound on logits keeps them out of the memory of long contexts, and a GPU's bound is larger.
#[test]
fn logits_are_counted_by_the_chunk() {
    let logits = |context: &str, name| {
        let of = |vocab_size: &str| {
            let model = format!("{{ size = \"llama-tiny\", vocab_size = {vocab_size} }}");
            let plan = base_with(&[
                ("stages.pretrain.model", &model),
                ("stages.pretrain.context", context),
                ("stages.pretrain.micro_batch", "16"),
            ]);
            in_bytes(&number(&plan, "pretrain", name)) / f64::from(1 << 20)
        };
        of("64000") - of("32000")
    };
    // 32,000 more rows of embedding and head, each with its gradient and two moments.
    let weights = f64::from(4 * 2 * 32_000 * 64 * 4) / f64::from(1 << 20);
    for (context, name, beyond) in [
        ("128", "peak memory, predicted", 0.0),
        ("128", "peak memory on a GPU, predicted", 3.0 * 250.0),
    ] {
        let more = logits(context, name) - weights;
        assert!(
            (more - beyond).abs() < 110.0,
            "{name}: {more} MiB, not {beyond}"
        );
    }
}

#[test]
fn a_7b_ppo_takes_what_the_readme_says() {
    let published = |more: &[(&str, &str)]| {
        let of_its_size = [
            (
                "stages.pretrain.model",
                r#"{ size = "llama2-7b", vocab_size = 32000 }"#,
            ),
            ("stages.ppo.sample_batch", "16"),
            ("stages.ppo.micro_batch", "4"),
            ("stages.ppo.ptx.context", "1024"),
        ];
        predicted(&[&of_its_size, more].concat())
    };
    let one_backbone = [
        ("stages.reward.lora", "{}"),
        ("stages.ppo.lora.share_backbone", "true"),
    ];
    let few_bits = [&one_backbone[..], &[INT4]].concat();
    let by_rows = [&few_bits[..], &BY_ROWS].concat();
    let all = [
        published(&[]),
        published(&[("stages.ppo.value_model", "shared")]),
        published(&[("stages.ppo.lora", "{}")]),
        published(&one_backbone),
        published(&few_bits),
        published(&by_rows),
    ];
    let expected = [
        "261.4 GiB",
        "150.7 GiB",
        "37.9 GiB",
        "25.7 GiB",
        "13.5 GiB",
        "5.6 GiB",
    ];
    assert_eq!(all, expected);
}

/// More than 200 GiB with all weights trained, or one backbone, and its merged copy at the end.
#[test]
fn a_7b_ppo_on_one_backbone_fits_a_card_of_80_gb() {
    let by_eight = ("stages.ppo.sample_batch", "8");
    let memory = |more: &[(&str, &str)]| -> f64 {
        let text = predicted(&[&[by_eight], more].concat());
        let value = text.strip_suffix(" GiB").expect("a size in GiB");
        value.parse().expect("a number")
    };
    let full = memory(&[]);
    let apart = memory(&[("stages.ppo.lora", "{}")]);
    let shared = memory(&SHARED);
    assert!(full > 200.0, "{full}");
    assert!(apart < full / 4.0, "{apart}");
    assert!(shared < apart - 11.0, "{apart} {shared}");
    assert!(shared * 1.074 < 80.0, "{shared} GiB");
    let few_bits = [&SHARED[..], &[INT4]].concat();
    let quantized = memory(&few_bits);
    assert!(quantized < shared - 8.0, "{shared} {quantized}");
    // A row at a time, what is left is codes and adapters: no card is too small for these.
    let by_rows = memory(&[&few_bits[..], &BY_ROWS].concat());
    assert!(by_rows < 8.0, "{by_rows}");
    let plan = base_with(&[&SEVEN[..], &few_bits].concat());
    let merged = "merged weights at the end, in the host's memory";
    assert_eq!(number(&plan, "ppo", merged), "12.1 GiB");
    // A value model on whole weights has 12 GiB of them for 4 of codes, and is merged beside them at the end,
    // which is 12 GiB for what a row's update takes.
    let codes = [&[("stages.ppo.lora", "{}"), INT4][..], &BY_ROWS].concat();
    let whole = ("stages.ppo.reward.0.quantize", "false");
    let more = memory(&[&codes[..], &[whole]].concat()) - memory(&codes);
    assert!((15.0..20.5).contains(&more), "{more}");
}
