//! The K-wise loss and the measures of a reward model against an independent program in `PyTorch`,
//! `tests/golden/make_ppo.py`, in f64.

use std::collections::HashMap;

use reward::loss::{PairIndex, accuracy, expected_calibration_error, kwise_loss, margins};
use tch::Tensor;

const TOLERANCE: f64 = 1e-11;

fn golden() -> HashMap<String, Tensor> {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/golden/ppo.safetensors"
    );
    Tensor::read_safetensors(path)
        .expect("the golden file")
        .into_iter()
        .collect()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.view(-1).try_into().expect("f64")
}

fn integers(tensor: &Tensor) -> Vec<i64> {
    tensor.view(-1).try_into().expect("i64")
}

/// Each prompt's number of responses and its ordered pairs; ties are in no pair.
fn prompts(golden: &HashMap<String, Tensor>) -> Vec<(usize, Vec<(usize, usize)>)> {
    let pairs: Vec<Vec<i64>> = golden["kwise.pairs"]
        .shallow_clone()
        .try_into()
        .expect("rows of i64");
    let of_prompt = |prompt: usize| {
        let own = pairs.iter().filter(move |pair| pair[0] == prompt as i64);
        own.map(|pair| (pair[1] as usize, pair[2] as usize))
            .collect()
    };
    let sizes = integers(&golden["kwise.sizes"]);
    sizes
        .into_iter()
        .enumerate()
        .map(|(i, size)| (size as usize, of_prompt(i)))
        .collect()
}

fn index(prompts: &[(usize, Vec<(usize, usize)>)]) -> PairIndex {
    PairIndex::new(prompts.iter().map(|(size, pairs)| (*size, &pairs[..])))
}

#[track_caller]
fn assert_close(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (found - expected).abs() < TOLERANCE,
            "{what}: {found}, expected {expected}"
        );
    }
}

#[test]
fn the_kwise_loss_and_its_gradient() {
    let golden = golden();
    let pairs = index(&prompts(&golden));
    let scores_n = golden["kwise.scores"].copy().set_requires_grad(true);
    let loss = kwise_loss(&scores_n, &pairs);
    loss.backward();
    assert_close(
        "loss",
        &[loss.double_value(&[])],
        &numbers(&golden["kwise.loss"]),
    );
    let gradient = numbers(&scores_n.grad());
    assert_close("gradient", &gradient, &numbers(&golden["kwise.gradient"]));
    let found = numbers(&margins(&scores_n.detach(), &pairs));
    assert_close("margins", &found, &numbers(&golden["kwise.margins"]));
    assert_close(
        "accuracy",
        &[accuracy(&found)],
        &numbers(&golden["kwise.accuracy"]),
    );
}

#[test]
fn prompts_one_by_one_have_the_gradient_of_all_at_once() {
    let golden = golden();
    let scores_n = golden["kwise.scores"].copy().set_requires_grad(true);
    let mut first = 0;
    for prompt in prompts(&golden) {
        let size = prompt.0 as i64;
        let own_n = scores_n.narrow(0, first, size);
        kwise_loss(&own_n, &index(&[prompt])).backward();
        first += size;
    }
    let gradient = numbers(&scores_n.grad());
    assert_close("gradient", &gradient, &numbers(&golden["kwise.gradient"]));
}

#[test]
fn calibration_is_the_published_one() {
    let golden = golden();
    let found = expected_calibration_error(&numbers(&golden["calibration.margins"]));
    assert_close(
        "calibration",
        &[found],
        &numbers(&golden["calibration.expected"]),
    );
}
