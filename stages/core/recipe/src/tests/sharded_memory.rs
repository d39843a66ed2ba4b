//! What a rank of several has in memory.

use super::base_with;
use crate::memory::{Loss, Passes, Place, Site};
use crate::plan::{Plan, Sharding};
use crate::supervised_numbers::training_of;
use crate::{peak_bytes, sizes};

const SEVEN: [(&str, &str); 14] = [
    (
        "stages.pretrain.model",
        r#"{ size = "llama2-7b", vocab_size = 32000 }"#,
    ),
    ("stages.pretrain.dtype", "bf16"),
    ("stages.pretrain.batch", "512"),
    ("stages.pretrain.micro_batch", "4"),
    ("stages.sft.dtype", "bf16"),
    ("stages.sft.batch", "512"),
    ("stages.sft.context", "512"),
    ("stages.sft.micro_batch", "4"),
    ("stages.reward.dtype", "bf16"),
    ("stages.reward.batch", "512"),
    ("stages.reward.context", "512"),
    ("stages.ppo.dtype", "bf16"),
    ("stages.ppo.batch", "512"),
    ("stages.ppo.minibatch", "256"),
];
const SHARDINGS: [Sharding; 4] = [
    Sharding::None,
    Sharding::Optimizer,
    Sharding::Gradients,
    Sharding::Parameters,
];
const STAGES: [&str; 4] = ["pretrain", "sft", "reward", "ppo"];

fn peak(plan: &Plan, name: &str, sharding: Sharding, ranks: usize) -> u64 {
    let mut stage = plan.stage(name).expect("a stage").clone();
    stage.execution.sharding = sharding;
    let place = Place::Gpu;
    peak_bytes(plan, &stage, Site { place, ranks })
}

/// What stays of a supervised stage, and what its updates have beside that, with so many rows of the batch at a time.
fn training(
    plan: &Plan,
    name: &str,
    (sharding, ranks): (Sharding, usize),
    (rows, of_rank): (usize, usize),
) -> [u64; 2] {
    let mut stage = plan.stage(name).expect("a stage").clone();
    stage.execution.sharding = sharding;
    let training = training_of(plan, &stage).expect("it trains");
    let place = Place::Gpu;
    let held = training.held(Site { place, ranks });
    let updates = held.update_bytes(&Passes {
        tokens: rows * training.context,
        loss: Loss::Tokens,
        on_gradients: of_rank > rows,
        only: of_rank <= rows,
    });
    [held.model_bytes(), updates]
}

#[test]
fn one_rank_shares_nothing() {
    for plan in [base_with(&[]), base_with(&SEVEN)] {
        for name in STAGES {
            let alone = peak(&plan, name, Sharding::None, 1);
            for sharding in SHARDINGS {
                assert_eq!(peak(&plan, name, sharding, 1), alone, "{name} {sharding:?}");
            }
        }
    }
}

#[test]
fn memory_never_grows_with_ranks_nor_with_sharding() {
    let lora = [
        &SEVEN[..],
        &[("stages.sft.lora", "{}"), ("stages.ppo.lora", "{}")],
    ]
    .concat();
    let one_trunk = [&SEVEN[..], &[("stages.ppo.value_model", "shared")]].concat();
    // Below adapters whole weights are merged at the end, beside what a rank keeps of divided ones.
    for (plan, shardings) in [
        (base_with(&SEVEN), &SHARDINGS[..]),
        (base_with(&lora), &SHARDINGS[..3]),
        (base_with(&one_trunk), &SHARDINGS),
    ] {
        for name in STAGES {
            let mut more_sharding = u64::MAX;
            for sharding in shardings {
                let sharding = *sharding;
                let over_ranks: Vec<u64> = [1, 2, 4, 8, 16, 32, 64, 256]
                    .into_iter()
                    .map(|ranks| peak(&plan, name, sharding, ranks))
                    .collect();
                let grows = over_ranks.windows(2).any(|pair| pair[1] > pair[0]);
                assert!(!grows, "{name} {sharding:?}: {over_ranks:?}");
                assert!(over_ranks[4] <= more_sharding, "{name} {sharding:?}");
                more_sharding = over_ranks[4];
            }
        }
    }
}

/// Weights, master weights and moments of Llama 2 7B in bf16 on eight ranks, counted by hand.
#[test]
fn what_stays_is_divided_as_is_said() {
    let plan = base_with(&SEVEN);
    let shape = sizes::named("llama2-7b").expect("a size");
    let all = shape.num_parameters();
    let outside = 2 * 32000 * 4096 + 4096;
    let ranks = 8;
    let of = |sharding| -> u64 {
        training(&plan, "pretrain", (sharding, ranks), (4, 64))
            .iter()
            .sum()
    };
    // Both have the same activations beside them, and whole sums of gradients at the end.
    let moments = of(Sharding::None) - of(Sharding::Optimizer);
    assert_eq!(moments, 12 * (all - all.div_ceil(8)));
    // The last pass has the sums of those before it and its own, which are an eighth, and of gradients a block on its way and
    // what is outside of the blocks; with sharded weights there is more before the embeddings have theirs, which are all that is
    // outside but the head: the block that is whole. And of weights there are an eighth, and what is outside.
    let block = (all - outside) / 32;
    let embeddings = outside - 32000 * 4096;
    let weights = of(Sharding::Gradients) - of(Sharding::Parameters);
    assert_eq!(weights, 2 * ((all - outside) * 7 / 8 - block + embeddings));
}

