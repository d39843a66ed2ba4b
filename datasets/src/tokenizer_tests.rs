use std::fs;

use super::*;
use crate::dialogue::Dialogue;

pub(super) fn message(role: &str, content: &str) -> Message {
    Message::new(role, content)
}

fn texts() -> Vec<String> {
    let words = [
        "weather",
        "wonderful",
        "terrible",
        "yesterday",
        "neighbour",
        "concert",
    ];
    (0..200)
        .map(|i| {
            format!(
                "<|user|>the {} was {}<|endoftext|>",
                words[i % 6],
                words[(i / 6) % 6]
            )
        })
        .collect()
}

pub(super) fn trained() -> Tokenizer {
    Tokenizer::train(texts().into_iter(), 280).expect("trained")
}

/// Our vocabulary with another configuration.
pub(super) fn with_config(config: &str) -> Result<Tokenizer, TokenizerError> {
    let dir = tempfile::tempdir().expect("folder");
    fs::write(dir.path().join(JSON_FILE), &trained().json).expect("written");
    fs::write(dir.path().join(CONFIG_FILE), config).expect("written");
    Tokenizer::load(dir.path())
}

#[test]
fn training_is_deterministic_whatever_the_order_of_texts() {
    let first = trained();
    assert_eq!(
        (first.vocab_size(), first.eos_id(), first.pad_id()),
        (280, 0, 1)
    );
    let reversed = Tokenizer::train(texts().into_iter().rev(), 280).expect("trained");
    assert_eq!(first.json, reversed.json);
    assert_eq!(first.hash(), reversed.hash());
    let other = Tokenizer::train(texts().into_iter(), 281).expect("trained");
    assert_ne!(first.hash(), other.hash());
}

#[test]
fn any_text_comes_back_and_special_tokens_are_single_tokens() {
    let tokenizer = trained();
    for text in ["the weather", " two  spaces\n\n", "naïve 日本 🎉", ""] {
        let ids = tokenizer.encode(text).expect("encoded");
        assert_eq!(tokenizer.decode(&ids).expect("decoded"), text);
    }
    let ids = tokenizer
        .encode("<|user|><|assistant|><|endoftext|>")
        .expect("encoded");
    assert_eq!(ids, [2, 3, 0]);
    assert!(ids.iter().all(|&id| tokenizer.is_special(id)));
    // Merges never saw the markup, which is the most frequent text there is.
    for piece in ["<|", "|>", "user", "endoftext"] {
        assert_eq!(tokenizer.inner.token_to_id(piece), None, "{piece}");
    }
    assert!(tokenizer.inner.token_to_id("the").is_some());
}

#[test]
fn vocabularies_that_cannot_be_are_refused() {
    let error = Tokenizer::train(texts().into_iter(), 200).expect_err("too small");
    assert!(
        error.to_string().contains("vocab_size = 200 is below 261"),
        "{error}"
    );
    let error = Tokenizer::train(texts().into_iter(), 5000).expect_err("too large");
    assert!(
        error.to_string().contains("hint: set vocab_size = "),
        "{error}"
    );
}

#[test]
fn saved_and_loaded_it_is_the_same() {
    let dir = tempfile::tempdir().expect("folder");
    let tokenizer = trained();
    tokenizer.save(dir.path()).expect("saved");
    let loaded = Tokenizer::load(dir.path()).expect("loaded");
    assert_eq!(tokenizer.hash(), loaded.hash());
    let messages = [message("user", "hi"), message("assistant", "the concert")];
    assert_eq!(
        tokenizer.encode_dialogue(&messages).expect("ours"),
        loaded.encode_dialogue(&messages).expect("loaded")
    );
}

