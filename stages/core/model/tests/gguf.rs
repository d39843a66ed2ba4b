//! GGUF: what transformers makes of the same file (`tests/golden/make_gguf.py`), and every damage refused.

use std::path::{Path, PathBuf};

use model::weights::{self, SHARD_BYTES};
use model::{Checkpoint, Input, Model, write_folder};
use recipe::shape::RopeScaling;
use runtime::seeds::uniform;
use tch::{Device, Kind, Tensor, no_grad};

fn golden(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../tests/golden");
    folder.join(name)
}

fn import(path: &Path) -> Result<Checkpoint, String> {
    let checkpoint = Checkpoint::from_gguf(path, Device::Cpu, Kind::Float);
    checkpoint.map_err(|error| error.to_string())
}

fn logits(model: &Model, ids: &Tensor) -> Tensor {
    let ids_bt = ids.narrow(0, 0, 16).unsqueeze(0);
    let input = Input::dense(ids_bt);
    no_grad(|| model.logits(&model.hidden(&input))).squeeze_dim(0)
}

#[test]
fn a_llama_is_what_transformers_makes_of_it() {
    let expected = weights::read(&golden("llama_gguf.safetensors")).expect("golden file");
    let Checkpoint {
        model, tokenizer, ..
    } = import(&golden("llama.gguf")).expect("import");
    for (name, tensor) in &expected {
        if let Some(found) = model.params().get(name) {
            assert!(found.equal(tensor), "{name}");
        }
    }
    let gap = (logits(&model, &expected["ids"]) - &expected["logits"])
        .abs()
        .max();
    assert!(gap.double_value(&[]) < 1e-5, "{gap:?}");

    let text = Vec::<u8>::try_from(&expected["text"]).expect("bytes");
    let text = String::from_utf8(text).expect("text");
    let ids = tokenizer.encode_with_special(&text).expect("encode");
    let expected_ids = Vec::<i64>::try_from(&expected["ids"]).expect("ids");
    assert_eq!(
        ids.iter().map(|id| i64::from(*id)).collect::<Vec<_>>(),
        expected_ids
    );
    // The file pads with EOS; padding with EOS would hide where replies end.
    assert_eq!((tokenizer.eos_id(), tokenizer.bos_id()), (2, Some(1)));
    assert_ne!(tokenizer.pad_id(), tokenizer.eos_id());

    let dir = tempfile::tempdir().expect("folder");
    write_folder(dir.path(), &model, &tokenizer, SHARD_BYTES).expect("save");
    let again = Checkpoint::load(dir.path(), Device::Cpu, Kind::Float).expect("load");
    assert!(logits(&again.model, &expected["ids"]).equal(&logits(&model, &expected["ids"])));
    assert_eq!(again.tokenizer.hash(), tokenizer.hash());
}

/// The golden file with `from` replaced by `to`, once.
fn replaced(from: &[u8], to: &[u8]) -> Vec<u8> {
    let good = std::fs::read(golden("llama.gguf")).expect("read");
    let at = good.windows(from.len()).position(|window| window == from);
    let at = at.expect("the bytes are there");
    [&good[..at], to, &good[at + from.len()..]].concat()
}

/// A file with one more word on its model, and a text that keeps its data aligned.
fn with_word(bytes: &[u8], key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let word =
        |key: &str, kind: u32, value: &[u8]| [&text(key)[..], &kind.to_le_bytes(), value].concat();
    let (word, empty) = (word(key, kind, value), word("fill", 8, &text("")));
    let shifted = bytes.len() - std::fs::read(golden("llama.gguf")).expect("read").len();
    let added = word.len() + empty.len() + shifted;
    let fill = "x".repeat(added.next_multiple_of(32) - added);
    let fill = [text("fill"), 8_u32.to_le_bytes().to_vec(), text(&fill)].concat();
    let keys = u64::from_le_bytes(bytes[16..24].try_into().expect("8 bytes")) + 2;
    [
        &bytes[..16],
        &keys.to_le_bytes(),
        &word,
        &fill,
        &bytes[24..],
    ]
    .concat()
}

