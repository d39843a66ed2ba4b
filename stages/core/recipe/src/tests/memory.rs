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

fn predicted(more: &[(&str, &str)]) -> String {
    let plan = base_with(&[&SEVEN[..], more].concat());
    number(&plan, "ppo", "peak memory, predicted")
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
        "281.4 GiB",
        "158.4 GiB",
        "38.2 GiB",
        "25.9 GiB",
        "13.0 GiB",
        "5.7 GiB",
    ];
    assert_eq!(all, expected);
}

/// More than 250 GiB with all weights trained, or one backbone, and its merged copy at the end.
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
    assert!(full > 250.0, "{full}");
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
