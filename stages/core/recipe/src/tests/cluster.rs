//! What a cluster would take: formulas against hand computations, what is chosen, and what was measured on a CPU.

use std::path::Path;

use super::base_with;
use crate::cluster::{Cluster, Forecast, Gpu, Machine, Note, forecast};
use crate::memory::{Place, Site};
use crate::plan::{Plan, Sharding};
use crate::sizes;

fn h100s(gpus: usize) -> Cluster {
    Cluster {
        gpu: Gpu::named("h100-80g").expect("a GPU"),
        gpus,
        gpus_per_node: 8,
        network_gbps: 3200.0,
    }
}

/// A plan whose stages are in bf16, with overrides.
fn planned(size: &str, more: &[(&str, &str)]) -> Plan {
    let model = format!("{{ size = \"{size}\" }}");
    let mut all = vec![
        ("stages.pretrain.model", model.as_str()),
        ("stages.sft.context", "512"),
        ("stages.sft.steps", "10"),
        ("stages.reward.context", "512"),
    ];
    all.extend(more);
    let dtypes = ["pretrain", "sft", "comparisons", "reward", "ppo"];
    let keys: Vec<String> = dtypes
        .iter()
        .map(|name| format!("stages.{name}.dtype"))
        .collect();
    all.extend(keys.iter().map(|key| (key.as_str(), "bf16")));
    base_with(&all)
}

fn of(plan: &Plan, name: &str, gpus: usize) -> Forecast {
    let all = forecast(plan, &h100s(gpus)).expect("a forecast");
    let found = all.into_iter().find(|forecast| forecast.stage == name);
    found.expect("a stage")
}

#[test]
fn a_gpu_that_is_not_there_is_refused_with_the_nearest() {
    let error = Gpu::named("h100-80").expect_err("refused");
    assert_eq!(
        error,
        "--gpu h100-80: no such GPU\n  hint: did you mean `h100-80g`? known GPUs: a100-40g, a100-80g, h100-80g, h200-141g, \
         b200-180g, l40s-48g"
    );
    for name in Gpu::names() {
        assert_eq!(Gpu::named(name).expect("known").name, name);
    }
}

/// Rings within a node, and through nodes whose network is slower or faster than their links.
#[test]
fn bytes_travel_as_fast_as_the_slowest_link() {
    let machine = h100s(16).machine();
    let link = 0.7 * 450e9;
    let close = |found: f64, expected: f64| {
        assert!((found / expected - 1.0).abs() < 1e-12, "{found} {expected}");
    };
    assert!(machine.ring_seconds(1 << 30, 1).abs() < f64::EPSILON);
    close(machine.ring_seconds(8_000_000_000, 8), 7e9 / link);
    close(
        machine.ring_seconds(16_000_000_000, 16),
        15e9 / (0.7 * 400e9),
    );
    let slow = Cluster {
        network_gbps: 100.0,
        ..h100s(16)
    };
    close(
        slow.machine().ring_seconds(16_000_000_000, 16),
        15e9 / (0.7 * 12.5e9),
    );
}

/// An update of a model of 125 million parameters on eight GPUs, by hand.
#[test]
fn an_update_is_operations_over_the_peak_and_bytes_over_the_bandwidth() {
    let settings = [
        ("stages.pretrain.batch", "64"),
        ("stages.pretrain.context", "128"),
    ];
    let plan = planned("gpt2-124m", &settings);
    let found = of(&plan, "pretrain", 8);
    assert_eq!(found.execution.sharding, Sharding::None);
    let seconds = found.rounds.expect("it fits").seconds;
    let shape = &plan
        .stage("pretrain")
        .and_then(|stage| stage.model_shape())
        .expect("a model");
    let flops = 3.0 * shape.forward_flops_per_token(128) * (64.0 * 128.0) / 8.0;
    assert!(
        (seconds.compute / (flops / (0.4 * 989e12)) - 1.0).abs() < 1e-9,
        "{seconds:?}"
    );
    // Gradient, master weight, two moments are read; all but the gradient, and the weight in bf16, are written.
    let numbers = shape.num_parameters() as f64;
    let bytes = numbers * 30.0;
    assert!(
        (seconds.memory / (bytes / (0.5 * 3.35e12)) - 1.0).abs() < 1e-9,
        "{seconds:?}"
    );
    // Sums of f32 go around twice, hidden by eleven twelfths of the backward pass, which is two thirds.
    let around = 2.0 * 7.0 / 8.0 * 4.0 * numbers / (0.7 * 450e9);
    let waited = (around - 11.0 / 12.0 * 2.0 / 3.0 * seconds.compute).max(around / 12.0);
    assert!(
        (seconds.network / waited - 1.0).abs() < 1e-9,
        "{seconds:?} {waited}"
    );
}