/// With ever more ranks there remain in training what is outside of the blocks, two blocks, and a row's activations; in
/// evaluation the whole model.
#[test]
fn what_cannot_be_divided_remains() {
    let plan = base_with(&[&SEVEN[..], &[("stages.sft.checkpointing", "true")]].concat());
    let many = (Sharding::Parameters, 1 << 30);
    let floor: u64 = training(&plan, "sft", many, (1, 1)).iter().sum();
    let outside = 2 * (2 * 32000 * 4096 + 4096);
    let block = 2 * 202_383_360;
    // 512 tokens of 32 blocks' inputs; a block's gradients in f32 besides.
    let inputs = 2 * 512 * 32 * 4096;
    let least = outside + 2 * block + inputs;
    assert!(
        (least..least + 4 * block).contains(&floor),
        "{floor} {least}"
    );
    // Who evaluates has all weights, and beside them less than two blocks.
    let whole = 2 * 6_738_415_616;
    let evaluating = peak(&plan, "sft", Sharding::Parameters, 1 << 30);
    assert!(
        (whole..whole + 2 * block).contains(&evaluating),
        "{evaluating} {whole}"
    );
    // And who samples.
    let sampling = peak(&plan, "ppo", Sharding::Parameters, 1 << 30);
    assert!(sampling > whole, "{sampling}");
}

/// Adapters, unlike the weights below them, are whole on every rank, and what they are merged into at the end is beside
/// the whole model.
#[test]
fn adapters_are_not_divided() {
    let plan = base_with(&[&SEVEN[..], &[("stages.sft.lora", "{ r = 256 }")]].concat());
    let many = (Sharding::Parameters, 1 << 30);
    let [kept, _] = training(&plan, "sft", many, (1, 1));
    // On the matrices of 32 blocks: four of attention, three of the MLP.
    let adapters = 2 * 32 * 256 * (4 * 2 * 4096 + 3 * (4096 + 11008));
    let outside = 2 * (2 * 32000 * 4096 + 4096);
    // Of all that is divided at most a number or two are left.
    assert!(
        (outside + adapters..outside + adapters + 64).contains(&kept),
        "{kept} {outside} {adapters}"
    );
    let blocks = 2 * 6_738_415_616 - outside;
    let merged = 2 * 6_738_415_616;
    let all = peak(&plan, "sft", Sharding::Parameters, 1 << 30);
    assert_eq!(all, kept + blocks + merged);
}

/// What is wrong with the ratio of what is predicted for a stage on the CPU to what was measured, MB, where it is another than
/// expected.
fn off(
    plan: &Plan,
    name: &str,
    (sharding, ranks): (Sharding, usize),
    [measured, expected]: [f64; 2],
) -> Option<String> {
    let mut stage = plan.stage(name).expect("a stage").clone();
    stage.execution.sharding = sharding;
    let place = Place::Cpu;
    let predicted = peak_bytes(plan, &stage, Site { place, ranks }) as f64 / 1e6;
    let ratio = predicted / measured;
    (f64::abs(ratio - expected) > 0.006).then(|| {
        format!(
            "{sharding:?} on {ranks}: {predicted:.0} for {measured}, {ratio:.3}, not {expected}"
        )
    })
}

/// `memory/peak` less `memory/start` of the first rank on two CPU cores (experiments/cluster/README.md), MB.
#[test]
fn predictions_for_several_ranks_are_as_near_as_the_page_says() {
    let gpt2 = r#"{ family = "gpt2", layers = 8, width = 768, heads = 12, vocab_size = 8192 }"#;
    let mut wrong = Vec::new();
    for (batch, ranks, sharding, measured, expected) in [
        ("8", 2, Sharding::None, 1306.0, 0.97),
        ("16", 2, Sharding::None, 1559.0, 0.98),
        ("8", 2, Sharding::Optimizer, 1068.0, 0.96),
        ("16", 2, Sharding::Optimizer, 1306.0, 0.97),
        ("8", 2, Sharding::Gradients, 1070.0, 0.96),
        ("16", 2, Sharding::Gradients, 1196.0, 0.96),
        ("8", 2, Sharding::Parameters, 1000.0, 0.97),
        ("16", 2, Sharding::Parameters, 1139.0, 0.96),
        ("16", 4, Sharding::Parameters, 790.0, 1.00),
    ] {
        let plan = base_with(&[
            ("stages.pretrain.model", gpt2),
            ("stages.pretrain.context", "256"),
            ("stages.pretrain.batch", batch),
            ("stages.pretrain.micro_batch", "4"),
        ]);
        let off = off(&plan, "pretrain", (sharding, ranks), [measured, expected]);
        wrong.extend(off.map(|off| format!("{batch} {off}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The same of a PPO stage.
#[test]
fn predictions_for_ppo_on_two_ranks_are_as_near_as_the_page_says() {
    let gpt2 = r#"{ family = "gpt2", layers = 8, width = 512, heads = 8, vocab_size = 8192 }"#;
    let plan = base_with(&[
        ("stages.pretrain.model", gpt2),
        ("stages.pretrain.context", "128"),
        ("stages.ppo.batch", "16"),
        ("stages.ppo.micro_batch", "4"),
        ("stages.ppo.max_new_tokens", "32"),
        ("stages.ppo.ptx.context", "64"),
        ("stages.ppo.ptx.sequences_per_episode", "1"),
        ("stages.ppo.ema", "0.9"),
        ("stages.ppo.eval_prompts", "4"),
    ]);
    let mut wrong = Vec::new();
    for (sharding, measured, expected) in [
        (Sharding::None, 1520.0, 0.92),
        (Sharding::Optimizer, 1209.0, 0.86),
        (Sharding::Gradients, 1181.0, 0.87),
        (Sharding::Parameters, 989.0, 0.86),
    ] {
        wrong.extend(off(&plan, "ppo", (sharding, 2), [measured, expected]));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
