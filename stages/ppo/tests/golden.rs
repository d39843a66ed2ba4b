//! PPO's arithmetic against an independent program in `PyTorch`, `tests/golden/make_ppo.py`, in f64.
//!
//! Shapes: `b` episodes, `r` response columns, `t` columns of a row, `d` width, `v` vocabulary.

use std::collections::HashMap;

use model::{Head, Input, Model, RecordOptions};
use ppo::advantage::{Moments, gae, masked_moments, token_rewards, whiten};
use ppo::kl::KlController;
use ppo::loss::{ClippedLoss, policy_loss, value_loss};
use recipe::families::Sizes;
use recipe::plan::{KlPlan, OptimizerPlan, Schedule};
use recipe::shape::{Family, ModelShape};
use runtime::seeds;
use tch::{Device, Kind, Tensor};
use trainer::{LmOptions, LmRow, Stepper};

const TOLERANCE: f64 = 1e-11;

/// The tensors of `ppo.safetensors` by name.
struct Golden(HashMap<String, Tensor>);

impl Golden {
    fn load() -> Self {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/golden/ppo.safetensors"
        );
        Self(
            Tensor::read_safetensors(path)
                .expect("the golden file")
                .into_iter()
                .collect(),
        )
    }

    fn get(&self, name: &str) -> Tensor {
        self.0
            .get(name)
            .unwrap_or_else(|| panic!("no tensor {name}"))
            .shallow_clone()
    }

    fn numbers(&self, name: &str) -> Vec<f64> {
        self.get(name).view(-1).try_into().expect("f64")
    }

    fn integers(&self, name: &str) -> Vec<i64> {
        self.get(name).view(-1).try_into().expect("i64")
    }

    fn number(&self, name: &str) -> f64 {
        self.numbers(name)[0]
    }

    fn leaf(&self, name: &str) -> Tensor {
        self.get(name).copy().set_requires_grad(true)
    }
}

#[track_caller]
fn assert_equal(what: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.size(), expected.size(), "{what}");
    assert_eq!(found.kind(), expected.kind(), "{what}");
    let gap = (found - expected).abs().max().double_value(&[]);
    assert!(
        gap < TOLERANCE,
        "{what}: off by {gap}\nfound {found}\nexpected {expected}"
    );
}

#[track_caller]
fn assert_close(what: &str, found: f64, expected: f64) {
    let gap = (found - expected).abs();
    assert!(
        gap <= TOLERANCE * expected.abs().max(1.0),
        "{what}: {found}, expected {expected}"
    );
}

#[test]
fn token_rewards_are_penalty_plus_score() {
    let golden = Golden::load();
    let rewards_br = token_rewards(
        &golden.get("rewards.logprobs"),
        &golden.get("rewards.reference"),
        &golden.get("mask"),
        &golden.get("rewards.score"),
        &golden.get("rewards.score_index"),
        golden.number("rewards.kl_coef"),
    );
    assert_equal("rewards", &rewards_br, &golden.get("rewards.expected"));
}

#[test]
fn advantages_are_the_recursion_and_its_direct_sum() {
    let golden = Golden::load();
    for case in 0..4 {
        let name = |part: &str| format!("gae{case}.{part}");
        let settings = golden.numbers(&name("gamma_lambda"));
        let (advantages_br, returns_br) = gae(
            &golden.get("gae.rewards"),
            &golden.get("gae.values"),
            &golden.get("mask"),
            settings[0],
            settings[1],
        );
        assert_equal("recursion", &advantages_br, &golden.get(&name("recursion")));
        assert_equal("direct sum", &advantages_br, &golden.get(&name("direct")));
        // Behind a response's end the returns are those of nothing: only what was made counts.
        let mask_br = golden.get("mask");
        assert_equal(
            "returns",
            &(returns_br * mask_br),
            &golden.get(&name("returns")),
        );
    }
}

