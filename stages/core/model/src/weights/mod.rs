//! Files of tensors: safetensors, `pytorch_model.bin` and GGUF, mapped into memory and read one tensor
//! at a time; written as safetensors.

mod blocks;
mod files;
mod gguf;
mod heap;
mod pickle;
mod safetensors;
mod torch_file;
mod write;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ::safetensors::Dtype;
use runtime::files::FileError;
use tch::{Device, Kind, Tensor};
use torch_ext::{Layout, MappedFile, tensor_from_bytes};

use crate::ModelError;
use blocks::BlockType;
pub use files::{StoredTensor, StoredWeights};
pub(crate) use gguf::{Meta, Metadata};
use pickle::Refusal;
pub use write::{SHARD_BYTES, write, write_shards};

/// Where a tensor lies in a file.
#[derive(Debug, Clone)]
struct Entry {
    dims: Vec<i64>,
    /// Elements from one index to the next.
    strides: Vec<i64>,
    element: Element,
    /// Byte of its first element.
    start: usize,
    /// Bytes that are there for it.
    bytes: usize,
}

/// How a tensor's numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    /// One after the other.
    Plain(Dtype),
    /// In blocks along the last dimension; they are read as f32.
    Blocks(BlockType),
}

impl Element {
    /// The type that the numbers have in memory; `None` where libtorch has none for them.
    fn kind(self) -> Option<Kind> {
        match self {
            Self::Plain(dtype) => kind_of(dtype),
            Self::Blocks(_) => Some(Kind::Float),
        }
    }

    /// The type's name, as its format writes it.
    fn name(self) -> String {
        match self {
            Self::Plain(dtype) => format!("{dtype:?}"),
            Self::Blocks(blocks) => format!("{blocks:?}"),
        }
    }
}

impl Entry {
    fn layout(&self, kind: Kind) -> Layout {
        Layout {
            dims: self.dims.clone(),
            strides: self.strides.clone(),
            kind,
        }
    }
}

/// An open file of tensors, whose table of contents has been checked against its length. What its name
/// ends with does not matter: its first bytes say what it is.
pub struct Reader {
    path: PathBuf,
    bytes: MappedFile,
    entries: BTreeMap<String, Entry>,
    metadata: Metadata,
}

