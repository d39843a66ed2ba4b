//! Beam search against transformers: `tests/golden/make_beams.py` made the cases.

use std::path::{Path, PathBuf};

use generation::{
    BeamOptions, Finish, GenerationError, Request, SamplingOptions, beam_search, generate,
};
use model::{Head, Input, Model, weights};
use recipe::families::Sizes;
use recipe::shape::{Family, ModelShape};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

#[derive(Deserialize)]
struct Case {
    model: String,
    prompt: Vec<u32>,
    beams: usize,
    length_penalty: f64,
    eos: Vec<u32>,
    max_new_tokens: usize,
    responses: Vec<Vec<u32>>,
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../../tests/golden")
        .join(name)
}

fn cases() -> Vec<Case> {
    let text = std::fs::read_to_string(golden("beams.json")).expect("golden cases");
    serde_json::from_str(&text).expect("cases")
}

/// The golden model with weights three times as large, as in the program.
fn model(name: &str) -> Model {
    let file = weights::read(&golden(&format!("model_{name}.safetensors"))).expect("golden file");
    let dir = tempfile::tempdir().expect("a folder");
    let config: Vec<u8> = Vec::try_from(&file["config"]).expect("bytes");
    std::fs::write(dir.path().join("config.json"), config).expect("config");
    let scaled = |(name, tensor): (&String, &Tensor)| {
        Some((name.strip_prefix("param/")?.to_owned(), tensor * 3.0))
    };
    let params = file.iter().filter_map(scaled).collect();
    weights::write(&dir.path().join("model.safetensors"), &params).expect("weights");
    Model::load(dir.path(), Device::Cpu, Kind::Double).expect("a model")
}

fn options(case: &Case) -> BeamOptions {
    BeamOptions {
        beams: case.beams,
        length_penalty: case.length_penalty,
        returned: case.beams,
        max_new_tokens: case.max_new_tokens,
        eos_ids: case.eos.clone(),
        max_batch: 64,
    }
}

#[test]
fn responses_and_their_order_are_those_of_transformers() {
    let (mut ended, mut cut) = (0, 0);
    for case in cases() {
        let found = beam_search(
            &model(&case.model),
            std::slice::from_ref(&case.prompt),
            &options(&case),
        );
        let found = &found.expect("responses")[0];
        let ids: Vec<_> = found
            .iter()
            .map(|sample| sample.output_ids.clone())
            .collect();
        let (beams, penalty) = (case.beams, case.length_penalty);
        assert_eq!(
            ids, case.responses,
            "{} {:?}, {beams} beams, {penalty}",
            case.model, case.prompt
        );
        for sample in found {
            assert_eq!(sample.output_ids.len(), sample.logprobs.len());
            let stopped = sample
                .output_ids
                .last()
                .is_some_and(|id| case.eos.contains(id));
            assert_eq!(stopped, sample.finish == Finish::Stop);
            ended += usize::from(stopped);
            cut += usize::from(!stopped);
        }
    }
    assert!(ended > 20 && cut > 20, "{ended} ended, {cut} were cut off");
}

#[test]
fn prompts_that_are_searched_together_do_not_change_each_other() {
    let all = cases();
    let model = model("llama_untied");
    let case = all.iter().find(|it| it.beams == 4).expect("four beams");
    let prompts: Vec<Vec<u32>> = all.iter().map(|it| it.prompt.clone()).take(9).collect();
    for max_batch in [1, 8, 64] {
        let options = BeamOptions {
            max_batch,
            returned: 2,
            ..options(case)
        };
        let together = beam_search(&model, &prompts, &options).expect("responses");
        for (prompt, together) in prompts.iter().zip(&together) {
            let alone = beam_search(&model, std::slice::from_ref(prompt), &options);
            assert_eq!(together.len(), 2);
            for (a, b) in alone.expect("responses")[0].iter().zip(together) {
                assert_eq!(a.output_ids, b.output_ids);
                let gap = |(a, b): (&f64, &f64)| (a - b).abs();
                assert!(
                    a.logprobs
                        .iter()
                        .zip(&b.logprobs)
                        .map(gap)
                        .all(|gap| gap < 1e-9)
                );
            }
        }
    }
}

