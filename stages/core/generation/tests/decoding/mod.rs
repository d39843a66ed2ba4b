//! Properties of `generate`, in f64, on tiny random models. One body for every kind of kernels; the crate says
//! which, and how much of it.

use generation::{Finish, Request, Sample, SamplingOptions, generate, generate_with_values};
use model::{Head, Input, Model, response_logprobs};
use recipe::families::Sizes;
use recipe::shape::{Family, LocalAttention, ModelShape, Positions};
use runtime::seeds;
use tch::{Device, Kind, Tensor};

const VOCAB: u32 = 19;

/// A model whose distributions are far from uniform.
fn sharp_model(family: Family) -> Model {
    crate::begin();
    let usual = family.shape(&Sizes {
        vocab_size: VOCAB as usize,
        max_positions: 40,
        layers: 2,
        width: 16,
        heads: 4,
    });
    // Fewer key heads where the family has them, and windows that are shorter than the rows.
    let grouped = family.grouped() && usual.kv_heads > 1;
    let local = match family {
        Family::Mistral => Some((0..usual.layers).collect()),
        _ => usual.local.as_ref().map(|local| local.layers.clone()),
    };
    // Falcon has both; other families rotate, and none has `ALiBi` alone.
    let positions = match family {
        Family::Falcon => Positions::Alibi,
        _ => usual.positions,
    };
    let shape = ModelShape {
        kv_heads: if grouped { 2 } else { usual.kv_heads },
        positions,
        mlp_width: 32,
        local: local.map(|layers| LocalAttention { window: 5, layers }),
        ..usual
    };
    let model = Model::init(&shape, Head::Token, 17, Device::Cpu, Kind::Double);
    tch::no_grad(|| {
        for param in model.params().values().filter(|param| param.dim() > 1) {
            let _ = param.shallow_clone().g_mul_scalar_(15.0);
        }
    });
    model
}

fn options() -> SamplingOptions {
    SamplingOptions {
        max_new_tokens: 20,
        temperature: 0.8,
        top_k: None,
        top_p: None,
        greedy: false,
        ignore_eos: false,
        seed: 23,
        purpose: "test",
        eos_ids: vec![0, 7],
        max_batch: 64,
    }
}

/// Prompts of 1 to 13 tokens, in no order of length; the last three in eight are the first ones again.
fn requests() -> Vec<Request> {
    let token = |i, t| 1 + (seeds::key(1, "prompt", i, t) % u64::from(VOCAB - 1)) as u32;
    let prompt = |i| {
        (0..=seeds::key(1, "length", i, 0) % 13)
            .map(|t| token(i, t))
            .collect()
    };
    (0..crate::REQUESTS)
        .map(|i| Request {
            prompt_ids: prompt(i % (crate::REQUESTS * 5 / 8)),
            episode: 1000 + i,
        })
        .collect()
}

fn samples(model: &Model, options: &SamplingOptions) -> Vec<Sample> {
    generate(model, &requests(), options).expect("samples")
}

fn full_ids(request: &Request, sample: &Sample) -> Tensor {
    let ids: Vec<i64> = request
        .prompt_ids
        .iter()
        .chain(&sample.output_ids)
        .map(|&id| i64::from(id))
        .collect();
    Tensor::from_slice(&ids).view([1, -1])
}

/// Logits that predict each token of a response, from a full forward pass without a cache.
fn full_logits(model: &Model, request: &Request, sample: &Sample) -> Vec<Vec<f64>> {
    let ids_bt = full_ids(request, sample);
    let logits_btv = model.logits(&model.hidden(&Input::dense(ids_bt)));
    let first = request.prompt_ids.len() as i64 - 1;
    (0..sample.output_ids.len() as i64)
        .map(|r| Vec::try_from(logits_btv.select(1, first + r).view(-1)).expect("f64"))
        .collect()
}

/// The distribution to sample from, computed here without tensors.
fn plain_distribution(logits: &[f64], options: &SamplingOptions) -> Vec<f64> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    order.truncate(options.top_k.unwrap_or(logits.len()));
    let weight = |id: usize| ((logits[id] - logits[order[0]]) / options.temperature).exp();
    let total: f64 = order.iter().map(|&id| weight(id)).sum();
    let mut kept = Vec::new();
    let mut mass = 0.0;
    for &id in &order {
        if mass / total < options.top_p.unwrap_or(2.0) {
            kept.push(id);
            mass += weight(id);
        }
    }
    let mut probs = vec![0.0; logits.len()];
    for id in kept {
        probs[id] = weight(id) / mass;
    }
    probs
}

