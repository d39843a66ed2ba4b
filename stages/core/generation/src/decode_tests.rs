//! The loop from inside: looks, places that are taken again, shared prompts.

use model::Head;
use recipe::families::Sizes;
use recipe::shape::{Family, ModelShape};
use tch::Device;

use super::*;

fn model() -> Model {
    let shape = ModelShape {
        kv_heads: 1,
        mlp_width: 16,
        ..Family::Llama.shape(&Sizes {
            vocab_size: 13,
            max_positions: 40,
            layers: 1,
            width: 8,
            heads: 2,
        })
    };
    Model::init(&shape, Head::Token, 3, Device::Cpu, Kind::Double)
}

fn options() -> SamplingOptions {
    SamplingOptions {
        max_new_tokens: 21,
        temperature: 1.0,
        top_k: None,
        top_p: None,
        greedy: false,
        ignore_eos: false,
        seed: 11,
        purpose: "test",
        eos_ids: vec![0, 5],
        max_batch: 16,
    }
}

fn requests() -> Vec<Request> {
    let prompt = |i| (1..=1 + i as u32 % 5).collect();
    (0..16)
        .map(|i| Request {
            prompt_ids: prompt(i),
            episode: i,
        })
        .collect()
}

#[test]
fn steps_between_looks_change_nothing() {
    let (model, requests) = (model(), requests());
    // With 4 places rows begin while others are on their way.
    for max_batch in [16, 4] {
        looks_change_nothing(&model, &requests, max_batch);
    }
}

fn looks_change_nothing(model: &Model, requests: &[Request], max_batch: usize) {
    let options = SamplingOptions {
        max_batch,
        ..options()
    };
    let value = model.to_value();
    tch::no_grad(|| {
        let mut head = value.params()["score.weight"].shallow_clone();
        let _ = head.fill_(0.3);
    });
    let models = (model, Some(&value));
    let every = |per_look| {
        let stepping = Stepping {
            per_look,
            ..Stepping::of(model)
        };
        generate_by(stepping, models, requests, &options).expect("samples")
    };
    let one = every(1);
    assert!(one.iter().any(|it| it.finish == Finish::Stop));
    for (one, eight) in one.iter().zip(every(8)) {
        assert_eq!(
            (&one.output_ids, one.finish),
            (&eight.output_ids, eight.finish)
        );
        assert_eq!(one.values.len(), one.output_ids.len());
        assert_eq!(eight.values.len(), one.output_ids.len());
        let numbers = [
            (&one.logprobs, &eight.logprobs),
            (&one.values, &eight.values),
        ];
        for (a, b) in numbers.iter().flat_map(|(a, b)| a.iter().zip(*b)) {
            assert!((a - b).abs() < 1e-9, "{a} {b}");
        }
    }
}

/// Rows that are live after each look, until all is done.
fn live_rows(engine: &mut Engine) -> Vec<usize> {
    let mut live = Vec::new();
    while !engine.is_done() {
        engine.admit();
        engine.look().expect("tokens");
        live.push(engine.live.len());
    }
    live
}

#[test]
fn waiting_prompts_take_the_places_of_finished_rows() {
    let (model, requests) = (model(), requests());
    let options = SamplingOptions {
        max_batch: 4,
        ..options()
    };
    let mut engine = Engine::new(&model, &requests, &options, Stepping::of(&model));
    let live = live_rows(&mut engine);
    let lengths = engine.samples.iter().map(|it| it.output_ids.len());
    let tokens: usize = lengths.clone().sum();
    // Rows that run on alone at the end leave places empty, and nothing else does.
    let full = tokens.div_ceil(options.max_batch);
    let longest = lengths.max().unwrap_or(0);
    assert!(
        live.len() < full + longest,
        "{} steps: {live:?}",
        live.len()
    );
    assert_eq!(engine.cache.num_free(), 4 * KvCache::blocks_for(5 + 20));
}

#[test]
fn a_shared_prompt_is_read_once_and_its_blocks_are_shared() {
    let (model, options) = (model(), options());
    let request = |ids: Vec<u32>, episode| Request {
        prompt_ids: ids,
        episode,
    };
    // 18 tokens: one full block to share, and one that is not.
    let shared: Vec<u32> = (0..18).map(|i| i % 13).collect();
    let requests = [
        request(shared.clone(), 0),
        request(vec![3], 1),
        request(shared, 2),
    ];
    let mut engine = Engine::new(&model, &requests, &options, Stepping::of(&model));
    let all = engine.cache.num_free();
    engine.admit();
    let groups: Vec<usize> = engine.beginning.iter().map(Vec::len).collect();
    assert_eq!(groups, [2, 1]);
    let hidden_bd = engine.begin();
    assert_eq!(hidden_bd.size()[0], 3);
    assert_eq!(all - engine.cache.num_free(), 2 + 1 + 1);
}
