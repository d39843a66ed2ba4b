//! `pytorch_model.bin`: what `torch.save` writes, as a zip archive (since 1.6) or as pickles one after
//! the other (before).
//!
//! Source: `torch/serialization.py` (`_save`, `_legacy_save`).

use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;

use zip::{CompressionMethod, ZipArchive};

use super::heap::{Heap, Id, Object, TensorRef};
use super::pickle::{self, Refusal, malformed};
use super::{Element, Entry, kind_of};

/// The number that old files begin with, 0x1950a86a20f9469cfc6c.
const LEGACY_MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Where the data of each storage begin, and how many bytes they are.
type Storages = HashMap<String, (usize, usize)>;

/// The tensors of a file, by name.
pub(super) fn entries(bytes: &[u8]) -> Result<BTreeMap<String, Entry>, Refusal> {
    let (heap, root, storages) = if bytes.starts_with(b"PK") {
        archive(bytes)?
    } else {
        legacy(bytes)?
    };
    let Object::Dict(items) = &heap[root] else {
        return Err(malformed("it holds no dictionary of tensors"));
    };
    let mut entries = BTreeMap::new();
    for (name, value) in items {
        let name = heap
            .text(*name)
            .ok_or_else(|| malformed("a tensor's name that is no text"))?;
        let Object::Tensor(tensor) = &heap[*value] else {
            return Err(malformed(format!("`{name}` is no tensor")));
        };
        entries.insert(name.to_owned(), entry(name, tensor, &storages)?);
    }
    Ok(entries)
}

fn archive(bytes: &[u8]) -> Result<(Heap, Id, Storages), Refusal> {
    let broken = |error: zip::result::ZipError| malformed(error.to_string());
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(broken)?;
    let mut files = HashMap::new();
    for index in 0..archive.len() {
        let file = archive.by_index_raw(index).map_err(broken)?;
        let name = file.name().map_err(broken)?.into_owned();
        let place = (file.data_start(), file.size());
        let (Some(start), size) = place else {
            return Err(malformed(format!("`{name}` is nowhere in the archive")));
        };
        let (start, size) = (start as usize, size as usize);
        let end = start.checked_add(size).filter(|end| *end <= bytes.len());
        if file.compression() != CompressionMethod::Stored || file.encrypted() || end.is_none() {
            return Err(malformed(format!("`{name}` is not stored as it is")));
        }
        files.insert(name, (start, size));
    }
    // Every name begins with the archive's own, which is the file's first name.
    let pickle = files.iter().find(|(name, _)| name.ends_with("/data.pkl"));
    let (name, (start, size)) = pickle.ok_or_else(|| malformed("no data.pkl in the archive"))?;
    let folder = name.trim_end_matches("data.pkl");
    let byte_order = files.get(&format!("{folder}byteorder"));
    if byte_order.is_some_and(|(start, size)| &bytes[*start..start + size] != b"little") {
        return Err(malformed("its numbers are not little-endian"));
    }
    let (heap, root, _) = pickle::read(&bytes[*start..start + size])?;
    let data = format!("{folder}data/");
    let storages = files
        .iter()
        .filter_map(|(name, place)| Some((name.strip_prefix(&data)?.to_owned(), *place)))
        .collect();
    Ok((heap, root, storages))
}

fn legacy(bytes: &[u8]) -> Result<(Heap, Id, Storages), Refusal> {
    let (heap, magic, mut position) = pickle::read(bytes)?;
    if heap[magic] != Object::Bytes(LEGACY_MAGIC.to_vec()) {
        return Err(malformed("it is no file of `torch.save`"));
    }
    let mut next = || {
        let (heap, root, len) = pickle::read(&bytes[position..])?;
        position += len;
        Ok((heap, root))
    };
    // The protocol (1001) and the sizes of the writer's numbers.
    next()?;
    next()?;
    let (heap, root) = next()?;
    let (key_heap, keys) = next()?;
    let Object::List(keys) = &key_heap[keys] else {
        return Err(malformed("no list of storages after the tensors"));
    };
    let sizes = storage_sizes(&heap, root);
    let mut storages = Storages::new();
    for key in keys {
        let key = key_heap
            .text(*key)
            .ok_or_else(|| malformed("a storage's key that is no text"))?;
        let start = position + 8;
        let numel = bytes.get(position..start).and_then(|word| {
            let word: [u8; 8] = word.try_into().ok()?;
            usize::try_from(i64::from_le_bytes(word)).ok()
        });
        let size = numel
            .zip(sizes.get(key))
            .and_then(|(n, size)| n.checked_mul(*size));
        let end = size
            .and_then(|size| start.checked_add(size))
            .filter(|end| *end <= bytes.len());
        let (Some(size), Some(end)) = (size, end) else {
            return Err(malformed(format!("storage {key} is not whole")));
        };
        storages.insert(key.to_owned(), (start, size));
        position = end;
    }
    Ok((heap, root, storages))
}

/// Bytes of a number, for each storage that a tensor is a view of.
fn storage_sizes(heap: &Heap, root: Id) -> HashMap<&str, usize> {
    let Object::Dict(items) = &heap[root] else {
        return HashMap::new();
    };
    let tensors = items.iter().filter_map(|(_, value)| match &heap[*value] {
        Object::Tensor(tensor) => Some(&tensor.storage),
        _ => None,
    });
    tensors
        .map(|storage| (&*storage.key, storage.dtype.bitsize() / 8))
        .collect()
}

fn entry(name: &str, tensor: &TensorRef, storages: &Storages) -> Result<Entry, Refusal> {
    let storage = &tensor.storage;
    let beyond = || {
        malformed(format!(
            "`{name}` reaches beyond the numbers that are stored"
        ))
    };
    let (start, size) = *storages.get(&*storage.key).ok_or_else(beyond)?;
    let element = storage.dtype.bitsize() / 8;
    let offset = usize::try_from(tensor.offset)
        .ok()
        .and_then(|offset| offset.checked_mul(element))
        .ok_or_else(beyond)?;
    let entry = Entry {
        dims: tensor.dims.clone(),
        strides: tensor.strides.clone(),
        element: Element::Plain(storage.dtype),
        start: start + offset.min(size),
        bytes: size - offset.min(size),
    };
    let span = kind_of(storage.dtype).map(|kind| entry.layout(kind).span());
    match span {
        Some(Some(span)) if offset <= size && span <= size - offset => Ok(entry),
        None => Ok(entry),
        _ => Err(beyond()),
    }
}
