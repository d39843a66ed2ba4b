//! Tokenizer folders that are damaged: whatever their files say, they are opened or refused, and texts
//! are encoded or refused. Nothing panics, and nothing runs on without end.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use datasets::template::ChatTemplate;
use datasets::{Message, Tokenizer};
use runtime::seeds::uniform;
use serde_json::json;

/// The same draws in every run.
struct Dice {
    seed: u64,
    drawn: u64,
}

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.drawn += 1;
        (uniform(self.seed, "damage", 0, self.drawn) * bound as f64) as usize
    }

    /// One to three stretches removed, doubled, or replaced by one of `words` or by a letter.
    fn damaged(&mut self, good: &str, words: &[&str]) -> String {
        let mut text: Vec<char> = good.chars().collect();
        for _ in 0..=self.below(3) {
            let at = self.below(text.len());
            let end = (at + 1 + self.below(6)).min(text.len());
            match self.below(4) {
                0 => drop(text.drain(at..end)),
                1 => {
                    let copy = text[at..end].to_vec();
                    text.splice(at..at, copy);
                }
                2 => text[at] = (b' ' + self.below(95) as u8).into(),
                _ => {
                    let word = words[self.below(words.len())];
                    text.splice(at..end, word.chars());
                }
            }
            if text.is_empty() {
                break;
            }
        }
        text.into_iter().collect()
    }
}

fn messages() -> Vec<Message> {
    vec![
        Message::new("system", "Be kind."),
        Message::new("user", "the weather <|user|> naïve 🎉"),
        Message::new("assistant", " was wonderful"),
    ]
}

/// Opens a folder and uses what it holds; whether it could be opened.
fn use_whatever_is_there(dir: &Path) -> bool {
    let Ok(tokenizer) = Tokenizer::load(dir) else {
        return false;
    };
    assert_ne!(tokenizer.pad_id(), tokenizer.eos_id());
    for text in ["the weather\n\n", "", "naïve 日本 🎉 <|endoftext|><|user|>"] {
        let ids = tokenizer.encode_with_special(text);
        let _ = ids.and_then(|ids| tokenizer.decode(&ids));
    }
    let _ = tokenizer.encode_dialogue(&messages());
    true
}

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("folder");
    let texts = (0..60).map(|i| format!("the weather was wonderful at {i} degrees"));
    let tokenizer = Tokenizer::train(texts, 270).expect("trained");
    tokenizer.save(dir.path()).expect("saved");
    let more = json!({ "unk_token": { "content": "<|system|>" }, "bos_token": "<|user|>" });
    fs::write(dir.path().join("special_tokens_map.json"), more.to_string()).expect("written");
    let ids = json!({ "eos_token_id": [0, 3], "pad_token_id": 1, "bos_token_id": 2 });
    fs::write(dir.path().join("generation_config.json"), ids.to_string()).expect("written");
    dir
}

#[test]
fn no_damage_to_a_tokenizers_files_brings_the_reader_down() {
    const WORDS: [&str; 14] = [
        "0",
        "-1",
        "999999999999",
        "1e999",
        "null",
        "[]",
        "{}",
        "\"",
        "true",
        "\\ud800",
        "BPE",
        "Unigram",
        "WordLevel",
        "ByteLevel",
    ];
    let dir = folder();
    assert!(use_whatever_is_there(dir.path()));
    let mut dice = Dice { seed: 41, drawn: 0 };
    for (file, rounds) in [
        ("tokenizer.json", 900),
        ("tokenizer_config.json", 500),
        ("special_tokens_map.json", 300),
        ("generation_config.json", 300),
    ] {
        let path = dir.path().join(file);
        let good = fs::read_to_string(&path).expect("read");
        let mut refused = 0;
        for _ in 0..rounds {
            fs::write(&path, dice.damaged(&good, &WORDS)).expect("written");
            refused += usize::from(!use_whatever_is_there(dir.path()));
        }
        assert!(refused > rounds / 4, "{file}: {refused} refused");
        fs::write(&path, good).expect("written");
    }
}

