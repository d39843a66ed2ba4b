//! A value head on the policy's trunk: one pass makes the gradients that two models of the same weights make in two.
//! In f64.

use std::collections::BTreeMap;

use model::{Head, Model, RecordOptions};
use ppo::backward::{Terms, ValueHead, policy_backward, value_backward};
use ppo::rollout::{Episode, EpisodeBatch, to_batch};
use recipe::families::Sizes;
use recipe::lora::{LoraPlan, matrix_names};
use recipe::shape::Family;
use runtime::seeds;
use tch::{Device, Kind, Tensor};

const COEF: f64 = 0.3;
const VOCABULARY: u32 = 23;
const WIDTH: i64 = 16;

/// Prompt and response tokens of the episodes.
const LENGTHS: [(usize, usize); 4] = [(3, 5), (6, 2), (1, 7), (4, 1)];

fn terms() -> Terms {
    Terms {
        clip: 0.2,
        value_clip: Some(0.2),
        temperature: 0.8,
        tokens: LENGTHS.iter().map(|(_, response)| response).sum::<usize>() as f64,
        record: RecordOptions {
            checkpointing: false,
            dropout: 0.0,
            dropout_key: 0,
        },
    }
}

/// Numbers between -1 and 1.
fn draw(purpose: &str, episode: usize, count: usize) -> Vec<f64> {
    let uniform = |t| seeds::uniform(5, purpose, episode as u64, t as u64);
    (0..count).map(|t| 2.0 * uniform(t) - 1.0).collect()
}

fn episode(index: usize) -> Episode {
    let (prompt, response) = LENGTHS[index];
    let ids = |purpose, count| {
        let token = |x: f64| (x.abs() * f64::from(VOCABULARY)) as u32;
        draw(purpose, index, count).into_iter().map(token).collect()
    };
    // Near what such a model says, so that some ratios are clipped and some are not.
    let logprobs = draw("logprobs", index, response);
    let logprobs = logprobs
        .iter()
        .map(|x| 0.3 * x - f64::from(VOCABULARY).ln());
    Episode {
        id: index.to_string(),
        prompt: Vec::new(),
        episode: index as u64,
        prompt_ids: ids("prompt", prompt),
        response_ids: ids("response", response),
        prompt_text: String::new(),
        response_text: String::new(),
        has_eos: true,
        score_raw: 0.0,
        score: 0.0,
        score_index: response - 1,
        logprobs: logprobs.collect(),
        reference_logprobs: Vec::new(),
        values: draw("values", index, response),
        rewards: Vec::new(),
        advantages: draw("advantages", index, response),
        returns: draw("returns", index, response),
    }
}

fn batch((from, to): (usize, usize), model: &Model) -> EpisodeBatch {
    let episodes: Vec<Episode> = (from..to).map(episode).collect();
    to_batch(&episodes, 0, model, None)
}

/// A policy, with adapters or without, and a value model on its trunk.
fn models(family: Family, adapters: bool) -> (Model, Model) {
    let shape = family.shape(&Sizes {
        vocab_size: VOCABULARY as usize,
        max_positions: 16,
        layers: 2,
        width: WIDTH as usize,
        heads: 4,
    });
    let policy = Model::init(&shape, Head::Token, 7, Device::Cpu, Kind::Double);
    let policy = if adapters {
        let plan = LoraPlan {
            r: 2,
            alpha: 4.0,
            dropout: 0.0,
            rslora: false,
            target_modules: matrix_names(&shape)
                .into_iter()
                .map(str::to_owned)
                .collect(),
        };
        policy.with_new_adapter(&plan, "base", 3)
    } else {
        policy
    };
    let value = policy.to_value();
    // What begins with zeros hides gradients.
    for (name, mut tensor) in value.trainable() {
        if name == "score.weight" || name.contains("lora_B") {
            let numbers = Tensor::arange(tensor.numel() as i64, (Kind::Double, Device::Cpu));
            tch::no_grad(|| tensor.copy_(&(numbers.cos() * 0.5).view_as(&tensor)));
        }
    }
    (policy, value)
}

/// The gradients of what is trained of some models, by name.
fn gradients(models: &[&Model], run: impl FnOnce()) -> BTreeMap<String, Tensor> {
    for model in models {
        model.set_trainable(true);
        model.zero_grad();
    }
    run();
    let trained = models.iter().flat_map(|model| model.trainable());
    trained
        .map(|(name, tensor)| (name, tensor.grad().copy()))
        .collect()
}

fn assert_equal(name: &str, ours: &Tensor, expected: &Tensor) {
    let gap = (ours - expected).abs().max().double_value(&[]);
    assert!(gap < 1e-9, "{name}: {gap:e}");
}

#[test]
fn one_pass_makes_the_gradients_of_two_models() {
    for (family, adapters) in [
        (Family::Llama, false),
        (Family::Gpt2, false),
        (Family::Llama, true),
    ] {
        let (policy, value) = models(family, adapters);
        let (own_policy, own_value) = (policy.deep_copy(), value.deep_copy());
        let batch = batch((0, 4), &policy);
        let head = ValueHead {
            value: &value,
            coef: COEF,
        };
        let mut joint = None;
        let joint_grads = gradients(&[&policy, &value], || {
            joint = policy_backward(&policy, Some(head), &batch, &terms(), |_| Ok(())).ok();
        });
        let joint = joint.expect("a pass");
        let mut alone = None;
        let policy_grads = gradients(&[&own_policy], || {
            alone = policy_backward(&own_policy, None, &batch, &terms(), |_| Ok(())).ok();
        });
        let alone = alone.expect("a pass");
        let mut of_value = None;
        let value_grads = gradients(&[&own_value], || {
            of_value = value_backward(&own_value, &batch, &terms(), |_| Ok(())).ok();
        });
        let of_value = of_value.expect("a pass");
        let joint_value = joint.value.expect("a value loss");
        for (ours, expected) in [(joint.policy, alone.policy), (joint_value, of_value)] {
            assert!(
                (ours.sum - expected.sum).abs() < 1e-12,
                "{ours:?} {expected:?}"
            );
            assert!(ours.clipped > 0.0 && (ours.clipped - expected.clipped).abs() < 0.5);
        }
        let sum = alone.sum + COEF * of_value.sum;
        assert!((joint.sum - sum).abs() < 1e-12, "{} {sum}", joint.sum);
        assert!(joint_grads.contains_key("score.weight"));
        for (name, ours) in &joint_grads {
            let zero = ours.zeros_like();
            let expected = policy_grads.get(name).unwrap_or(&zero)
                + value_grads.get(name).unwrap_or(&zero) * COEF;
            assert!(expected.abs().max().double_value(&[]) > 0.0, "{name}");
            assert_equal(&format!("{family:?} {name}"), ours, &expected);
        }
    }
}

#[test]
fn two_micro_batches_make_the_gradients_of_one() {
    let (policy, value) = models(Family::Llama, false);
    let head = ValueHead {
        value: &value,
        coef: COEF,
    };
    let of = |parts: &[(usize, usize)], checkpointing| {
        let mut terms = terms();
        terms.record.checkpointing = checkpointing;
        gradients(&[&policy, &value], || {
            for part in parts {
                let batch = batch(*part, &policy);
                policy_backward(&policy, Some(head), &batch, &terms, |_| Ok(())).expect("a pass");
            }
        })
    };
    let whole = of(&[(0, 4)], false);
    for checkpointing in [false, true] {
        for (name, ours) in of(&[(0, 2), (2, 4)], checkpointing) {
            assert_equal(&name, &ours, &whole[&name]);
        }
    }
}