/// `A_t = sum over s >= t of (gamma lambda)^(s - t) delta_s` (Schulman et al. 2016, equation 16),
/// written with numbers alone, on episodes of many lengths.
#[test]
fn advantages_equal_their_direct_sum_on_random_episodes() {
    for seed in 0..50 {
        let draw = |purpose, i, t| seeds::uniform(seed, purpose, i as u64, t as u64);
        let num_columns = 1 + (draw("columns", 0, 0) * 12.0) as usize;
        let num_episodes = 1 + (draw("episodes", 0, 0) * 5.0) as usize;
        let (gamma, lambda) = (0.5 + draw("gamma", 0, 0) / 2.0, draw("lambda", 0, 0));
        let length = |b| 1 + (draw("length", b, 0) * num_columns as f64) as usize;
        let lengths: Vec<usize> = (0..num_episodes).map(length).collect();
        let table = |f: &dyn Fn(usize, usize) -> f64| {
            let flat: Vec<f64> = (0..num_episodes * num_columns)
                .map(|i| f(i / num_columns, i % num_columns))
                .collect();
            Tensor::from_slice(&flat).view([num_episodes as i64, num_columns as i64])
        };
        let inside = |b: usize, t: usize| if t < lengths[b] { 1.0 } else { 0.0 };
        let reward = |b, t| (draw("reward", b, t) * 4.0 - 2.0) * inside(b, t);
        let value = |b, t| (draw("value", b, t) * 4.0 - 2.0) * inside(b, t);
        let value_after = |b, t| {
            if t + 1 < lengths[b] {
                value(b, t + 1)
            } else {
                0.0
            }
        };
        let delta = |b, t| reward(b, t) + gamma * value_after(b, t) - value(b, t);
        let direct = |b: usize, t: usize| -> f64 {
            (t..lengths[b])
                .map(|s| (gamma * lambda).powi((s - t) as i32) * delta(b, s))
                .sum()
        };
        let (advantages_br, returns_br) = gae(
            &table(&reward),
            &table(&value),
            &table(&inside),
            gamma,
            lambda,
        );
        assert_equal("advantages", &advantages_br, &table(&direct));
        assert_equal(
            "returns",
            &returns_br,
            &table(&|b, t| direct(b, t) + value(b, t)),
        );
    }
}

#[test]
fn whitening_counts_what_the_mask_counts() {
    let golden = Golden::load();
    let (x_br, mask_br) = (golden.get("whiten.x"), golden.get("mask"));
    let moments: Moments = masked_moments(&x_br, &mask_br);
    let expected = golden.numbers("whiten.moments");
    assert_close("mean", moments.mean, expected[0]);
    assert_close("deviation", moments.deviation, expected[1]);
    assert_equal(
        "whitened",
        &whiten(&x_br, &mask_br, &moments),
        &golden.get("whiten.expected"),
    );
}

#[track_caller]
fn assert_loss(golden: &Golden, name: &str, loss: &ClippedLoss, leaf: &Tensor) {
    let key = |part: &str| format!("{name}.{part}");
    assert_close(
        &key("loss"),
        loss.sum.double_value(&[]),
        golden.number(&key("loss")),
    );
    assert_close(
        &key("clipped"),
        loss.clipped,
        golden.number(&key("clipped")),
    );
    loss.sum.backward();
    assert_equal(
        &key("gradient"),
        &leaf.grad(),
        &golden.get(&key("gradient")),
    );
}

#[test]
fn the_clipped_policy_loss_and_its_gradient() {
    let golden = Golden::load();
    let logprobs_br = golden.leaf("policy.logprobs");
    let loss = policy_loss(
        &logprobs_br,
        &golden.get("policy.behaviour"),
        &golden.get("policy.advantages"),
        &golden.get("mask"),
        golden.number("policy.clip"),
    );
    assert_loss(&golden, "policy", &loss, &logprobs_br);
}

#[test]
fn the_value_loss_and_its_gradient_clipped_and_not() {
    let golden = Golden::load();
    let clip = golden.number("value.clip");
    for (name, clip) in [("value", Some(clip)), ("value_plain", None)] {
        let values_br = golden.leaf("value.new");
        let (old_br, returns_br) = (golden.get("value.old"), golden.get("value.returns"));
        let loss = value_loss(&values_br, &old_br, &returns_br, &golden.get("mask"), clip);
        assert_loss(&golden, name, &loss, &values_br);
    }
}

#[test]
fn the_adaptive_kl_controller_moves_as_published() {
    let golden = Golden::load();
    let settings = golden.numbers("controller.settings");
    let (coef, target, horizon) = (settings[0], settings[1], settings[2]);
    let mut adaptive = KlController::new(KlPlan::Adaptive {
        coef,
        target,
        horizon,
    });
    let mut fixed = KlController::new(KlPlan::Fixed { coef });
    let (kls, episodes) = (
        golden.numbers("controller.kl"),
        golden.integers("controller.episodes"),
    );
    let expected = golden.numbers("controller.expected");
    for ((kl, episodes), expected) in kls.into_iter().zip(episodes).zip(expected) {
        adaptive.observe(kl, episodes as usize);
        fixed.observe(kl, episodes as usize);
        assert_close("coefficient", adaptive.coef, expected);
        assert_close("fixed coefficient", fixed.coef, coef);
    }
}