/// The numbers are those that greedy decoding gives, and one beam is greedy decoding.
#[test]
fn one_beam_is_greedy_decoding() {
    let model = model("gpt2_untied");
    let prompts: Vec<Vec<u32>> = cases().into_iter().map(|it| it.prompt).collect();
    let beams = BeamOptions {
        beams: 1,
        length_penalty: 1.0,
        returned: 1,
        max_new_tokens: 7,
        eos_ids: vec![0, 3],
        max_batch: 5,
    };
    let greedy = SamplingOptions {
        max_new_tokens: 7,
        greedy: true,
        eos_ids: vec![0, 3],
        ..SamplingOptions::default()
    };
    let requests: Vec<Request> = prompts
        .iter()
        .map(|ids| Request {
            prompt_ids: ids.clone(),
            episode: 0,
        })
        .collect();
    let greedy = generate(&model, &requests, &greedy).expect("samples");
    for (found, greedy) in beam_search(&model, &prompts, &beams)
        .expect("responses")
        .iter()
        .zip(&greedy)
    {
        assert_eq!(
            (&found[0].output_ids, found[0].finish),
            (&greedy.output_ids, greedy.finish)
        );
        let pairs = found[0].logprobs.iter().zip(&greedy.logprobs);
        assert!(pairs.map(|(a, b)| (a - b).abs()).all(|gap| gap < 1e-9));
    }
}

#[test]
fn what_cannot_be_searched_is_refused() {
    let model = model("llama_untied");
    let case = &cases()[1];
    let refused = |change: fn(&mut BeamOptions)| {
        let mut options = options(case);
        change(&mut options);
        beam_search(&model, std::slice::from_ref(&case.prompt), &options).expect_err("refused")
    };
    assert!(matches!(
        refused(|it| it.beams = 0),
        GenerationError::Zero {
            option: "beams",
            ..
        }
    ));
    assert!(matches!(
        refused(|it| it.returned = 9),
        GenerationError::TooFewBeams { returned: 9, .. }
    ));
    assert!(matches!(
        refused(|it| it.returned = 0),
        GenerationError::TooFewBeams { .. }
    ));
    assert!(matches!(
        refused(|it| it.max_new_tokens = 100),
        GenerationError::TooLong { .. }
    ));
}

/// Beginnings as rows of a full pass without a cache: the best of all their continuations go on.
fn beams_of_full_passes(
    model: &Model,
    prompt: &[u32],
    beams: usize,
    tokens: usize,
) -> Vec<Vec<u32>> {
    let mut running: Vec<(f64, Vec<u32>)> = vec![(0.0, prompt.to_vec())];
    for _ in 0..tokens {
        let mut next = Vec::new();
        for (sum, ids) in &running {
            let row: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
            let hidden_btd = model.hidden(&Input::dense(Tensor::from_slice(&row).unsqueeze(0)));
            let last_v = model
                .logits(&hidden_btd.select(1, row.len() as i64 - 1))
                .view(-1);
            let logprobs: Vec<f64> = last_v.log_softmax(-1, None).try_into().expect("f64");
            for (id, logprob) in logprobs.iter().enumerate() {
                next.push((sum + logprob, [&ids[..], &[id as u32]].concat()));
            }
        }
        next.sort_by(|a, b| b.0.total_cmp(&a.0));
        next.truncate(beams);
        running = next;
    }
    let responses = running.into_iter();
    responses
        .map(|(_, ids)| ids[prompt.len()..].to_vec())
        .collect()
}

/// Blocks of the cache hold 16 tokens: beams divide before, at and behind their ends.
#[test]
fn beams_that_share_blocks_are_those_of_full_passes() {
    let shape = ModelShape {
        kv_heads: 1,
        ..Family::Llama.shape(&Sizes {
            vocab_size: 17,
            max_positions: 64,
            layers: 2,
            width: 16,
            heads: 2,
        })
    };
    let model = Model::init(&shape, Head::Token, 5, Device::Cpu, Kind::Double);
    tch::no_grad(|| {
        for param in model.params().values().filter(|param| param.dim() > 1) {
            let _ = param.shallow_clone().g_mul_scalar_(12.0);
        }
    });
    let prompts: Vec<Vec<u32>> = [1, 15, 16, 17, 30]
        .map(|len| (0..len).map(|i| (i * i + 3) % 17).collect())
        .to_vec();
    let options = BeamOptions {
        beams: 4,
        length_penalty: 1.0,
        returned: 4,
        max_new_tokens: 9,
        eos_ids: Vec::new(),
        max_batch: 64,
    };
    let found = beam_search(&model, &prompts, &options).expect("responses");
    for (prompt, found) in prompts.iter().zip(found) {
        let ids: Vec<_> = found.into_iter().map(|sample| sample.output_ids).collect();
        let expected = tch::no_grad(|| beams_of_full_passes(&model, prompt, 4, 9));
        assert_eq!(ids, expected, "a prompt of {}", prompt.len());
    }
}