#[test]
fn loss_is_on_every_assistant_turn_with_its_eos_and_on_nothing_else() {
    let tokenizer = trained();
    let messages = [
        message("system", "be good"),
        message("user", "the weather"),
        message("assistant", "wonderful"),
        message("user", "and the concert?"),
        message("assistant", " terrible 🎉"),
    ];
    let Dialogue { ids, loss } = tokenizer.encode_dialogue(&messages).expect("encoded");
    let mut learned: Vec<Vec<u32>> = vec![Vec::new()];
    for (i, (&id, &is_loss)) in ids.iter().zip(&loss).enumerate() {
        if is_loss {
            learned.last_mut().expect("a turn").push(id);
        } else if i > 0 && loss[i - 1] {
            learned.push(Vec::new());
        }
    }
    learned.retain(|turn| !turn.is_empty());
    let expected: Vec<Vec<u32>> = ["wonderful<|endoftext|>", " terrible 🎉<|endoftext|>"]
        .iter()
        .map(|turn| tokenizer.encode(turn).expect("encoded"))
        .collect();
    assert_eq!(learned, expected);
    // What precedes the last turn is exactly what a sampler is given.
    let prompt = tokenizer.encode_prompt(&messages[..4]).expect("prompt");
    let response = tokenizer
        .encode_response(&messages[..4], " terrible 🎉")
        .expect("response");
    assert_eq!([prompt, response].concat(), ids);
}

#[test]
fn no_token_spans_the_end_of_a_prompt() {
    // The generation prompt ends in letters that would merge with the response.
    let template = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }} wonder\
         {% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}";
    let config = serde_json::json!({"eos_token": "<|endoftext|>", "pad_token": "<|pad|>", "chat_template": template});
    let tokenizer = with_config(&config.to_string()).expect("loaded");
    let messages = [
        message("user", "the weather"),
        message("assistant", "ful yesterday"),
    ];
    let prompt = tokenizer.encode_prompt(&messages[..1]).expect("prompt");
    let whole = tokenizer
        .encode("the weather wonderful yesterday<|endoftext|>")
        .expect("whole");
    let dialogue = tokenizer.encode_dialogue(&messages).expect("dialogue");
    assert_ne!(
        whole[..prompt.len()],
        prompt,
        "the test needs a token that spans the boundary"
    );
    assert_eq!(dialogue.ids[..prompt.len()], prompt);
    assert_eq!(
        dialogue.loss.iter().position(|&learned| learned),
        Some(prompt.len())
    );
    assert_eq!(
        tokenizer.decode(&dialogue.ids).expect("text"),
        "the weather wonderful yesterday"
    );
}

#[test]
fn a_template_whose_past_depends_on_its_future_is_refused() {
    let template =
        "{% for m in messages %}{{ loop.length }}{{ m.content }}{{ eos_token }}{% endfor %}";
    let config = serde_json::json!({"eos_token": "<|endoftext|>", "pad_token": "<|pad|>", "chat_template": template});
    let tokenizer = with_config(&config.to_string()).expect("loaded");
    let messages = [message("user", "a"), message("assistant", "b")];
    let error = tokenizer.encode_dialogue(&messages).expect_err("unstable");
    let text = error.to_string();
    assert!(text.contains("not prefix-stable at message 1"), "{text}");
    assert!(
        text.contains("`1a<|endoftext|>` became `2a<|endoftext|>2b"),
        "{text}"
    );
}

#[test]
fn a_turn_without_eos_is_refused() {
    let template = "{% for m in messages %}{{ m.content }}\n{% endfor %}";
    let config = serde_json::json!({"eos_token": "<|endoftext|>", "pad_token": "<|pad|>", "chat_template": template});
    let tokenizer = with_config(&config.to_string()).expect("loaded");
    let messages = [message("user", "a"), message("assistant", "b")];
    let error = tokenizer
        .encode_dialogue(&messages)
        .expect_err("no end")
        .to_string();
    assert!(
        error.contains("message 1 without the EOS token `<|endoftext|>`"),
        "{error}"
    );
}

#[test]
fn without_a_template_contents_are_joined() {
    let tokenizer = with_config("{}").expect("eos is found by its name");
    let messages = [
        message("user", "the weather"),
        message("assistant", " wonderful"),
    ];
    assert_eq!(
        tokenizer.render(&messages[..1], true).expect("prompt"),
        "the weather"
    );
    let dialogue = tokenizer.encode_dialogue(&messages).expect("dialogue");
    assert_eq!(dialogue.ids.last(), Some(&tokenizer.eos_id()));
    assert_eq!(dialogue.loss.last(), Some(&true));
}

