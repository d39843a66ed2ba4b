//! Model folders: bit-exact round trips, and every malformed file refused with its name.

use std::path::Path;

use datasets::tokenizer::Tokenizer;
use model::weights::{self, SHARD_BYTES};
use model::{Checkpoint, Head, Model, write_folder};
use recipe::families::Sizes;
use recipe::shape::{Family, ModelShape};
use runtime::manifest::Manifest;
use tch::{Device, Kind, Tensor};

fn shape(family: Family) -> ModelShape {
    ModelShape {
        kv_heads: if family == Family::Llama { 1 } else { 2 },
        mlp_width: 32,
        ..family.shape(&Sizes {
            vocab_size: 300,
            max_positions: 16,
            layers: 1,
            width: 8,
            heads: 2,
        })
    }
}

fn model(family: Family, head: Head, kind: Kind) -> Model {
    Model::init(&shape(family), head, 3, Device::Cpu, kind)
}

fn error(dir: &Path) -> String {
    match Model::load(dir, Device::Cpu, Kind::Float) {
        Ok(_) => panic!("{} is accepted", dir.display()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn folders_come_back_bit_for_bit() {
    for family in Family::ALL {
        for head in [Head::Token, Head::Scalar] {
            for kind in [Kind::Float, Kind::Double, Kind::BFloat16] {
                let mut original = model(family, head, kind);
                if head == Head::Scalar {
                    original.reward_shift = -0.125_000_000_1;
                }
                let (first, second) = (tempfile::tempdir(), tempfile::tempdir());
                let (first, second) = (first.expect("folder"), second.expect("folder"));
                original.save(first.path()).expect("save");
                let loaded = Model::load(first.path(), Device::Cpu, kind).expect("load");
                assert_eq!((&loaded.shape, loaded.head), (&original.shape, head));
                assert_eq!(
                    loaded.reward_shift.to_bits(),
                    original.reward_shift.to_bits()
                );
                for (name, tensor) in original.params() {
                    assert!(loaded.params()[name].equal(tensor), "{name}");
                }
                loaded.save(second.path()).expect("save");
                for file in ["config.json", "generation_config.json", "model.safetensors"] {
                    let read = |dir: &Path| std::fs::read(dir.join(file)).expect("read");
                    assert_eq!(read(first.path()), read(second.path()), "{file}");
                }
            }
        }
    }
}

#[test]
fn folders_of_other_types_and_layouts_are_read() {
    let dir = tempfile::tempdir().expect("folder");
    let original = model(Family::Gpt2, Head::Token, Kind::Float);
    original.save(dir.path()).expect("save");
    // The oldest GPT-2 folders: no prefix, constants among the weights, half precision; in two files.
    let mut old: Vec<_> = original
        .params()
        .iter()
        .map(|(name, tensor)| (name.replace("transformer.", ""), tensor.to_kind(Kind::Half)))
        .collect();
    old.push((
        "h.0.attn.bias".into(),
        Tensor::ones([1, 1, 4, 4], (Kind::Uint8, Device::Cpu)),
    ));
    old.push((
        "lm_head.weight".into(),
        original.params()["transformer.wte.weight"].to_kind(Kind::Half),
    ));
    let mut map = serde_json::Map::new();
    for (index, part) in old.chunks(6).enumerate() {
        let file = format!("model-{index}.safetensors");
        let tensors = part
            .iter()
            .map(|(name, t)| (name.clone(), t.shallow_clone()))
            .collect();
        weights::write(&dir.path().join(&file), &tensors).expect("write");
        map.extend(
            part.iter()
                .map(|(name, _)| (name.clone(), file.clone().into())),
        );
    }
    std::fs::remove_file(dir.path().join("model.safetensors")).expect("remove");
    let index = serde_json::json!({ "weight_map": map }).to_string();
    std::fs::write(dir.path().join("model.safetensors.index.json"), index).expect("write");
    let loaded = Model::load(dir.path(), Device::Cpu, Kind::Double).expect("load");
    for (name, tensor) in original.params() {
        let expected = tensor.to_kind(Kind::Half).to_kind(Kind::Double);
        assert!(loaded.params()[name].equal(&expected), "{name}");
    }
}

#[test]
fn wrong_tensors_are_named() {
    let dir = tempfile::tempdir().expect("folder");
    let original = model(Family::Llama, Head::Token, Kind::Float);
    original.save(dir.path()).expect("save");
    let file = dir.path().join("model.safetensors");
    let refuse = |change: &dyn Fn(&mut std::collections::BTreeMap<String, Tensor>)| {
        let mut tensors = weights::read(&dir.path().join("good")).expect("read");
        change(&mut tensors);
        weights::write(&file, &tensors).expect("write");
        error(dir.path())
    };
    std::fs::copy(&file, dir.path().join("good")).expect("copy");
    let name = "model.layers.0.mlp.up_proj.weight";
    let zeros = |dims: &[i64], kind| Tensor::zeros(dims, (kind, Device::Cpu));

    let text = refuse(&|t| drop(t.remove(name)));
    assert!(
        text.contains(name) && text.contains("[32, 8]") && text.contains("missing"),
        "{text}"
    );
    let text = refuse(&|t| drop(t.insert("extra.weight".into(), zeros(&[2], Kind::Float))));
    assert!(
        text.contains("extra.weight") && text.contains("does not belong"),
        "{text}"
    );
    let text = refuse(&|t| drop(t.insert(name.into(), zeros(&[8, 32], Kind::Float))));
    assert!(
        text.contains(name) && text.contains("[8, 32], expected [32, 8]"),
        "{text}"
    );
    let text = refuse(&|t| drop(t.insert(name.into(), zeros(&[32, 8], Kind::Int64))));
    assert!(
        text.contains(name) && text.contains("dtype I64,") && text.contains("\n  hint: "),
        "{text}"
    );
}

#[test]
fn malformed_files_are_refused() {
    let dir = tempfile::tempdir().expect("folder");
    assert!(error(dir.path()).contains("config.json"));
    model(Family::Gpt2, Head::Token, Kind::Float)
        .save(dir.path())
        .expect("save");
    let file = dir.path().join("model.safetensors");
    let good = std::fs::read(&file).expect("read");
    let header_len = u64::from_le_bytes(good[..8].try_into().expect("8 bytes")) as usize;
    let with_header = |header: &str| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes
    };
    let overlapping = with_header(
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}    "#,
    );
    let wrong_size = [
        with_header(r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,4]}}"#),
        vec![0; 4],
    ]
    .concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("seven bytes", good[..7].to_vec()),
        ("header cut", good[..8 + header_len / 2].to_vec()),
        ("data cut", good[..good.len() - 1].to_vec()),
        ("data left over", [good.as_slice(), &[0]].concat()),
        (
            "header length",
            [&u64::MAX.to_le_bytes(), &good[8..]].concat(),
        ),
        ("header no JSON", with_header("{\"a\":")),
        ("overlapping offsets", overlapping),
        ("shape against offsets", wrong_size),
    ];
    for (label, bytes) in cases {
        std::fs::write(&file, bytes).expect("write");
        let text = error(dir.path());
        assert!(
            text.contains("model.safetensors") && text.contains("hint"),
            "{label}: {text}"
        );
    }
    std::fs::remove_file(&file).expect("remove");
    assert!(error(dir.path()).contains("model.safetensors does not exist"));
}

