//! The table of contents of a GGUF file: what is said of the model, and where its tensors lie.
//!
//! Source: ggml's `docs/gguf.md`, versions 2 and 3.

use std::collections::BTreeMap;

use safetensors::Dtype;
use torch_ext::Layout;

use super::blocks::{BLOCK, BlockType};
use super::{Element, Entry};

/// The letters that a file begins with.
pub(super) const MAGIC: &[u8] = b"GGUF";

/// Most dimensions of a tensor (ggml's own bound).
const MAX_DIMS: u32 = 4;
/// Arrays within arrays, at most.
const MAX_DEPTH: usize = 4;

/// A value of a file's metadata.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Meta {
    /// Any integer.
    Int(i64),
    /// Any float.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(String),
    /// Values of one type.
    List(Vec<Meta>),
}

/// What a file says of its model, by key.
pub(crate) type Metadata = BTreeMap<String, Meta>;

/// The tensors of a file, by the names of ggml, and its metadata.
pub(super) fn contents(bytes: &[u8]) -> Result<(BTreeMap<String, Entry>, Metadata), String> {
    let mut cursor = Cursor { bytes, position: 4 };
    let version = cursor.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("GGUF of version {version}, expected 2 or 3"));
    }
    let (num_tensors, num_keys) = (cursor.u64()?, cursor.u64()?);
    let mut metadata = Metadata::new();
    for _ in 0..num_keys {
        let key = cursor.text()?;
        let kind = cursor.u32()?;
        let value = cursor.value(kind, 0)?;
        metadata.insert(key, value);
    }
    let mut described = Vec::new();
    for _ in 0..num_tensors {
        described.push(cursor.tensor()?);
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(Meta::Int(bytes @ 1..=65_536)) => *bytes as usize,
        Some(other) => return Err(format!("general.alignment is {other:?}")),
    };
    let data_start = cursor.position.next_multiple_of(alignment);
    let mut entries = BTreeMap::new();
    let mut places = Vec::new();
    for (name, mut entry) in described {
        let start = data_start.checked_add(entry.start);
        let end = start.and_then(|start| start.checked_add(entry.bytes));
        let (Some(start), Some(end)) = (start, end.filter(|end| *end <= bytes.len())) else {
            return Err(format!("`{name}` reaches beyond the file's end"));
        };
        entry.start = start;
        places.push((start, end, name.clone()));
        if entries.insert(name.clone(), entry).is_some() {
            return Err(format!("`{name}` is there twice"));
        }
    }
    places.sort();
    for pair in places.windows(2) {
        if pair[1].0 < pair[0].1 {
            return Err(format!("`{}` and `{}` overlap", pair[0].2, pair[1].2));
        }
    }
    Ok((entries, metadata))
}

struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl Cursor<'_> {
    fn take(&mut self, len: usize) -> Result<&[u8], String> {
        let rest = self.bytes.get(self.position..).unwrap_or(&[]);
        let taken = rest.get(..len).ok_or("it ends early")?;
        self.position += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn text(&mut self) -> Result<String, String> {
        let len = usize::try_from(self.u64()?).map_err(|_| "it ends early")?;
        let text = self.take(len)?.to_vec();
        String::from_utf8(text).map_err(|_| "a text that is not UTF-8".to_owned())
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Meta, String> {
        Ok(match kind {
            0 => Meta::Int(self.array::<1>()?[0].into()),
            1 => Meta::Int(i8::from_le_bytes(self.array()?).into()),
            2 => Meta::Int(u16::from_le_bytes(self.array()?).into()),
            3 => Meta::Int(i16::from_le_bytes(self.array()?).into()),
            4 => Meta::Int(self.u32()?.into()),
            5 => Meta::Int(i32::from_le_bytes(self.array()?).into()),
            6 => Meta::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Meta::Bool(self.array::<1>()?[0] != 0),
            8 => Meta::Text(self.text()?),
            9 if depth < MAX_DEPTH => {
                let (kind, len) = (self.u32()?, self.u64()?);
                // Every element takes a byte at least: a length that lies ends at the file's end.
                let items = (0..len).map(|_| self.value(kind, depth + 1));
                Meta::List(items.collect::<Result<_, _>>()?)
            }
            10 => Meta::Int(i64::try_from(self.u64()?).map_err(|_| "a number beyond 63 bits")?),
            11 => Meta::Int(i64::from_le_bytes(self.array()?)),
            12 => Meta::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("a value of unknown type {other}")),
        })
    }

    /// A tensor's name and place, counted from the beginning of the data.
    fn tensor(&mut self) -> Result<(String, Entry), String> {
        let name = self.text()?;
        let num_dims = self.u32()?;
        if num_dims > MAX_DIMS {
            return Err(format!("`{name}` has {num_dims} dimensions"));
        }
        let mut dims = Vec::new();
        for _ in 0..num_dims {
            let size = i64::try_from(self.u64()?).map_err(|_| format!("`{name}` is too large"))?;
            // ggml counts dimensions from the last.
            dims.insert(0, size);
        }
        let element = match self.u32()? {
            0 => Element::Plain(Dtype::F32),
            1 => Element::Plain(Dtype::F16),
            2 => Element::Blocks(BlockType::Q4_0),
            3 => Element::Blocks(BlockType::Q4_1),
            8 => Element::Blocks(BlockType::Q8_0),
            28 => Element::Plain(Dtype::F64),
            30 => Element::Plain(Dtype::BF16),
            other => {
                return Err(format!(
                    "`{name}` is of type {} (known: F64, F32, F16, BF16, Q8_0, Q4_0, Q4_1)",
                    type_name(other)
                ));
            }
        };
        let offset = usize::try_from(self.u64()?).map_err(|_| format!("`{name}` lies nowhere"))?;
        let numel = dims.iter().try_fold(1_i64, |n, size| n.checked_mul(*size));
        let bytes = numel.and_then(|numel| element.bytes(numel, dims.last().copied()));
        let entry = Entry {
            strides: Layout::contiguous(dims.clone(), tch::Kind::Uint8).strides,
            dims,
            element,
            start: offset,
            bytes: bytes.ok_or_else(|| format!("`{name}` has a size that its type cannot have"))?,
        };
        Ok((name, entry))
    }
}

impl Element {
    /// Bytes of `numel` numbers in rows of `row`; `None` where blocks do not fit into rows, or where the
    /// number is too large for the machine.
    fn bytes(self, numel: i64, row: Option<i64>) -> Option<usize> {
        let numel = usize::try_from(numel).ok()?;
        match self {
            Self::Plain(dtype) => numel.checked_mul(dtype.bitsize() / 8),
            Self::Blocks(blocks) => {
                let whole = row.is_some_and(|row| row % BLOCK as i64 == 0);
                whole.then(|| (numel / BLOCK).checked_mul(blocks.bytes()))?
            }
        }
    }
}

/// A type that is not read, by the name that its users know.
fn type_name(number: u32) -> String {
    let name = match number {
        6 => "Q5_0",
        7 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K",
        12 => "Q4_K",
        13 => "Q5_K",
        14 => "Q6_K",
        15 => "Q8_K",
        _ => return format!("number {number}"),
    };
    name.to_owned()
}