#[test]
fn the_configuration_may_be_written_in_several_ways() {
    let config = r#"{"eos_token": {"content": "<|endoftext|>"}, "bos_token": "<|system|>",
        "chat_template": [{"name": "tool_use", "template": "no"},
                          {"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}"}]}"#;
    let tokenizer = with_config(config).expect("loaded");
    assert_eq!(tokenizer.bos_id(), Some(4));
    assert_eq!(tokenizer.pad_id(), 1, "a pad token is found by its name");
    assert_eq!(
        tokenizer
            .render(&[message("user", "x")], false)
            .expect("text"),
        "<|system|>x"
    );
}

#[test]
fn bad_folders_are_refused_with_a_remedy() {
    let error = Tokenizer::load(Path::new("/nowhere"))
        .expect_err("missing")
        .to_string();
    assert!(
        error.contains("/nowhere/tokenizer.json: no such file"),
        "{error}"
    );
    let error = with_config(r#"{"eos_token": "</s>"}"#)
        .expect_err("unknown")
        .to_string();
    assert!(
        error.contains("`eos_token` is `</s>`, which tokenizer.json does not contain"),
        "{error}"
    );
    let error = with_config(r#"{"eos_token": 3}"#)
        .expect_err("number")
        .to_string();
    assert!(
        error.contains("`eos_token` is neither a string nor"),
        "{error}"
    );
    let dir = tempfile::tempdir().expect("folder");
    fs::write(dir.path().join(JSON_FILE), "{").expect("written");
    let error = Tokenizer::load(dir.path()).expect_err("cut").to_string();
    assert!(
        error.contains(JSON_FILE) && error.contains("\n  hint: "),
        "{error}"
    );
}

#[test]
fn a_generation_config_adds_tokens_that_end_a_reply() {
    let dir = tempfile::tempdir().expect("folder");
    fs::write(dir.path().join(JSON_FILE), &trained().json).expect("written");
    let load = |eos: &str| {
        let config = format!("{{\"eos_token_id\": {eos}}}");
        fs::write(dir.path().join("generation_config.json"), config).expect("written");
        Tokenizer::load(dir.path()).map(|tokenizer| tokenizer.stop_ids().to_vec())
    };
    assert_eq!(trained().stop_ids(), [0]);
    for (eos, expected) in [
        ("[7, 0, 9]", vec![7, 0, 9]),
        ("5", vec![5]),
        ("null", vec![0]),
    ] {
        assert_eq!(load(eos).expect("read"), expected, "{eos}");
    }
    // Where there is no such file, the model's own configuration counts, without what the vocabulary lacks.
    let config = dir.path().join("config.json");
    fs::write(&config, r#"{"eos_token_id": [6, 8], "pad_token_id": 7}"#).expect("written");
    assert_eq!(load("5").expect("read"), [5]);
    fs::remove_file(dir.path().join("generation_config.json")).expect("removed");
    let tokenizer = Tokenizer::load(dir.path()).expect("loaded");
    assert_eq!((tokenizer.stop_ids(), tokenizer.pad_id()), (&[6, 8][..], 1));
    fs::write(&config, r#"{"eos_token_id": 50256}"#).expect("written");
    let tokenizer = Tokenizer::load(dir.path()).expect("loaded");
    assert_eq!(tokenizer.stop_ids(), [0]);
    fs::write(&config, r#"{"eos_token_id": -1}"#).expect("written");
    let error = Tokenizer::load(dir.path()).expect_err("-1").to_string();
    assert!(
        error.contains("/config.json: `eos_token_id` must be"),
        "{error}"
    );
    for eos in ["\"<|endoftext|>\"", "-1", "[1, 2.5]", "4294967296"] {
        let error = load(eos).expect_err(eos).to_string();
        assert!(
            error.contains("generation_config.json: `eos_token_id` must be"),
            "{error}"
        );
    }
}