/// A model without blocks: embedding, `RMSNorm`, output projection.
fn blockless_model(golden: &Golden) -> Model {
    let dims = golden.get("ptx.embedding").size();
    let shape = ModelShape {
        mlp_width: 4,
        norm_eps: golden.number("ptx.settings"),
        ..Family::Llama.shape(&Sizes {
            vocab_size: dims[0] as usize,
            max_positions: 16,
            layers: 0,
            width: dims[1] as usize,
            heads: 1,
        })
    };
    let model = Model::init(&shape, Head::Token, 1, Device::Cpu, Kind::Double);
    for (name, ours) in PTX_PARAMETERS {
        tch::no_grad(|| {
            model.params()[ours]
                .shallow_clone()
                .copy_(&golden.get(&format!("ptx.{name}")));
        });
    }
    model
}

const PTX_PARAMETERS: [(&str, &str); 3] = [
    ("embedding", "model.embed_tokens.weight"),
    ("gain", "model.norm.weight"),
    ("output", "lm_head.weight"),
];

/// A language-model pass over the texts in micro-batches of `micro_batch` rows.
fn ptx_backward(golden: &Golden, model: &Model, stepper: &mut Stepper, micro_batch: usize) -> f64 {
    let texts: Vec<Vec<i64>> = golden.get("ptx.texts").try_into().expect("rows of i64");
    let rows: Vec<LmRow> = texts
        .iter()
        .zip(golden.integers("ptx.text_lengths"))
        .map(|(text, length)| {
            text.iter()
                .take(length as usize)
                .map(|id| *id as u32)
                .collect()
        })
        .map(LmRow::plain)
        .collect();
    let options = LmOptions {
        micro_batch,
        pad_id: 0,
        coef: golden.numbers("ptx.settings")[3],
        checkpointing: false,
        dropout: 0.0,
        dropout_key: 0,
    };
    trainer::lm_backward(model, stepper, &rows, &options)
        .expect("a backward pass")
        .mean()
}

fn ppo_backward(golden: &Golden, model: &Model) -> f64 {
    let settings = golden.numbers("ptx.settings");
    let (temperature, clip) = (settings[1], settings[2]);
    let (ids_bt, mask_br) = (golden.get("ptx.ids"), golden.get("ptx.mask"));
    let options = RecordOptions {
        checkpointing: false,
        dropout: 0.0,
        dropout_key: 0,
    };
    let (hidden_btd, tape) = model
        .record(&Input::dense(ids_bt.shallow_clone()), &options)
        .expect("a pass");
    let start = golden.integers("ptx.response_start")[0];
    let logprobs_br = model::response_logprobs(model, &hidden_btd, &ids_bt, start, temperature);
    assert_equal(
        "log-probabilities",
        &logprobs_br,
        &golden.get("ptx.logprobs"),
    );
    let (behaviour_br, advantages_br) = (golden.get("ptx.behaviour"), golden.get("ptx.advantages"));
    let loss = policy_loss(&logprobs_br, &behaviour_br, &advantages_br, &mask_br, clip);
    let mean = loss.sum / mask_br.sum(Kind::Double);
    mean.backward();
    tape.backward(model).expect("a backward pass");
    mean.double_value(&[])
}

/// PPO-ptx: the gradients of both losses add up, whatever the micro-batches.
#[test]
fn pretraining_gradients_are_mixed_in_by_their_coefficient() {
    let golden = Golden::load();
    let plan = OptimizerPlan {
        lr: 1e-3,
        betas: [0.9, 0.95],
        eps: 1e-8,
        weight_decay: 0.0,
        schedule: Schedule::Constant,
        floor: 0.0,
        warmup: 0,
        warmup_from: 0.0,
        clip: 1.0,
    };
    for micro_batch in [1, 2, 8] {
        let model = blockless_model(&golden);
        let mut stepper = Stepper::new(&model, &plan, 1);
        assert_close(
            "PPO loss",
            ppo_backward(&golden, &model),
            golden.number("ptx.ppo_loss"),
        );
        stepper.accumulate().expect("sums");
        let mean = ptx_backward(&golden, &model, &mut stepper, micro_batch);
        assert_close("ptx loss", mean, golden.number("ptx.ptx_loss"));
        for (name, ours) in PTX_PARAMETERS {
            let expected = golden.get(&format!("ptx.{name}_gradient"));
            assert_equal(ours, &model.params()[ours].grad(), &expected);
        }
    }
}
