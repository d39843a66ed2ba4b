//! `tokenizer.model` against sentencepiece itself (`tests/golden/make_gguf.py` made the numbers).

use std::path::{Path, PathBuf};

use datasets::Tokenizer;
use runtime::files::read_json;
use runtime::seeds::uniform;

fn golden(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    folder.join(name)
}

/// A folder with this `tokenizer.model` and `tokenizer_config.json`.
fn load(model: &[u8], config: &str) -> Result<Tokenizer, String> {
    let dir = tempfile::tempdir().expect("folder");
    std::fs::write(dir.path().join("tokenizer.model"), model).expect("write");
    std::fs::write(dir.path().join("tokenizer_config.json"), config).expect("write");
    Tokenizer::load(dir.path()).map_err(|error| error.to_string())
}

fn model() -> Vec<u8> {
    std::fs::read(golden("sentencepiece.model")).expect("golden file")
}

#[test]
fn texts_become_the_ids_of_sentencepiece_and_back() {
    let tokenizer = load(&model(), r#"{"tokenizer_class": "LlamaTokenizer"}"#).expect("convert");
    let cases: Vec<serde_json::Value> = read_json(&golden("sentencepiece.json")).expect("JSON");
    for case in &cases {
        let text = case["text"].as_str().expect("text");
        let expected: Vec<u32> = serde_json::from_value(case["ids"].clone()).expect("ids");
        assert_eq!(tokenizer.encode(text).expect("encode"), expected, "{text}");
        assert_eq!(
            tokenizer.decode(&expected).expect("decode"),
            case["decoded"],
            "{text}"
        );
        let with_first = [&[1], &expected[..]].concat();
        assert_eq!(
            tokenizer.encode_with_special(text).expect("encode"),
            with_first
        );
    }
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(1), 2));
    // A word that the model was told to keep whole.
    assert_eq!(tokenizer.encode("<|user|>").expect("encode"), [3]);
}

#[test]
fn a_converted_folder_needs_no_sentencepiece() {
    let tokenizer = load(&model(), r#"{"add_bos_token": false, "pad_token": null}"#);
    let tokenizer = tokenizer.expect("convert");
    let dir = tempfile::tempdir().expect("folder");
    tokenizer.save(dir.path()).expect("save");
    let again = Tokenizer::load(dir.path()).expect("load");
    assert_eq!(again.hash(), tokenizer.hash());
    let ids = again.encode_with_special("small").expect("encode");
    assert_ne!(ids.first(), Some(&1));
}

#[test]
fn added_tokens_follow_the_pieces() {
    let added = |id: usize| {
        format!(
            r#"{{"added_tokens_decoder": {{"{id}": {{"content": "<turn>", "special": true}}}}}}"#
        )
    };
    let tokenizer = load(&model(), &added(360)).expect("convert");
    assert_eq!(tokenizer.encode("<turn>").expect("encode"), [360]);
    assert_eq!(tokenizer.vocab_size(), 361);
    let error = load(&model(), &added(362)).expect_err("a gap");
    assert!(
        error.contains("`<turn>` has id 362, expected 360"),
        "{error}"
    );
}

#[test]
fn added_tokens_of_old_folders_are_read() {
    let dir = tempfile::tempdir().expect("folder");
    let write =
        |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("write");
    std::fs::write(dir.path().join("tokenizer.model"), model()).expect("write");
    write("added_tokens.json", r#"{"<turn>": 361, "<mark>": 360}"#);
    write(
        "special_tokens_map.json",
        r#"{"additional_special_tokens": ["<turn>"]}"#,
    );
    let tokenizer = Tokenizer::load(dir.path()).expect("convert");
    assert_eq!(
        tokenizer.encode("<turn><mark>").expect("encode"),
        [361, 360]
    );
    assert_eq!([360, 361].map(|id| tokenizer.is_special(id)), [false, true]);
    write(
        "tokenizer_config.json",
        r#"{"added_tokens_decoder": {"360": {"content": "<other>"}}}"#,
    );
    let error = Tokenizer::load(dir.path())
        .expect_err("two tokens")
        .to_string();
    assert!(
        error.contains("`<other>` and `<mark>` both have id 360"),
        "{error}"
    );
}

#[test]
fn other_models_are_refused_with_the_way_out() {
    let unigram = std::fs::read(golden("sentencepiece_unigram.model")).expect("golden file");
    for (bytes, config, told) in [
        (unigram, "{}", "other than BPE"),
        (
            model(),
            r#"{"auto_map": {"AutoTokenizer": ["x.Y", null]}}"#,
            "program of its own",
        ),
        (model(), r#"{"add_eos_token": true}"#, "add_eos_token"),
    ] {
        let error = load(&bytes, config).expect_err(told);
        assert!(
            error.contains(told)
                && error.contains("tokenizer.model")
                && error.contains("tokenizer.json"),
            "{error}"
        );
    }
    let error = load(b"version https://git-lfs.github.com/spec/v1", "{}").expect_err("a pointer");
    assert!(error.contains("no sentencepiece model"), "{error}");
}

#[test]
fn no_damage_brings_the_reader_down() {
    let good = model();
    let mut drawn = 0;
    let mut below = |bound: usize| {
        drawn += 1;
        (uniform(29, "damage", 0, drawn) * bound as f64) as usize
    };
    let mut refused = 0;
    for _ in 0..200 {
        let mut bytes = good.clone();
        let at = below(bytes.len());
        bytes[at] = below(256) as u8;
        bytes.truncate(bytes.len() - below(2) * below(good.len()));
        refused += usize::from(load(&bytes, "{}").is_err());
    }
    assert!(refused > 20, "{refused} refused");
}