#[test]
fn foreign_configurations_are_refused() {
    let dir = tempfile::tempdir().expect("folder");
    model(Family::Gpt2, Head::Scalar, Kind::Float)
        .save(dir.path())
        .expect("save");
    let path = dir.path().join("config.json");
    let good: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("JSON");
    let refuse = |key: &str, value: serde_json::Value| {
        let mut config = good.clone();
        config[key] = value;
        std::fs::write(&path, config.to_string()).expect("write");
        error(dir.path())
    };
    assert!(refuse("architectures", serde_json::json!(["GPT2Model"])).contains("`GPT2Model`"));
    let two = serde_json::json!({ "0": "a", "1": "b" });
    let mut config = good.clone();
    config["id2label"] = two;
    config.as_object_mut().expect("object").remove("num_labels");
    std::fs::write(&path, config.to_string()).expect("write");
    assert!(error(dir.path()).contains("2 labels"));
    let text = refuse("model_type", serde_json::json!("mamba"));
    assert!(
        text.contains("config.json: model_type: \"mamba\" is unknown"),
        "{text}"
    );
    assert_eq!(text.matches("hint: ").count(), 1, "{text}");
}

#[test]
fn checkpoints_are_sealed_and_a_flipped_byte_is_found() {
    let root = tempfile::tempdir().expect("folder");
    let dir = root.path().join("final");
    let texts = ["hello there, how are you?", "fine, thank you"].map(str::to_owned);
    let tokenizer = Tokenizer::train(texts.into_iter(), 280).expect("tokenizer");
    let original = model(Family::Llama, Head::Token, Kind::Float);
    let manifest = Manifest::new("checkpoint", "sft", 12);
    std::fs::create_dir(&dir).expect("folder");
    write_folder(&dir, &original, &tokenizer, SHARD_BYTES).expect("save");
    let sealed = manifest.seal(&dir).expect("seal");
    let loaded = Checkpoint::load(&dir, Device::Cpu, Kind::Float).expect("load");
    assert_eq!(loaded.manifest, Some(sealed));
    assert_eq!(loaded.tokenizer.eos_id(), tokenizer.eos_id());

    let file = dir.join("model.safetensors");
    let mut bytes = std::fs::read(&file).expect("read");
    *bytes.last_mut().expect("bytes") ^= 1;
    std::fs::write(&file, bytes).expect("write");
    let text = error(&dir);
    assert!(
        text.contains("model.safetensors") && text.contains("hint"),
        "{text}"
    );

    let small = ModelShape {
        vocab_size: 100,
        ..shape(Family::Llama)
    };
    let small = Model::init(&small, Head::Token, 1, Device::Cpu, Kind::Float);
    let refused = write_folder(root.path(), &small, &tokenizer, SHARD_BYTES);
    assert!(
        refused
            .expect_err("too few rows")
            .to_string()
            .contains("100 rows")
    );
}