#[test]
fn the_least_sharding_that_fits_is_chosen_and_what_the_file_says_is_kept() {
    let batch = ("stages.sft.batch", "64");
    let small = planned("opt-125m", &[batch]);
    assert_eq!(of(&small, "sft", 64).execution.sharding, Sharding::None);
    let larger = planned("opt-6.7b", &[batch]);
    let chosen = of(&larger, "sft", 64);
    assert_eq!(chosen.execution.sharding, Sharding::Optimizer);
    let said = planned("opt-125m", &[batch, ("stages.sft.sharding", "parameters")]);
    assert_eq!(
        of(&said, "sft", 64).execution.sharding,
        Sharding::Parameters
    );
    // One GPU has nobody to share with.
    assert_eq!(
        of(&small, "sft", 1).execution,
        small.stage("sft").expect("sft").execution
    );
    // Said, and too little: the next that fits, with a word on it.
    let said = planned("opt-30b", &[batch, ("stages.sft.sharding", "optimizer")]);
    let found = of(&said, "sft", 32);
    assert!(found.execution.sharding > Sharding::Optimizer, "{found:?}");
    let noted = found
        .notes
        .iter()
        .any(|note| matches!(note, Note::Sharding { said: "optimizer" }));
    assert!(noted, "{:?}", found.notes);
}

/// Whatever is chosen fits, and more GPUs never take longer nor more memory.
#[test]
fn more_gpus_are_never_slower() {
    for size in ["opt-125m", "opt-1.3b", "opt-13b"] {
        let batch = [
            ("stages.pretrain.batch", "512"),
            ("stages.ppo.batch", "512"),
            ("stages.ppo.minibatch", "512"),
        ];
        let plan = planned(size, &batch);
        for name in ["pretrain", "comparisons", "ppo"] {
            let mut slowest = f64::INFINITY;
            for gpus in [1, 8, 16, 64, 256] {
                let found = of(&plan, name, gpus);
                let Some(rounds) = found.rounds else { continue };
                assert!(found.peak_bytes <= h100s(gpus).machine().memory);
                assert!(
                    found.fewest.is_some_and(|fewest| fewest <= gpus),
                    "{found:?}"
                );
                let seconds = rounds.seconds.total();
                // Through nodes the first step costs some of what it gains.
                assert!(
                    seconds < slowest * 1.02,
                    "{size} {name} {gpus}: {seconds} {slowest}"
                );
                slowest = seconds;
            }
            assert!(slowest.is_finite(), "{size} {name}");
        }
    }
}

#[test]
fn what_cannot_be_used_or_does_not_fit_is_said() {
    let words = |found: &Forecast| -> String {
        let words: Vec<String> = found.notes.iter().map(ToString::to_string).collect();
        words.join("\n")
    };
    // A batch of 16 keeps 16 busy.
    let plan = planned("opt-125m", &[]);
    let found = of(&plan, "sft", 64);
    assert_eq!(found.gpus, 16);
    let idle = "16 of 64 GPUs: its batch of 16 divides among no more of them; a larger one would";
    assert_eq!(words(&found), idle);
    // A whole policy of 66 billion samples on no card of 80 GB, on ever so many.
    let plan = planned("opt-66b", &[("stages.sft.batch", "64")]);
    for name in ["comparisons", "ppo"] {
        let found = of(&plan, name, 64);
        assert_eq!((found.rounds, found.fewest), (None, None));
        let all = words(&found);
        assert!(
            all.contains("on any number of these GPUs") && all.contains("tensor or pipeline"),
            "{all}"
        );
    }
    // Nor is one evaluated that is only trained.
    let all = words(&of(&plan, "sft", 64));
    assert!(all.contains("while it is evaluated and saved"), "{all}");
    // A smaller one's training fits from a number of GPUs on, below which this is said.
    let plan = planned("opt-30b", &[("stages.sft.batch", "64")]);
    let fewest = of(&plan, "sft", 64).fewest.expect("it fits");
    assert!((16..=64).contains(&fewest), "{fewest}");
    let all = words(&of(&plan, "sft", fewest / 2));
    assert_eq!(all, format!("does not fit; it does from {fewest} GPUs on"));
    let plan = planned("opt-30b", &[("stages.sft.batch", "8")]);
    let all = words(&of(&plan, "sft", 8));
    assert!(all.contains("its batch of 8 does not divide"), "{all}");
}

#[test]
fn a_slow_network_is_said() {
    let plan = planned(
        "opt-6.7b",
        &[
            ("stages.sft.batch", "64"),
            ("stages.sft.sharding", "parameters"),
        ],
    );
    let slow = Cluster {
        network_gbps: 25.0,
        ..h100s(64)
    };
    let all = forecast(&plan, &slow).expect("a forecast");
    let sft = all
        .iter()
        .find(|forecast| forecast.stage == "sft")
        .expect("sft");
    // Within a node there is no network.
    let noted = sft
        .notes
        .iter()
        .any(|note| matches!(note, Note::Network { percent, fastest: 8 } if *percent > 50.0));
    assert!(noted, "{:?}", sft.notes);
}