/// Where the `tokenizers` crate itself would panic.
#[test]
fn a_damaged_decoder_or_table_of_normalisations_is_refused() {
    let dir = folder();
    let path = dir.path().join("tokenizer.json");
    let good = fs::read_to_string(&path).expect("read");
    let refused = |tree: &str| {
        fs::write(&path, tree).expect("written");
        let error = Tokenizer::load(dir.path())
            .expect_err("refused")
            .to_string();
        let told = error.contains("tokenizer.json") && error.contains("hint:");
        assert!(told, "{error}");
    };
    let decoder = "\"decoder\":{\"type\":\"";
    assert!(good.contains(decoder), "{good:.200}");
    refused(&good.replace(decoder, &format!("{decoder}\\ud800")));
    for charsmap in [json!("!"), json!(""), json!("AAAA"), json!(7)] {
        let table = json!({ "type": "Precompiled", "precompiled_charsmap": charsmap });
        let within = json!({ "type": "Sequence", "normalizers": [{ "type": "NFC" }, table] });
        for normalizer in [&table, &within] {
            let mut tree: serde_json::Value = serde_json::from_str(&good).expect("JSON");
            tree["normalizer"] = normalizer.clone();
            refused(&tree.to_string());
        }
    }
}

#[test]
fn no_damage_to_a_template_brings_the_renderer_down() {
    const WORDS: [&str; 24] = [
        "{%",
        "%}",
        "{{",
        "}}",
        "{#",
        "#}",
        "{% generation %}",
        "{% endgeneration %}",
        "{% endfor %}",
        "{% raw %}",
        "{% for x in range(9) %}",
        "messages",
        "[-9]",
        "[::0]",
        "[1:2:3]",
        "|tojson",
        "*",
        "//0",
        "99999999999999999999",
        "|join",
        "loop.previtem",
        "none",
        "namespace(a=1)",
        "-",
    ];
    let templates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/templates");
    let mut dice = Dice { seed: 43, drawn: 0 };
    let mut num_templates = 0;
    for entry in fs::read_dir(templates).expect("the templates") {
        let path = entry.expect("an entry").path();
        let good = fs::read_to_string(&path).expect("a template");
        let (mut refused, rounds) = (0, 120);
        for _ in 0..rounds {
            let source = dice.damaged(&good, &WORDS);
            let specials = BTreeMap::from([("eos_token".to_owned(), "</s>".to_owned())]);
            let rendered = ChatTemplate::new(&source, specials)
                .and_then(|template| template.render(&messages(), true));
            refused += usize::from(rendered.is_err());
        }
        assert!(
            refused > rounds / 10,
            "{}: {refused} refused",
            path.display()
        );
        num_templates += 1;
    }
    assert!(num_templates > 10, "{num_templates} templates");
}

/// What would take all time or memory is stopped. (What is not: `ChatTemplate`'s fuel says it.)
#[test]
fn a_template_that_grows_without_bound_is_stopped() {
    let doubling = "{% set ns = namespace(x='ab') %}{% for i in range(64) %}\
         {% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x | length }}";
    for source in [
        doubling,
        &doubling.replace('~', "+"),
        &doubling.replace("ns.x ~ ns.x", "ns.x | replace('a', 'aaaa')"),
        &doubling.replace("ns.x ~ ns.x", "[ns.x, ns.x] | join"),
        &doubling.replace("ns.x ~ ns.x", "ns.x * 9"),
        "{{ 'abc' * 10000000000 }}",
        "{{ [1] * 10000000000 }}",
        "{{ range(10000000000) | list | length }}",
        "{{ range(10000000000) | sum }}",
        "{{ 'x' | indent(10000000000) }}{{ 'a\nb' | indent(10000000000) }}",
        "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{{ (9 ** 9) ** (9 ** 9) }}",
        "{% set a = [1] * 1000 %}{% set a = [a] * 1000 %}{% set a = [a] * 1000 %}{{ a | tojson }}",
    ] {
        let template = ChatTemplate::new(source, BTreeMap::new()).expect("it is Jinja");
        let rendered = template.render(&messages(), false);
        let text = rendered.map_or_else(|error| error.to_string(), |r| r.text);
        assert!(text.contains("hint:"), "{source}: {text:.60}");
    }
    // Nesting as deep as the file is long. (Not `not not …`, where minijinja's parser has no bound.)
    for (open, close) in [("(", ")"), ("[", "]"), ("{% if 1 %}", "{% endif %}")] {
        let inside = format!("{}1{}", open.repeat(20_000), close.repeat(20_000));
        let source = if open.starts_with('{') {
            inside
        } else {
            format!("{{{{ {inside} }}}}")
        };
        let error = ChatTemplate::new(&source, BTreeMap::new()).err();
        assert!(
            error.is_some(),
            "{open} is parsed 20000 times within itself"
        );
    }
}
