//! Special tokens and templates, out of all the files that a folder may say them in.

use std::fs;

use super::tests::{message, trained, with_config};
use super::*;

/// A padding token that is EOS is not used: one takes its place that no text has.
#[test]
fn a_padding_token_that_is_eos_is_not_used() {
    let tokenizer =
        with_config(r#"{"eos_token": "<|pad|>", "pad_token": "<|pad|>"}"#).expect("loaded");
    assert_eq!(tokenizer.eos_id(), 1);
    let nul = tokenizer.encode("\0").expect("encoded");
    assert_eq!(nul, [tokenizer.pad_id()]);
    // As a name it would be padding to transformers, wherever its letter stands in a text.
    assert_eq!(tokenizer.config.get("pad_token"), None);
    let dir = tempfile::tempdir().expect("folder");
    tokenizer.save(dir.path()).expect("saved");
    let again = Tokenizer::load(dir.path()).expect("loaded");
    assert_eq!(again.hash(), tokenizer.hash());
}

#[test]
fn a_special_token_that_is_kept_for_later_pads_before_any_other() {
    let reserved = "<|reserved_special_token_0|>";
    let json = trained().json.replace("<|pad|>", reserved);
    let config = Map::from_iter([("eos_token".to_owned(), "<|endoftext|>".into())]);
    let path = Path::new(CONFIG_FILE);
    let tokenizer = Tokenizer::of(path, json, config, &GenerationIds::default());
    let tokenizer = tokenizer.expect("a tokenizer");
    assert_eq!(tokenizer.pad_id(), 1);
    assert_eq!(tokenizer.config["pad_token"], reserved);
}

/// Words alone, no special token, no byte: there is nothing to pad with.
#[test]
fn a_vocabulary_without_a_token_to_pad_with_is_refused() {
    let json = r#"{"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": null, "truncation": null, "padding": null,
        "model": {"type": "WordLevel", "vocab": {"a": 0, "end": 1}, "unk_token": "a"}}"#;
    let config = Map::from_iter([("eos_token".to_owned(), "end".into())]);
    let path = Path::new(CONFIG_FILE);
    let refused = Tokenizer::of(path, json.to_owned(), config, &GenerationIds::default());
    let error = refused.expect_err("nothing pads").to_string();
    assert!(error.contains("`pad_token` is missing"), "{error}");
    assert!(error.contains("hint: add \"pad_token\""), "{error}");
}

#[test]
fn special_tokens_come_from_the_first_file_that_names_them() {
    let dir = tempfile::tempdir().expect("folder");
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("written");
    write(JSON_FILE, &trained().json);
    write(
        "generation_config.json",
        r#"{"eos_token_id": [4, 0], "pad_token_id": 3, "bos_token_id": 2}"#,
    );
    let ids = || {
        let tokenizer = Tokenizer::load(dir.path()).expect("loaded");
        (
            tokenizer.stop_ids().to_vec(),
            tokenizer.pad_id(),
            tokenizer.bos_id(),
        )
    };
    assert_eq!(ids(), (vec![4, 0], 3, Some(2)));
    write(
        "special_tokens_map.json",
        r#"{"eos_token": {"content": "<|user|>", "lstrip": false}, "bos_token": "<|pad|>"}"#,
    );
    assert_eq!(ids(), (vec![2, 4, 0], 3, Some(1)));
    write(
        CONFIG_FILE,
        r#"{"eos_token": null, "bos_token": "<|system|>", "pad_token": {"content": "<|assistant|>"}}"#,
    );
    assert_eq!(ids(), (vec![2, 4, 0], 3, Some(4)));
    write(
        CONFIG_FILE,
        r#"{"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}"#,
    );
    assert_eq!(
        ids(),
        (vec![0, 4], 3, Some(1)),
        "a padding token other than EOS is looked for further"
    );
    write(
        "generation_config.json",
        r#"{"eos_token_id": 0, "pad_token_id": -1, "bos_token_id": 9999}"#,
    );
    assert_eq!(
        ids(),
        (vec![0], 1, Some(1)),
        "-1 is no token, in old folders"
    );
    write("generation_config.json", r#"{"eos_token_id": [0, 9999]}"#);
    let error = Tokenizer::load(dir.path())
        .expect_err("no such token")
        .to_string();
    assert!(
        error.contains("generation_config.json: `eos_token_id` names token 9999"),
        "{error}"
    );
}

#[test]
fn templates_may_name_the_folders_own_special_tokens() {
    let config = r#"{"eos_token": "<|endoftext|>", "extra_special_tokens": {"image_token": {"content": "<|user|>"}},
        "add_bos_token": true, "chat_template": "{{ image_token }}{{ eos_token }}{{ add_bos_token }}"}"#;
    let tokenizer = with_config(config).expect("loaded");
    assert_eq!(
        tokenizer.render(&[], false).expect("text"),
        "<|user|><|endoftext|>"
    );
}