impl Reader {
    /// Maps a file and reads its table of contents.
    ///
    /// # Errors
    /// When there is no such file, or its table is malformed, or data are missing or left over, or a
    /// pickle names anything that is no part of a tensor.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        if !path.exists() {
            return Err(ModelError::Missing { path: path.into() });
        }
        let bytes = MappedFile::open(path).map_err(FileError::io("open", path))?;
        // A safetensors header begins after its length; an archive with its letters, a pickle with its
        // protocol.
        let is_torch = bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"\x80");
        let alone = |entries| (entries, Metadata::new());
        let contents = if bytes.starts_with(gguf::MAGIC) {
            gguf::contents(&bytes).map_err(Refusal::Malformed)
        } else if is_torch && bytes.get(8) != Some(&b'{') {
            torch_file::entries(&bytes).map(alone)
        } else {
            let entries = safetensors::entries(&bytes).map(alone);
            entries.map_err(Refusal::Malformed)
        };
        let (entries, metadata) = contents.map_err(|refusal| match refusal {
            Refusal::Malformed(reason) => ModelError::Malformed {
                path: path.into(),
                reason,
            },
            Refusal::Named(name) => ModelError::Unsafe {
                path: path.into(),
                name,
            },
        })?;
        Ok(Self {
            path: path.into(),
            bytes,
            entries,
            metadata,
        })
    }

    /// What a GGUF file says of its model; nothing for other files.
    pub(crate) fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Names and shapes of all tensors, sorted by name.
    pub fn tensors(&self) -> BTreeMap<String, Vec<i64>> {
        let all = self.entries.iter();
        all.map(|(name, entry)| (name.clone(), entry.dims.clone()))
            .collect()
    }

    /// The types of its tensors of floats, by name.
    pub(crate) fn float_kinds(&self) -> BTreeMap<&str, Kind> {
        let all = self.entries.iter().filter_map(|(name, entry)| {
            let kind = entry.element.kind().filter(|kind| is_float(*kind))?;
            Some((&**name, kind))
        });
        all.collect()
    }

    /// The type that a tensor is stored in.
    ///
    /// # Errors
    /// When it is not there, or libtorch has no such type.
    pub fn kind(&self, name: &str) -> Result<Kind, ModelError> {
        self.kind_if(name, |_| true)
    }

    /// As [`Reader::kind`], and an error for a type that weights cannot have.
    pub(crate) fn float_kind(&self, name: &str) -> Result<Kind, ModelError> {
        self.kind_if(name, is_float)
    }

    fn kind_if(&self, name: &str, allowed: fn(Kind) -> bool) -> Result<Kind, ModelError> {
        let entry = self.entry(name)?;
        let kind = entry.element.kind().filter(|kind| allowed(*kind));
        kind.ok_or_else(|| ModelError::TensorType {
            path: self.path.clone(),
            name: name.to_owned(),
            found: entry.element.name(),
        })
    }

    /// One tensor as `kind` on `device`, copied straight from the mapped file.
    ///
    /// # Errors
    /// As [`Reader::kind`]; when libtorch refuses (no memory).
    pub fn read(&self, name: &str, kind: Kind, device: Device) -> Result<Tensor, ModelError> {
        let rows = self.entry(name)?.dims.first().copied().unwrap_or(1);
        self.read_rows(name, (0, rows), kind, device)
    }

    /// As [`Reader::read`], but only the rows `(first, count)` of it.
    pub(crate) fn read_rows(
        &self,
        name: &str,
        (first, count): (i64, i64),
        kind: Kind,
        device: Device,
    ) -> Result<Tensor, ModelError> {
        let entry = self.entry(name)?;
        let mut layout = entry.layout(self.kind(name)?);
        let mut skipped = 0;
        if let (Some(rows), Some(stride)) = (layout.dims.first_mut(), layout.strides.first()) {
            *rows = count;
            skipped = (first * stride) as usize * layout.kind.elt_size_in_bytes();
        }
        let stored = &self.bytes[entry.start..entry.start + entry.bytes];
        let numbers = match entry.element {
            Element::Plain(_) => Cow::Borrowed(stored),
            Element::Blocks(blocks) => Cow::Owned(blocks.dequantize(stored)),
        };
        let bytes = numbers.get(skipped..).unwrap_or(&[]);
        let tensor = tensor_from_bytes(bytes, &layout, kind, device)?;
        self.bytes.release(entry.start..entry.start + entry.bytes);
        Ok(tensor)
    }

    fn entry(&self, name: &str) -> Result<&Entry, ModelError> {
        let entry = self.entries.get(name);
        entry.ok_or_else(|| ModelError::MissingTensor {
            path: self.path.clone(),
            name: name.to_owned(),
            expected: Vec::new(),
        })
    }
}

/// All tensors of a file, on the CPU, in the types they are stored in.
///
/// # Errors
/// As [`Reader::open`] and [`Reader::read`].
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>, ModelError> {
    let reader = Reader::open(path)?;
    let read = |name: String| {
        let tensor = reader.read(&name, reader.kind(&name)?, Device::Cpu)?;
        Ok((name, tensor))
    };
    reader.tensors().into_keys().map(read).collect()
}

const KINDS: [(Dtype, Kind); 9] = [
    (Dtype::F64, Kind::Double),
    (Dtype::F32, Kind::Float),
    (Dtype::F16, Kind::Half),
    (Dtype::BF16, Kind::BFloat16),
    (Dtype::I64, Kind::Int64),
    (Dtype::I32, Kind::Int),
    (Dtype::I8, Kind::Int8),
    (Dtype::U8, Kind::Uint8),
    (Dtype::BOOL, Kind::Bool),
];

/// The narrowest type that holds the numbers of two types of floats without rounding any.
pub(crate) fn wider(one: Kind, other: Kind) -> Kind {
    if one == other {
        return one;
    }
    // Neither of f16 and bf16 holds the other.
    if [one, other].contains(&Kind::Double) {
        Kind::Double
    } else {
        Kind::Float
    }
}

/// Whether weights can be of this type.
fn is_float(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Double | Kind::Float | Kind::Half | Kind::BFloat16
    )
}

fn kind_of(dtype: Dtype) -> Option<Kind> {
    KINDS
        .iter()
        .find(|(d, _)| *d == dtype)
        .map(|(_, kind)| *kind)
}