#[test]
fn epochs_have_no_hours_and_f64_no_forecast() {
    let plan = base_with(&[("stages.sft.dtype", "bf16")]);
    let found = of(&plan, "sft", 8);
    assert!(found.tokens_per_second().is_some() && found.hours().is_none());
    // Its 120 thousand parameters are nothing to a GPU.
    let noted = found
        .notes
        .iter()
        .any(|note| matches!(note, Note::Small { .. }));
    assert!(noted, "{:?}", found.notes);
    let plan = base_with(&[("stages.sft.dtype", "f64")]);
    let error = forecast(&plan, &h100s(8)).expect_err("refused").to_string();
    assert_eq!(
        error,
        "stages.sft.dtype is f64, which is for tests: nothing is predicted of it\n  hint: --set stages.sft.dtype=bf16"
    );
}

/// The plan of `experiments/NAME`, with overrides.
fn experiment(name: &str, overrides: &[(&str, &str)]) -> Plan {
    let experiments = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../experiments");
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    let overrides: Vec<_> = overrides.iter().map(owned).collect();
    let none = |_: &crate::hub::HubQuery<'_>| Err("no hub".to_owned());
    crate::load(
        &experiments.join(name).join("pipeline.toml"),
        &overrides,
        &none,
    )
    .expect("a plan")
}

/// The model on two CPU cores (experiments/benchmarks/README.md), its rates taken of one measurement there each, against the
/// others.
#[test]
fn measured_runs_are_predicted_as_the_page_says() {
    let machine = |flops: f64| Machine {
        memory: u64::MAX,
        bf16_flops: f64::NAN,
        f32_flops: flops,
        bandwidth: 18e9,
        link: 1.1e9,
        network: 1.1e9,
        ranks_per_node: 2,
    };
    // What was reached in training 16 x 128: 3,040 tokens/s of one thread, 5,473 of two (its table of context lengths).
    let flops_per_token = 26.74e6;
    let one = machine(3040.0 * flops_per_token);
    let two = machine(5473.0 * flops_per_token);
    // 1,024 responses of 32 tokens to prompts of 192.
    let sampling = |prompts: &'static str, responses: &'static str| {
        vec![
            ("stages.comparisons.model", "stage:llama"),
            ("stages.comparisons.num_prompts", prompts),
            ("stages.comparisons.num_heldout", "1"),
            ("stages.comparisons.responses", responses),
            ("stages.comparisons.max_prompt_tokens", "192"),
            ("stages.comparisons.max_new_tokens", "32"),
            ("stages.comparisons.sample_batch", "256"),
        ]
    };
    let sharding = |word: &'static str| vec![("stages.policy.sharding", word)];
    let width = |numbers: &'static str| vec![("stages.policy.model.width", numbers)];
    // Of sampling and PPO the tokens of responses were counted: a seventh, and two thirds of all.
    let cases = [
        ("policy", vec![], &one, 1, 3040.0, 0.99),
        ("policy", vec![], &one, 2, 5380.0, 1.10),
        ("policy", sharding("optimizer"), &one, 2, 5270.0, 1.11),
        ("policy", sharding("gradients"), &one, 2, 5131.0, 1.14),
        ("policy", sharding("parameters"), &one, 2, 4817.0, 1.23),
        ("policy", width("128"), &two, 1, 11594.0, 1.43),
        ("policy", width("512"), &two, 1, 1829.0, 0.86),
        (
            "comparisons",
            sampling("255", "4"),
            &two,
            1,
            7228.0 * 7.0,
            0.70,
        ),
        (
            "comparisons",
            sampling("63", "16"),
            &two,
            1,
            11440.0 * 7.0,
            0.68,
        ),
        ("ppo", vec![], &two, 1, 1100.0 * 1.5, 0.97),
    ];
    let mut wrong = Vec::new();
    for (name, overrides, machine, ranks, measured, expected) in cases {
        let plan = experiment("benchmarks", &overrides);
        let stage = plan.stage(name).expect("a stage");
        let place = Place::Cpu;
        let rounds = crate::cluster::rounds(&plan, stage, Site { place, ranks }, machine);
        let rounds = rounds.expect("a model");
        let ratio = rounds.tokens / rounds.seconds.total() / measured;
        if f64::abs(ratio - expected) > 0.006 {
            wrong.push(format!(
                "{name} {overrides:?} on {ranks}: {ratio:.3}, not {expected}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_experiments_operations_are_those_of_the_paper() {
    let plan = experiment("cluster", &[]);
    // Petaflop/s-days of 175B: Ouyang et al. 2022, section 5.1.
    for (name, paper) in [("base", 3640.0), ("sft", 4.9), ("ppo", 60.0)] {
        let stage = plan.stage(name).expect("a stage");
        let numbers = crate::stage_numbers(&plan, stage);
        let flops = numbers
            .iter()
            .find(|(key, _)| key == "FLOPs, at most")
            .expect("FLOPs");
        let days = flops.1.parse::<f64>().expect("a number") / (1e15 * 86400.0);
        assert!(
            (0.9..1.1).contains(&(days / paper)),
            "{name}: {days} for {paper}"
        );
    }
    assert_eq!(sizes::named("opt-175b").expect("a size").layers, 96);
}