fn assert_same(a: &[Sample], b: &[Sample], what: &str) {
    assert_eq!(a.len(), b.len());
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert_eq!(
            (&a.output_ids, a.finish),
            (&b.output_ids, b.finish),
            "{what}, request {i}"
        );
        for (x, y) in a.logprobs.iter().zip(&b.logprobs) {
            assert!((x - y).abs() < 1e-9, "{what}, request {i}: {x} and {y}");
        }
    }
}

#[test]
fn batch_size_order_and_mates_change_nothing() {
    for family in crate::FAMILIES {
        let model = sharp_model(family);
        let alone = samples(
            &model,
            &SamplingOptions {
                max_batch: 1,
                ..options()
            },
        );
        for max_batch in [7, 64] {
            let together = samples(
                &model,
                &SamplingOptions {
                    max_batch,
                    ..options()
                },
            );
            assert_same(&alone, &together, &format!("{family:?} at {max_batch}"));
        }
        let backwards: Vec<Request> = requests().into_iter().rev().collect();
        let mut backwards = generate(&model, &backwards, &options()).expect("samples");
        backwards.reverse();
        assert_same(&alone, &backwards, &format!("{family:?} backwards"));
    }
}

#[test]
fn cached_logprobs_are_those_of_the_full_forward() {
    for family in crate::FAMILIES {
        let model = sharp_model(family);
        let options = options();
        for (request, sample) in requests().iter().zip(samples(&model, &options)) {
            let ids_bt = full_ids(request, &sample);
            let hidden_btd = model.hidden(&Input::dense(ids_bt.shallow_clone()));
            let start = request.prompt_ids.len() as i64;
            let full_br =
                response_logprobs(&model, &hidden_btd, &ids_bt, start, options.temperature);
            let full = Vec::<f64>::try_from(full_br.view(-1)).expect("f64");
            assert_eq!(full.len(), sample.logprobs.len());
            for (a, b) in full.iter().zip(&sample.logprobs) {
                assert!((a - b).abs() < 1e-9, "{family:?}: {a} and {b}");
            }
        }
    }
}

#[test]
fn every_token_is_the_inverse_cdf_of_the_full_forward() {
    let cuts = [
        (None, None),
        (Some(3), None),
        (None, Some(0.6)),
        (Some(6), Some(0.8)),
    ];
    for family in crate::FAMILIES {
        let model = sharp_model(family);
        for (top_k, top_p) in cuts {
            let options = SamplingOptions {
                top_k,
                top_p,
                ..options()
            };
            for (request, sample) in requests().iter().zip(samples(&model, &options)) {
                let logits = full_logits(&model, request, &sample);
                for (t, logits) in logits.iter().enumerate() {
                    let probs = plain_distribution(logits, &options);
                    let chosen = sample.output_ids[t] as usize;
                    let below: f64 = probs[..chosen].iter().sum();
                    let u = seeds::uniform(options.seed, "test", request.episode, t as u64);
                    let inside = below - 1e-9 <= u && u <= below + probs[chosen] + 1e-9;
                    assert!(
                        inside,
                        "{family:?}: {u} is not in token {chosen} of {probs:?}"
                    );
                    let gap = (probs[chosen].ln() - sample.logprobs[t]).abs();
                    assert!(gap < 1e-9, "{family:?} {top_k:?} {top_p:?}: {gap}");
                }
            }
        }
    }
}

#[test]
fn greedy_is_the_argmax_of_the_full_forward() {
    for family in crate::FAMILIES {
        let model = sharp_model(family);
        let options = SamplingOptions {
            greedy: true,
            temperature: 0.0,
            ..options()
        };
        let plain = SamplingOptions {
            temperature: 1.0,
            ..self::options()
        };
        for (request, sample) in requests().iter().zip(samples(&model, &options)) {
            for (t, logits) in full_logits(&model, request, &sample).iter().enumerate() {
                let probs = plain_distribution(logits, &plain);
                let best = (0..probs.len()).max_by(|&a, &b| probs[a].total_cmp(&probs[b]));
                assert_eq!(best, Some(sample.output_ids[t] as usize), "{family:?}");
                assert!((probs[best.unwrap_or(0)].ln() - sample.logprobs[t]).abs() < 1e-9);
            }
        }
    }
}

