//! Folders that are damaged: whatever `config.json`, an index or weights say, the reader answers with a
//! model or an error. It does not panic, and asks for no memory that the files do not fill.

use std::fs;
use std::path::Path;

use datasets::Tokenizer;
use model::{Head, Model, write_folder};
use recipe::families::Sizes;
use recipe::lora::LoraPlan;
use recipe::shape::Family;
use runtime::seeds::uniform;
use serde_json::{Value, json};
use tch::{Device, Kind};

fn model(family: Family) -> Model {
    let shape = family.shape(&Sizes {
        vocab_size: 300,
        max_positions: 16,
        layers: 2,
        width: 8,
        heads: 2,
    });
    Model::init(&shape, Head::Token, 3, Device::Cpu, Kind::Float)
}

fn load(dir: &Path) -> Result<Model, String> {
    Model::load(dir, Device::Cpu, Kind::Float).map_err(|error| error.to_string())
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("read")).expect("JSON")
}

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

    /// Of `rounds` damages to a file's JSON how many are refused. The file is whole again afterwards.
    fn refusals(&mut self, path: &Path, rounds: usize, is_refused: impl Fn() -> bool) -> usize {
        let good = fs::read(path).expect("read");
        // Damage to numbers is no damage to a file: a header ends at its last bracket.
        let header = good
            .iter()
            .rposition(|byte| *byte == b'}')
            .map_or(good.len(), |at| at + 1);
        let mut num_refused = 0;
        for _ in 0..rounds {
            let bytes = [self.damaged(&good[..header]), good[header..].to_vec()].concat();
            fs::write(path, bytes).expect("write");
            num_refused += usize::from(is_refused());
        }
        fs::write(path, good).expect("write");
        num_refused
    }

    /// One to three bytes or stretches changed; every fifth time, the end is missing.
    fn damaged(&mut self, good: &[u8]) -> Vec<u8> {
        const WORDS: [&[u8]; 10] = [
            b"0",
            b"-1",
            b"1e999",
            b"999999999999999999",
            b"null",
            b"[]",
            b"{",
            b"\"",
            b"true",
            b"\xff",
        ];
        let mut bytes = good.to_vec();
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len());
            let end = (at + 1 + self.below(8)).min(bytes.len());
            match self.below(4) {
                0 => bytes[at] = self.below(256) as u8,
                1 => drop(bytes.drain(at..end)),
                2 => {
                    let copy = bytes[at..end].to_vec();
                    bytes.splice(at..at, copy);
                }
                _ => {
                    let word = WORDS[self.below(WORDS.len())];
                    bytes.splice(at..end, word.iter().copied());
                }
            }
            if bytes.is_empty() {
                return bytes;
            }
        }
        if self.below(5) == 0 {
            bytes.truncate(self.below(bytes.len()));
        }
        bytes
    }
}

/// Every key that holds a number, as a path of JSON pointers.
fn numbers(tree: &Value, path: &str, found: &mut Vec<String>) {
    match tree {
        Value::Number(_) => found.push(path.to_owned()),
        Value::Object(map) => {
            for (key, value) in map {
                numbers(value, &format!("{path}/{key}"), found);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                numbers(item, &format!("{path}/{index}"), found);
            }
        }
        _ => {}
    }
}

#[test]
fn absurd_numbers_in_a_config_are_refused_before_memory_is_asked_for() {
    const SIZES: [&str; 11] = [
        "vocab_size",
        "num_hidden_layers",
        "n_layer",
        "num_layers",
        "hidden_size",
        "n_embd",
        "num_attention_heads",
        "n_head",
        "num_heads",
        "num_key_value_heads",
        "intermediate_size",
    ];
    let absurd = [
        json!(0),
        json!(-1),
        json!(1_000_000_000_000_000_000_u64),
        json!(u64::MAX),
        json!(1e300),
        json!(2_147_483_647),
        json!("8"),
        json!([8]),
        json!({}),
    ];
    let mut num_refused = 0;
    for family in Family::ALL {
        let dir = tempfile::tempdir().expect("folder");
        model(family).save(dir.path()).expect("save");
        load(dir.path()).expect("it is whole");
        let path = dir.path().join("config.json");
        let good = read(&path);
        let mut keys = Vec::new();
        numbers(&good, "", &mut keys);
        assert!(keys.len() >= 5, "{family:?}: {keys:?}");
        for key in keys {
            for value in &absurd {
                let mut config = good.clone();
                *config.pointer_mut(&key).expect("the key") = value.clone();
                fs::write(&path, config.to_string()).expect("write");
                let loaded = load(dir.path());
                if SIZES.contains(&&key[1..]) {
                    let error = loaded.err().unwrap_or_default();
                    assert!(
                        error.contains("hint"),
                        "{family:?} {key} = {value}: {error:?}"
                    );
                    num_refused += 1;
                }
            }
        }
    }
    assert!(num_refused > 500, "{num_refused} sizes were refused");
}