#[test]
fn weights_of_several_files_are_those_of_one() {
    let original = model(Family::Llama, Head::Token, Kind::Float);
    let root = tempfile::tempdir().expect("temporary folder");
    let dir = root.path().join("model");
    std::fs::create_dir(&dir).expect("folder");
    let texts = ["hello there, how are you?", "fine, thank you"].map(str::to_owned);
    let tokenizer = Tokenizer::train(texts.into_iter(), 280).expect("tokenizer");
    // The embedding (300 x 8 x 4 bytes) is larger than a file may be, and stands alone.
    write_folder(&dir, &original, &tokenizer, 3000).expect("save");
    let mut names: Vec<String> = std::fs::read_dir(&dir)
        .expect("folder")
        .map(|entry| {
            entry
                .expect("entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .filter(|name| name.contains("safetensors"))
        .collect();
    names.sort();
    assert_eq!(names.len(), 5, "{names:?}");
    assert_eq!(names[0], "model-00001-of-00004.safetensors");
    assert_eq!(names[4], "model.safetensors.index.json");
    let read = Model::load(&dir, Device::Cpu, Kind::Float).expect("load");
    for (name, tensor) in original.params() {
        assert!(read.params()[name].equal(tensor), "{name}");
    }
    // An index that lies: about a tensor's place, about a tensor, and beyond the folder.
    let index = dir.join(&names[4]);
    let good: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&index).expect("read")).expect("JSON");
    for (tensor, file, told) in [
        ("model.norm.weight", &*names[1], "`model.norm.weight` here"),
        (
            "model.nothing.weight",
            &names[1],
            "`model.nothing.weight` here",
        ),
        (
            "model.norm.weight",
            "model-9.safetensors",
            "model-9.safetensors does not exist",
        ),
        (
            "model.norm.weight",
            "../model.safetensors",
            "not an object of file names",
        ),
    ] {
        let mut lying = good.clone();
        lying["weight_map"][tensor] = file.into();
        std::fs::write(&index, lying.to_string()).expect("write");
        assert!(error(&dir).contains(told), "{}", error(&dir));
    }
    std::fs::write(&index, good.to_string()).expect("write");
    std::fs::remove_file(dir.join(&names[1])).expect("remove");
    let error = Model::load(&dir, Device::Cpu, Kind::Float).expect_err("a file is missing");
    assert!(error.to_string().contains(&names[1]), "{error}");
}