#[test]
fn rotary_positions_are_those_of_llama_cpp() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("model.gguf");
    let good = std::fs::read(golden("llama.gguf")).expect("read");
    let (float, count) = (|x: f32| (6, x.to_le_bytes()), |n: u32| (4, n.to_le_bytes()));
    let linear = RopeScaling::Linear { factor: 4.0 };
    // Heads are 16 wide.
    for (key, (kind, value), expected) in [
        ("llama.rope.scaling.factor", float(4.0), Ok(linear)),
        ("llama.rope.scale_linear", float(4.0), Ok(linear)),
        (
            "llama.rope.scaling.factor",
            float(0.0),
            Ok(RopeScaling::None),
        ),
        (
            "llama.rope.scaling.attn_factor",
            float(1.0),
            Ok(RopeScaling::None),
        ),
        (
            "llama.rope.dimension_count",
            count(16),
            Ok(RopeScaling::None),
        ),
        (
            "llama.rope.scaling.attn_factor",
            float(2.0),
            Err("Float(2.0)"),
        ),
        ("llama.rope.dimension_count", count(8), Err("Int(8)")),
        (
            "llama.rope.scaling.yarn_beta_fast",
            float(1.0),
            Err("Float(1.0)"),
        ),
    ] {
        std::fs::write(&path, with_word(&good, key, kind, &value)).expect("write");
        match (import(&path), expected) {
            (Ok(read), Ok(expected)) => {
                let scaling = read.model.shape.rotary().map(|rotary| rotary.scaling);
                assert_eq!(scaling, Some(expected), "{key}");
            }
            (Err(error), Err(told)) => assert!(
                error.contains(key) && error.contains(told) && !error.contains("config.json"),
                "{error}"
            ),
            (found, _) => panic!("{key}: {:?}", found.err()),
        }
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("model.gguf");
    // A tensor's description: dimensions, sizes, type, offset.
    let described = |name: &str, dims: &[u64], kind: u32| {
        let mut bytes = name.as_bytes().to_vec();
        bytes.extend((dims.len() as u32).to_le_bytes());
        bytes.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes
    };
    let name = "blk.0.attn_norm.weight";
    let norm = described(name, &[32], 0);
    let norm_as = |dims: &[u64], kind| replaced(&norm, &described(name, dims, kind));
    let good = std::fs::read(golden("llama.gguf")).expect("read");
    let sentencepiece = replaced(b"\x04\0\0\0\0\0\0\0gpt2", b"\x05\0\0\0\0\0\0\0llama");
    // A list of one float.
    let score = [
        &6_u32.to_le_bytes()[..],
        &1_u64.to_le_bytes(),
        &0_f32.to_le_bytes(),
    ]
    .concat();
    for (bytes, told) in [
        (
            with_word(&good, "tokenizer.ggml.add_eos_token", 7, &[1]),
            "add_eos_token is true",
        ),
        (
            with_word(&sentencepiece, "tokenizer.ggml.scores", 9, &score),
            "scores does not fit its tokens",
        ),
        (
            replaced(b"tokenizer.ggml.pre", b"tokenizer.ggml.prx"),
            "how texts are split before the merges\n  hint: use the model's Hugging Face folder",
        ),
        (
            replaced(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba"),
            "`mamba`",
        ),
        (replaced(b"smollm", b"smallm"), "`smallm`"),
        (
            replaced(b"blk.1.attn_norm", b"blk.1.attn_nose"),
            "blk.1.attn_nose.weight",
        ),
        (
            replaced(b"blk.1.attn_norm", b"blk.0.attn_norm"),
            "there twice",
        ),
        (
            replaced(b"llama.block_count", b"llama.block_cowny"),
            "llama.block_count",
        ),
        (norm_as(&[16], 0), "[16], expected [32]"),
        (norm_as(&[1 << 62], 0), "size that its type cannot have"),
        (norm_as(&[1 << 40], 0), "beyond the file's end"),
        (norm_as(&[64], 0), "overlap"),
        (norm_as(&[33], 8), "size that its type cannot have"),
        (norm_as(&[32], 12), "Q4_K"),
        (replaced(b"GGUF\x03", b"GGUF\x01"), "version 1"),
    ] {
        std::fs::write(&path, bytes).expect("write");
        let error = import(&path).err().expect(told);
        assert!(
            error.contains(told) && error.contains("model.gguf") && !error.contains("config.json"),
            "{error}"
        );
    }
}

#[test]
fn no_damage_brings_the_reader_down() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("model.gguf");
    let good = std::fs::read(golden("llama.gguf")).expect("read");
    // Where the table of contents ends: damage to numbers is no damage to a file.
    let header = 12_000;
    let mut drawn = 0;
    let mut below = |bound: usize| {
        drawn += 1;
        (uniform(23, "damage", 0, drawn) * bound as f64) as usize
    };
    let mut refused = 0;
    for round in 0..400 {
        let mut bytes = good.clone();
        let at = below(header);
        bytes[at] = [0, 0x7f, 0x80, 0xff, below(256) as u8][below(5)];
        if round % 4 == 0 {
            bytes.truncate(below(bytes.len()));
        }
        std::fs::write(&path, bytes).expect("write");
        refused += usize::from(import(&path).is_err());
    }
    assert!(refused > 100, "{refused} refused");
}