#[test]
fn a_pattern_of_layers_without_end_is_refused() {
    let dir = tempfile::tempdir().expect("folder");
    model(Family::GptNeo).save(dir.path()).expect("save");
    let path = dir.path().join("config.json");
    let mut config = read(&path);
    for kinds in [json!([]), json!(["global", "local"])] {
        for times in [1 << 40, 1 << 63, u64::MAX] {
            config["attention_types"] = json!([[kinds, times]]);
            fs::write(&path, config.to_string()).expect("write");
            let error = load(dir.path()).expect_err("refused");
            assert!(error.contains("attention_types"), "{error}");
        }
    }
}

#[test]
fn an_unknown_family_is_refused_with_the_known_ones() {
    let dir = tempfile::tempdir().expect("folder");
    model(Family::Llama).save(dir.path()).expect("save");
    let path = dir.path().join("config.json");
    for model_type in [
        json!("mamba"),
        json!(""),
        json!(7),
        json!(["llama"]),
        Value::Null,
    ] {
        let mut config = read(&path);
        config["model_type"] = model_type;
        fs::write(&path, config.to_string()).expect("write");
        let error = load(dir.path()).expect_err("refused");
        for family in Family::ALL.map(Family::model_type) {
            assert!(error.contains(family), "{family} is not in {error}");
        }
    }
}

#[test]
fn no_damage_to_a_config_brings_the_reader_down() {
    let mut dice = Dice { seed: 31, drawn: 0 };
    for family in Family::ALL {
        let dir = tempfile::tempdir().expect("folder");
        model(family).save(dir.path()).expect("save");
        let path = dir.path().join("config.json");
        let good = fs::read(&path).expect("read");
        let mut num_refused = 0;
        for _ in 0..200 {
            fs::write(&path, dice.damaged(&good)).expect("write");
            num_refused += usize::from(load(dir.path()).is_err());
        }
        assert!(num_refused > 100, "{family:?}: {num_refused} refused");
    }
}

#[test]
fn no_damage_to_an_index_or_to_a_header_brings_the_reader_down() {
    let root = tempfile::tempdir().expect("folder");
    let texts = ["hello there, how are you?", "fine, thank you"].map(str::to_owned);
    let tokenizer = Tokenizer::train(texts.into_iter(), 280).expect("tokenizer");
    write_folder(root.path(), &model(Family::Llama), &tokenizer, 3000).expect("save");
    load(root.path()).expect("it is whole");
    let mut dice = Dice { seed: 37, drawn: 0 };
    let index = "model.safetensors.index.json";
    let shards = read(&root.path().join(index))["weight_map"].clone();
    let shard = shards["model.norm.weight"].as_str().expect("a shard");
    for name in [index, shard] {
        let path = root.path().join(name);
        let num_refused = dice.refusals(&path, 700, || load(root.path()).is_err());
        assert!(num_refused > 400, "{name}: {num_refused} refused");
    }
    load(root.path()).expect("it is whole again");
}

#[test]
fn offsets_and_shapes_beyond_the_machine_are_refused() {
    let dir = tempfile::tempdir().expect("folder");
    model(Family::Gpt2).save(dir.path()).expect("save");
    let path = dir.path().join("model.safetensors");
    for (shape, offsets) in [
        ("[1]", "[0,18446744073709551615]"),
        ("[1]", "[18446744073709551612,0]"),
        ("[1]", "[18446744073709551612,18446744073709551615]"),
        ("[1]", "[-4,0]"),
        ("[1]", "[4,8]"),
        ("[4294967296,4294967296,4294967296]", "[0,4]"),
        ("[18446744073709551615]", "[0,4]"),
        ("[9223372036854775807,2]", "[0,4]"),
        ("[-1]", "[0,4]"),
        ("[0,18446744073709551615]", "[0,0]"),
    ] {
        let header =
            format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#);
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&[0; 4]);
        fs::write(&path, bytes).expect("write");
        let error = load(dir.path()).expect_err("refused");
        let told = error.contains("model.safetensors") && error.contains("hint");
        assert!(told, "{shape} {offsets}: {error}");
    }
}

#[test]
fn no_damage_to_an_adapter_brings_the_reader_down() {
    let base = model(Family::Llama);
    let plan = LoraPlan {
        r: 2,
        alpha: 4.0,
        dropout: 0.0,
        rslora: false,
        target_modules: vec!["mlp.down_proj".to_owned(), "self_attn.q_proj".to_owned()],
    };
    let dir = tempfile::tempdir().expect("folder");
    let adapted = model(Family::Llama).with_new_adapter(&plan, "base", 1);
    adapted.save_adapter(dir.path()).expect("saved");
    base.with_adapter(dir.path()).expect("it is whole");
    let mut dice = Dice { seed: 41, drawn: 0 };
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        let path = dir.path().join(name);
        let num_refused = dice.refusals(&path, 500, || base.with_adapter(dir.path()).is_err());
        assert!(num_refused > 150, "{name}: {num_refused} refused");
    }
    // Ranks beyond any matrix ask for no memory.
    let path = dir.path().join("adapter_config.json");
    let mut config = read(&path);
    for rank in [3, 9, 1 << 40, u64::MAX] {
        config["r"] = rank.into();
        fs::write(&path, config.to_string()).expect("write");
        base.with_adapter(dir.path()).expect_err("refused");
    }
}
