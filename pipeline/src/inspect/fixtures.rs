//! A small run for tests.

use std::collections::BTreeMap;
use std::path::Path;

use runtime::metrics::MetricRow;

use recipe::request::{Conversation, EvalModels, EvalReport, ModelReport};

use super::evaluation::Evaluation;
use super::run::{Run, Stage, State};

/// A metric line.
pub fn row(step: u64, time: f64, values: &[(&str, f64)]) -> MetricRow {
    let values: BTreeMap<_, _> = values
        .iter()
        .map(|&(name, value)| (name.to_owned(), value))
        .collect();
    MetricRow { step, time, values }
}

fn pretrain_rows(offset: f64) -> Vec<MetricRow> {
    vec![
        row(
            1,
            100.0,
            &[("loss/train", 5.0 + offset), ("tokens_per_second", 20e3)],
        ),
        row(
            2,
            101.0,
            &[
                ("loss/train", 4.0 + offset),
                ("loss/heldout", 3.4 + offset),
                ("tokens_per_second", 22e3),
            ],
        ),
        row(
            3,
            102.0,
            &[
                ("loss/train", 3.0 + offset),
                ("tokens_per_second", 21e3),
                ("memory/peak", 1.5 * f64::from(1 << 30)),
            ],
        ),
        row(
            4,
            103.0,
            &[("loss/train", 2.0 + offset), ("loss/heldout", 3.5 + offset)],
        ),
    ]
}

fn ppo_rows() -> Vec<MetricRow> {
    vec![
        row(
            1,
            200.0,
            &[
                ("objective/kl", 0.0),
                ("objective/score", 0.1),
                ("objective/gold", 0.2),
            ],
        ),
        row(
            2,
            260.0,
            &[("objective/kl", 1.0), ("objective/entropy", 3.0)],
        ),
        row(
            3,
            320.0,
            &[
                ("objective/kl", 2.0),
                ("objective/score", 0.7),
                ("heldout/kl", 2.1),
                ("heldout/gold", 0.6),
                ("heldout/gold_se", 0.05),
            ],
        ),
    ]
}

/// An imported corpus, a finished pretraining and a running PPO; `offset` is added to losses.
pub fn run(label: &str, offset: f64) -> Run {
    let stage = |name: &str, state, planned, selected, rows| Stage {
        name: name.to_owned(),
        state,
        planned,
        selected,
        rows,
        evaluation: None,
    };
    Run {
        label: label.to_owned(),
        root: Path::new("runs").join(label),
        stages: vec![
            stage("corpus", State::Done, None, None, Vec::new()),
            stage(
                "pretrain",
                State::Done,
                Some(4),
                Some(3),
                pretrain_rows(offset),
            ),
            stage("ppo", State::Running, Some(5), None, ppo_rows()),
        ],
    }
}

/// An evaluation that fulfils every check.
pub fn evaluation() -> Evaluation {
    let measured = |gold, kl, pretraining_loss| ModelReport {
        samples: 512,
        gold: Some(gold),
        gold_se: Some(0.01),
        kl,
        eos_rate: 0.7,
        length: 15.0,
        distinct_2: 0.8,
        repeated_trigrams: 0.0,
        most_frequent_share: 0.01,
        base_perplexity: 100.0,
        true_prompt_preferred: 0.6,
        pretraining_loss: Some(pretraining_loss),
    };
    Evaluation {
        inputs: "abc".to_owned(),
        seed: 1,
        reward_accuracy: Some(0.78),
        measured: EvalReport {
            models: EvalModels {
                base: measured(0.2, 1.0, 4.0),
                sft: measured(0.2, 0.0, 4.0),
                ppo: measured(0.7, 3.0, 4.04),
            },
            conversations: vec![Conversation {
                prompt: "hello <you>".to_owned(),
                sft: "so and so".to_owned(),
                ppo: "great & good".to_owned(),
            }],
        },
    }
}