#[test]
fn rows_end_at_eos_or_at_the_bound() {
    let model = sharp_model(Family::Llama);
    let made = samples(&model, &options());
    for sample in &made {
        let eos = sample
            .output_ids
            .iter()
            .position(|id| options().eos_ids.contains(id));
        let expected = match sample.finish {
            Finish::Stop => Some(sample.output_ids.len() - 1),
            Finish::Length => None,
        };
        assert_eq!(
            eos, expected,
            "EOS is the last token, and only of a stopped row"
        );
        assert!(sample.finish == Finish::Stop || sample.output_ids.len() == 20);
        assert_eq!(sample.output_ids.len(), sample.logprobs.len());
    }
    let num_stopped = made
        .iter()
        .filter(|sample| sample.finish == Finish::Stop)
        .count();
    assert!(
        (made.len() / 8..made.len()).contains(&num_stopped),
        "{num_stopped} of {}",
        made.len()
    );
}

#[test]
fn retiring_rows_changes_nothing() {
    for family in crate::FAMILIES {
        let model = sharp_model(family);
        // Nothing finishes before the end, so nothing is retired; cut at EOS afterwards.
        let mut whole = samples(
            &model,
            &SamplingOptions {
                ignore_eos: true,
                ..options()
            },
        );
        for sample in &mut whole {
            assert_eq!(
                (sample.output_ids.len(), sample.finish),
                (20, Finish::Length)
            );
            if let Some(eos) = sample
                .output_ids
                .iter()
                .position(|id| options().eos_ids.contains(id))
            {
                sample.output_ids.truncate(eos + 1);
                sample.logprobs.truncate(eos + 1);
                sample.finish = Finish::Stop;
            }
        }
        let lengths: Vec<usize> = whole.iter().map(|sample| sample.output_ids.len()).collect();
        assert!(
            lengths.iter().min() != lengths.iter().max(),
            "all of length {}",
            lengths[0]
        );
        assert_same(&whole, &samples(&model, &options()), &format!("{family:?}"));
    }
}

#[test]
fn samples_of_one_prompt_differ_by_episode_alone() {
    let model = sharp_model(Family::Gpt2);
    let request = |episode| Request {
        prompt_ids: vec![3, 4],
        episode,
    };
    let requests: Vec<Request> = [1, 2, 3, 1].into_iter().map(request).collect();
    let made = generate(&model, &requests, &options()).expect("samples");
    assert_eq!(made[0].output_ids, made[3].output_ids);
    assert!(made[0].output_ids != made[1].output_ids || made[0].output_ids != made[2].output_ids);
}

/// What a scalar head on the same trunk says before each token is what it says in a full pass, one position earlier.
#[test]
fn values_come_from_the_states_that_tokens_are_sampled_from() {
    for family in [Family::Gpt2, Family::Llama] {
        let model = sharp_model(family);
        let value = model.to_value();
        tch::no_grad(|| {
            let numbers = Tensor::arange(16, (Kind::Double, Device::Cpu)).cos();
            let mut head = value.params()["score.weight"].shallow_clone();
            head.copy_(&numbers.view([1, -1]));
        });
        let options = SamplingOptions {
            max_batch: 7,
            ..options()
        };
        let plain = samples(&model, &options);
        assert!(plain.iter().all(|sample| sample.values.is_empty()));
        let valued = generate_with_values(&model, &value, &requests(), &options).expect("samples");
        assert_same(&plain, &valued, "values change a sample");
        for (request, sample) in requests().iter().zip(&valued) {
            let hidden_btd = model.hidden(&Input::dense(full_ids(request, sample)));
            let full_t: Vec<f64> = value.scalar(&hidden_btd).view(-1).try_into().expect("f64");
            let first = request.prompt_ids.len() - 1;
            let full = &full_t[first..first + sample.output_ids.len()];
            assert_eq!(sample.values.len(), full.len());
            for (ours, full) in sample.values.iter().zip(full) {
                assert!((ours - full).abs() < 1e-9, "{family:?}: {ours} and {full}");
            }
        }
    }
}