/// No template adds what the tokenizer adds by itself, and nothing is added behind a template.
#[test]
fn bos_stands_once() {
    let mut json: Value = serde_json::from_str(&trained().json).expect("JSON");
    json["post_processor"] = serde_json::json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|system|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|system|>": {"id": "<|system|>", "ids": [4], "tokens": ["<|system|>"]}},
    });
    let config = serde_json::json!({
        "eos_token": "<|endoftext|>", "bos_token": "<|system|>",
        "chat_template": "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
    });
    let config = config.as_object().cloned().unwrap_or_default();
    let path = Path::new(CONFIG_FILE);
    let tokenizer = Tokenizer::of(path, json.to_string(), config, &GenerationIds::default());
    let tokenizer = tokenizer.expect("a tokenizer");
    let count = |ids: &[u32]| {
        ids.iter()
            .filter(|id| Some(**id) == tokenizer.bos_id())
            .count()
    };
    let messages = [
        message("user", "the weather"),
        message("assistant", "wonderful"),
    ];
    assert_eq!(
        count(&tokenizer.encode_prompt(&messages[..1]).expect("prompt")),
        1
    );
    assert_eq!(
        count(&tokenizer.encode_dialogue(&messages).expect("dialogue").ids),
        1
    );
    assert_eq!(
        count(&tokenizer.encode_with_special("the weather").expect("text")),
        1
    );
    assert_eq!(count(&tokenizer.encode("the weather").expect("text")), 0);
}

#[test]
fn templates_lie_in_several_files() {
    let dir = tempfile::tempdir().expect("folder");
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("written");
    write(JSON_FILE, &trained().json);
    let rendered = |dir: &Path| {
        let tokenizer = Tokenizer::load(dir).map_err(|error| error.to_string())?;
        let text = tokenizer.render(&[message("user", "x")], false);
        text.map(|text| (text, tokenizer))
            .map_err(|error| error.to_string())
    };
    let refused = |config: &str| {
        write(CONFIG_FILE, config);
        rendered(dir.path()).err().unwrap_or_default()
    };
    for config in [
        r#"{"chat_template": 3}"#,
        r#"{"chat_template": ["x"]}"#,
        r#"{"chat_template": [{"name": "default"}]}"#,
    ] {
        assert!(
            refused(config).contains("`chat_template` is neither"),
            "{config}"
        );
    }
    let none = r#"{"chat_template": [{"name": "rag", "template": "r"}, {"name": "tool_use", "template": "t"}]}"#;
    let error = refused(none);
    assert!(
        error.contains("called rag, tool_use, and none called default"),
        "{error}"
    );
    // Files of their own complete the list, and win over it.
    write("chat_template.jinja", "file {{ messages[0].content }}");
    assert_eq!(rendered(dir.path()).expect("rendered").0, "file x");
    fs::create_dir(dir.path().join("additional_chat_templates")).expect("folder");
    write("additional_chat_templates/rag.jinja", "better");
    write("additional_chat_templates/README.md", "no template");
    let (text, tokenizer) = rendered(dir.path()).expect("rendered");
    assert_eq!(text, "file x");
    // All of them leave with the tokenizer.
    let copy = tempfile::tempdir().expect("folder");
    tokenizer.save(copy.path()).expect("saved");
    let (text, tokenizer) = rendered(copy.path()).expect("rendered");
    assert_eq!(text, "file x");
    let named = serde_json::json!([
        {"name": "default", "template": "file {{ messages[0].content }}"},
        {"name": "rag", "template": "better"},
        {"name": "tool_use", "template": "t"},
    ]);
    assert_eq!(tokenizer.config["chat_template"], named);
}

