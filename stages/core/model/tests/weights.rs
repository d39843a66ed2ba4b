//! Files of tensors: what `torch.save` writes is read to the number, what it may hide is refused, and no
//! damage to any file brings the reader down.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use model::weights::{self, Reader};
use runtime::seeds::uniform;
use tch::{Device, Kind, Tensor};

fn golden(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../tests/golden");
    folder.join(name)
}

/// What `tests/golden/make_torch_files.py` saves.
fn expected() -> BTreeMap<&'static str, Tensor> {
    let base = Tensor::arange(24, (Kind::Float, Device::Cpu)).view([4, 6]);
    let floats = |values: &[f32], kind| Tensor::from_slice(values).to_kind(kind);
    BTreeMap::from([
        ("full", base.shallow_clone()),
        ("transposed", base.tr()),
        ("rows", base.narrow(0, 1, 2)),
        ("columns", base.narrow(1, 2, 3)),
        ("expanded", base.narrow(0, 0, 1).expand([3, 6], false)),
        ("parameter", floats(&[0.5, -1.5], Kind::Float)),
        ("half", floats(&[1.0, 2.5], Kind::Half).view([1, 2])),
        ("brain", floats(&[3.0, -0.125], Kind::BFloat16)),
        ("counts", Tensor::from_slice(&[1_i64, -2, 1 << 40])),
        ("flag", Tensor::from(true)),
        ("empty", Tensor::zeros([0, 3], (Kind::Float, Device::Cpu))),
    ])
}

#[test]
fn files_of_torch_save_are_read_to_the_number() {
    for file in ["torch_archive.bin", "torch_legacy.bin"] {
        let found = weights::read(&golden(file)).expect(file);
        let expected = expected();
        assert_eq!(found.len(), expected.len(), "{file}");
        for (name, tensor) in expected {
            assert_eq!(found[name].kind(), tensor.kind(), "{file}: {name}");
            assert!(found[name].equal(&tensor), "{file}: {name}");
        }
    }
}

#[test]
fn what_a_pickle_names_beside_tensors_is_refused_by_name() {
    for file in ["torch_evil_archive.bin", "torch_evil_legacy.bin"] {
        let error = Reader::open(&golden(file)).err().expect("refused");
        let text = error.to_string();
        assert!(
            text.contains("posix.system") && text.contains(file) && text.contains("hint"),
            "{text}"
        );
    }
    // Names that begin as allowed ones do, and a bare pickle without a file around it.
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("pytorch_model.bin");
    for (pickle, name) in [
        (&b"\x80\x02ctorch\nload\n."[..], "torch.load"),
        (
            b"\x80\x02ctorch._utils\n_import_dotted_name\n.",
            "torch._utils._import_dotted_name",
        ),
        (b"\x80\x02(ios\nsystem\n.", "os.system"),
        (
            b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.",
            "builtins.eval",
        ),
    ] {
        std::fs::write(&path, pickle).expect("write");
        let error = Reader::open(&path).err().expect("refused").to_string();
        assert!(error.contains(&format!("`{name}`")), "{error}");
    }
}

/// Opens a file and reads every tensor of a bounded size: an error is an answer, a panic is none.
fn read_whatever_is_there(path: &Path) -> bool {
    let Ok(reader) = Reader::open(path) else {
        return false;
    };
    for (name, dims) in reader.tensors() {
        let elements = dims.iter().try_fold(1_i64, |n, dim| n.checked_mul(*dim));
        if elements.is_some_and(|n| n <= 1 << 20) {
            let _ = reader
                .kind(&name)
                .and_then(|kind| reader.read(&name, kind, Device::Cpu));
        }
    }
    true
}

#[test]
fn no_damage_brings_the_reader_down() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("damaged");
    let safetensors = dir.path().join("good");
    let tensors = expected().into_iter();
    weights::write(
        &safetensors,
        &tensors.map(|(n, t)| (n.to_owned(), t)).collect(),
    )
    .expect("write");
    let mut drawn = 0;
    let mut below = |bound: usize| {
        drawn += 1;
        (uniform(17, "damage", 0, drawn) * bound as f64) as usize
    };
    for file in [
        golden("torch_archive.bin"),
        golden("torch_legacy.bin"),
        safetensors,
    ] {
        let good = std::fs::read(&file).expect("read");
        std::fs::write(&path, &good).expect("write");
        assert!(read_whatever_is_there(&path));
        let (mut refused, rounds) = (0, 3000);
        for _ in 0..rounds {
            let mut bytes = good.clone();
            for _ in 0..=below(3) {
                let at = below(bytes.len());
                bytes[at] = [0, 0x7f, 0x80, 0xff, below(256) as u8][below(5)];
            }
            if below(4) == 0 {
                bytes.truncate(below(bytes.len()));
            }
            std::fs::write(&path, &bytes).expect("write");
            refused += usize::from(!read_whatever_is_there(&path));
        }
        assert!(
            refused > rounds / 10,
            "{}: {refused} refused",
            file.display()
        );
    }
}

#[test]
fn tensors_of_many_dimensions_are_refused() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("pytorch_model.bin");
    let good = std::fs::read(golden("torch_legacy.bin")).expect("read");
    // The dimensions of `rows`, [2, 6].
    let place = b"K\x02K\x06\x86";
    let at = good.windows(place.len()).position(|w| w == place);
    let at = at.expect("the view of two rows");
    let many = [b"(".to_vec(), b"K\x01".repeat(17), b"t".to_vec()].concat();
    let bytes = [&good[..at], &many, &good[at + place.len()..]].concat();
    std::fs::write(&path, bytes).expect("write");
    let error = Reader::open(&path).err().expect("refused").to_string();
    assert!(error.contains("at most 16 dimensions"), "{error}");
}

#[test]
fn tensors_that_reach_beyond_their_storage_are_refused() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("pytorch_model.bin");
    let good = std::fs::read(golden("torch_legacy.bin")).expect("read");
    // `rows` is [2, 6] from element 6 (`K\x06K\x02K\x06\x86`): more rows, and a later beginning.
    let place = b"K\x06K\x02K\x06\x86";
    let at = good.windows(place.len()).position(|w| w == place);
    let at = at.expect("the view of two rows");
    for (shift, value) in [(3, 200), (1, 255)] {
        let mut bytes = good.clone();
        bytes[at + shift] = value;
        std::fs::write(&path, bytes).expect("write");
        let error = Reader::open(&path).err().expect("refused").to_string();
        assert!(error.contains("`rows` reaches beyond"), "{error}");
    }
}
