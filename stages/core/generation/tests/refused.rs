//! What `generate` refuses, and how it says so.

use generation::{Request, SamplingOptions, generate};
use model::{Head, Model};
use recipe::families::Sizes;
use recipe::shape::{Family, ModelShape};
use tch::{Device, Kind};

fn model(head: Head) -> Model {
    let shape = ModelShape {
        mlp_width: 16,
        ..Family::Gpt2.shape(&Sizes {
            vocab_size: 9,
            max_positions: 12,
            layers: 1,
            width: 8,
            heads: 2,
        })
    };
    Model::init(&shape, head, 1, Device::Cpu, Kind::Double)
}

fn options() -> SamplingOptions {
    SamplingOptions {
        max_new_tokens: 8,
        temperature: 1.0,
        top_k: None,
        top_p: None,
        greedy: false,
        ignore_eos: false,
        seed: 1,
        purpose: "test",
        eos_ids: vec![0],
        max_batch: 4,
    }
}

/// The error for a good prompt and then `prompt_ids`; empty where there is none.
fn refusal(head: Head, prompt_ids: &[u32], options: &SamplingOptions) -> String {
    let request = |ids: &[u32]| Request {
        prompt_ids: ids.to_vec(),
        episode: 0,
    };
    let requests = [request(&[1, 2]), request(prompt_ids)];
    generate(&model(head), &requests, options)
        .err()
        .map(|it| it.to_string())
        .unwrap_or_default()
}

#[test]
fn what_fits_is_not_refused() {
    assert_eq!(refusal(Head::Token, &[1, 2, 3, 4], &options()), "");
    let greedy = SamplingOptions {
        greedy: true,
        temperature: 0.0,
        ..options()
    };
    assert_eq!(refusal(Head::Token, &[1], &greedy), "");
}

#[test]
fn prompts_are_checked() {
    let error = refusal(Head::Token, &[], &options());
    assert!(
        error.contains("request 1 is empty") && error.contains("hint:"),
        "{error}"
    );
    let error = refusal(Head::Token, &[1, 2, 3, 4, 5], &options());
    assert!(
        error.contains("request 1 has 5 tokens") && error.contains("8 new"),
        "{error}"
    );
    assert!(
        error.contains("12 positions") && error.contains("hint: shorten"),
        "{error}"
    );
    assert!(error.contains("to 4 tokens"), "{error}");
    let endless = SamplingOptions {
        max_new_tokens: usize::MAX,
        ..options()
    };
    let error = refusal(Head::Token, &[1], &endless);
    assert!(error.contains("18446744073709551615 new"), "{error}");
    let error = refusal(Head::Token, &[1, 9], &options());
    assert!(
        error.contains("has token 9, and the model has 9"),
        "{error}"
    );
}

#[test]
fn options_are_checked() {
    type Change = fn(&mut SamplingOptions);
    let cases: [(Change, &str); 10] = [
        (|o| o.temperature = 0.0, "temperature is 0,"),
        (|o| o.temperature = -1.0, "temperature is -1,"),
        (|o| o.temperature = f64::NAN, "temperature is NaN,"),
        (|o| o.temperature = f64::INFINITY, "temperature is inf,"),
        (|o| o.top_p = Some(0.0), "top_p is 0,"),
        (|o| o.top_p = Some(1.5), "top_p is 1.5,"),
        (|o| o.top_p = Some(f64::NAN), "top_p is NaN,"),
        (|o| o.top_k = Some(0), "`top_k` is 0,"),
        (|o| o.max_new_tokens = 0, "`max_new_tokens` is 0,"),
        (|o| o.max_batch = 0, "`max_batch` is 0,"),
    ];
    for (change, expected) in cases {
        let mut options = options();
        change(&mut options);
        let error = refusal(Head::Token, &[1], &options);
        assert!(
            error.contains(expected) && error.contains("hint:"),
            "{expected}: {error}"
        );
    }
}

#[test]
fn a_scalar_head_is_refused() {
    let error = refusal(Head::Scalar, &[1], &options());
    assert!(
        error.contains("scalar head") && error.contains("hint:"),
        "{error}"
    );
}

#[test]
fn weights_that_are_no_numbers_are_refused() {
    let model = model(Head::Token);
    tch::no_grad(|| {
        for param in model.params().values() {
            let _ = param.shallow_clone().fill_(f64::NAN);
        }
    });
    let request = Request {
        prompt_ids: vec![1],
        episode: 0,
    };
    let error = generate(&model, &[request], &options()).map(|_| ()).err();
    let error = error.map(|it| it.to_string()).unwrap_or_default();
    assert!(error.contains("token 0 of request 0 is NaN"), "{error}");
}