/// Our vocabulary with some tokens renamed, of which only those `kept` are special.
fn renamed(names: &[(&str, &str)], kept: &[&str]) -> Tokenizer {
    let dir = tempfile::tempdir().expect("folder");
    let mut json = names.iter().fold(trained().json, |json, (from, to)| {
        json.replace(&format!("\"{from}\""), &format!("\"{to}\""))
    });
    let mut parsed: Value = serde_json::from_str(&json).expect("JSON");
    let added = parsed["added_tokens"].as_array_mut().expect("a list");
    added.retain(|token| kept.iter().any(|name| token["content"] == *name));
    json = parsed.to_string();
    fs::write(dir.path().join(JSON_FILE), json).expect("written");
    Tokenizer::load(dir.path()).expect("loaded")
}

#[test]
fn padding_is_a_token_that_no_text_holds_or_is_not_stated() {
    let eos = "<|endoftext|>";
    // As Pythia's and Llama 3's vocabularies are.
    let reserved = "<|reserved_special_token_0|>";
    for (names, kept, expected) in [
        (
            vec![("<|pad|>", "<x>"), ("<|user|>", "<|padding|>")],
            vec![eos],
            Some(2),
        ),
        (
            vec![("<|pad|>", "<s>"), ("<|system|>", reserved)],
            vec![eos, "<s>", reserved],
            Some(4),
        ),
        // A special token of other use does not pad.
        (vec![("<|pad|>", "<x>")], vec![eos, "<|assistant|>"], None),
        // GPT-2's: every other token is a word.
        (vec![("<|pad|>", "<x>")], vec![eos], None),
    ] {
        let tokenizer = renamed(&names, &kept);
        assert_eq!(tokenizer.stated_pad_id(), expected, "{names:?}");
        assert_ne!(tokenizer.pad_id(), tokenizer.eos_id());
        assert_eq!(
            tokenizer.config.contains_key("pad_token"),
            expected.is_some()
        );
        let nul = tokenizer.encode("\0").expect("encoded")[0];
        assert_eq!(tokenizer.pad_id(), expected.unwrap_or(nul), "{names:?}");
    }
    let config =
        serde_json::json!({ "eos_token": eos, "pad_token": eos, "chat_template": "<|user|>" });
    let tokenizer = with_config(&config.to_string()).expect("loaded");
    assert_eq!(tokenizer.stated_pad_id(), Some(1));
    // Where texts become the token for the unknown, it is a word (GPT-1).
    let dir = tempfile::tempdir().expect("folder");
    let json = r#"{"version": "1.0", "pre_tokenizer": {"type": "Whitespace"},
        "added_tokens": [{"id": 0, "content": "<unk>", "special": true, "single_word": false,
                          "lstrip": false, "rstrip": false, "normalized": false}],
        "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "a": 1}, "unk_token": "<unk>"}}"#;
    fs::write(dir.path().join(JSON_FILE), json).expect("written");
    let tokenizer = Tokenizer::load(dir.path()).expect("loaded");
    assert_eq!(tokenizer.stated_pad_id(), None);
}

/// The published GPT-1 has no token but `<unk>`.
#[test]
fn without_eos_texts_are_encoded_and_nothing_is_ended() {
    let tokenizer = renamed(&[("<|endoftext|>", "<unk>")], &["<unk>"]);
    assert_eq!(tokenizer.stop_ids(), [0_u32; 0]);
    let ids = tokenizer.encode("the weather").expect("encoded");
    assert_eq!(tokenizer.decode(&ids).expect("decoded"), "the weather");
    let messages = [message("user", "a"), message("assistant", "b")];
    let errors = [
        tokenizer.require_eos().expect_err("no EOS"),
        tokenizer.encode_dialogue(&messages).expect_err("no EOS"),
    ];
    for error in errors {
        let text = error.to_string();
        assert!(
            text.contains("no EOS token") && text.contains("hint: add"),
            "{text}"
        );
    }
}
