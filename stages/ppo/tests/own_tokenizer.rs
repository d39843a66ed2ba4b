//! Scores by a reward model that is shown text: what it reads is its own tokenizer's, up to its own EOS.

use std::fs;

use datasets::{Message, Overlong, Tokenizer};
use judge::RewardJudge;
use model::{Head, Model};
use ppo::data::RewardModel;
use ppo::rollout::Episode;
use ppo::scoring::ScoreOptions;
use recipe::families::Sizes;
use recipe::plan::EosRule;
use recipe::shape::Family;
use tch::{Device, Kind};

const VOCABULARY: usize = 300;

fn tokenizer() -> Tokenizer {
    let texts = (0..200).map(|i| format!("the weather was {i} degrees, said the neighbour"));
    Tokenizer::train(texts, VOCABULARY).expect("trained")
}

fn reward_model(own_tokenizer: Option<Tokenizer>) -> RewardModel {
    let shape = Family::Llama.shape(&Sizes {
        vocab_size: VOCABULARY,
        max_positions: 64,
        layers: 2,
        width: 16,
        heads: 4,
    });
    let model = Model::init(&shape, Head::Scalar, 5, Device::Cpu, Kind::Double);
    RewardModel {
        judge: RewardJudge::new(model).expect("a scalar head"),
        weight: 1.0,
        own_tokenizer,
    }
}

fn episode(tokenizer: &Tokenizer, prompt: &str, response_ids: Vec<u32>) -> Episode {
    let messages = vec![Message::new("user", prompt)];
    Episode {
        id: prompt.to_owned(),
        prompt_ids: tokenizer.encode_prompt(&messages).expect("encoded"),
        prompt: messages,
        episode: 0,
        prompt_text: prompt.to_owned(),
        response_text: tokenizer.decode(&response_ids).expect("text"),
        has_eos: response_ids.last() == Some(&tokenizer.eos_id()),
        score_index: response_ids.len() - 1,
        response_ids,
        score_raw: 0.0,
        score: 0.0,
        logprobs: Vec::new(),
        reference_logprobs: Vec::new(),
        values: Vec::new(),
        rewards: Vec::new(),
        advantages: Vec::new(),
        returns: Vec::new(),
    }
}

fn scores(model: &RewardModel, episodes: &[Episode]) -> Vec<f64> {
    let options = ScoreOptions {
        eos_rule: EosRule::Off,
        overlong: Overlong::Error,
        micro_batch: 2,
    };
    let (scores, num_shortened) = model
        .score(episodes, &tokenizer(), &options)
        .expect("scores");
    assert_eq!(num_shortened, 0);
    scores
}

#[test]
fn an_equal_tokenizer_gives_equal_scores() {
    let tokenizer = tokenizer();
    let by_ids = reward_model(None);
    let by_text = reward_model(Some(tokenizer.clone()));
    let encode = |text: &str| tokenizer.encode(text).expect("encoded");
    let episodes: Vec<Episode> = [
        ("the weather", "12 degrees<|endoftext|>"),
        ("said who?", "the neighbour"),
        ("was it?", "<|endoftext|>"),
        ("the neighbour", "naïve 🎉 "),
    ]
    .into_iter()
    .map(|(prompt, response)| episode(&tokenizer, prompt, encode(response)))
    .collect();
    let (ids, text) = (scores(&by_ids, &episodes), scores(&by_text, &episodes));
    for (ids, text) in ids.iter().zip(&text) {
        assert!((ids - text).abs() < 1e-9, "{ids} by ids, {text} by text");
    }
    assert!((ids[0] - ids[1]).abs() > 1e-6, "the scores differ: {ids:?}");

    // Letter by letter the same text is other ids, of which text knows nothing.
    let letters: Vec<u32> = "the neighbour"
        .chars()
        .flat_map(|c| encode(&c.to_string()))
        .collect();
    assert_ne!(letters, episodes[1].response_ids);
    let spelled = episode(&tokenizer, "said who?", letters);
    assert!((scores(&by_text, std::slice::from_ref(&spelled))[0] - text[1]).abs() < 1e-9);
    assert!((scores(&by_ids, &[spelled])[0] - text[1]).abs() > 1e-6);
}

/// A tokenizer of other merges, whose EOS is `</s>` and has the id of the policy's padding.
fn foreign_tokenizer() -> Tokenizer {
    let texts = (0..200).map(|i| format!("naïve degrees of {i} {i} bother neither"));
    let trained = Tokenizer::train(texts, 290).expect("trained");
    let dir = tempfile::tempdir().expect("folder");
    trained.save(dir.path()).expect("saved");
    let rewrite = |file: &str, names: &[(&str, &str)]| {
        let path = dir.path().join(file);
        let mut text = fs::read_to_string(&path).expect("read");
        for (name, other) in names {
            text = text.replace(name, other);
        }
        fs::write(&path, text).expect("written");
    };
    let (eos, pad) = ("<|endoftext|>", "<|pad|>");
    rewrite("tokenizer.json", &[(pad, "</s>"), (eos, pad)]);
    rewrite("tokenizer_config.json", &[(eos, "</s>")]);
    Tokenizer::load(dir.path()).expect("loaded")
}

/// Whether the policy ended its reply or was cut off: the row ends in the EOS of who reads it, once.
#[test]
fn a_reply_ends_in_the_eos_of_the_reward_models_tokenizer() {
    let (policys, own) = (tokenizer(), foreign_tokenizer());
    let ids = (
        policys.eos_id(),
        policys.pad_id(),
        own.eos_id(),
        own.pad_id(),
    );
    assert_eq!(ids, (0, 1, 1, 0));
    let by_text = reward_model(Some(own.clone()));
    for (reply, text) in [
        ("12 degrees<|endoftext|>", "12 degrees"),
        ("12 degrees", "12 degrees"),
        ("<|endoftext|>", ""),
        ("naïve</s> 🎉", "naïve</s> 🎉"),
    ] {
        let response_ids = policys.encode(reply).expect("encoded");
        let episode = episode(&policys, "the weather", response_ids);
        let row = format!("<|user|>the weather</s><|assistant|>{text}</s>");
        let row = own.encode(&row).expect("encoded");
        assert_eq!(row.last(), Some(&own.eos_id()), "{reply}");
        let expected = by_text.judge.score(&[row], own.pad_id(), 1);
        assert_eq!(
            scores(&by_text, &[episode]),
            expected.expect("scored"),
            "{reply}"
        );
    }
}
