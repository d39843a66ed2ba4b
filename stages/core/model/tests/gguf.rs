//! GGUF: what transformers makes of the same file (`tests/golden/make_gguf.py`), and every damage refused.

use std::path::{Path, PathBuf};

use model::weights::{self, SHARD_BYTES};
use model::{Checkpoint, Input, Model, write_folder};
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
    for (bytes, told) in [
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
            error.contains(told) && error.contains("model.gguf"),
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
