//! The table of contents of a safetensors file.
//!
//! Source: the format's own description (huggingface/safetensors, README).

use std::collections::BTreeMap;

use safetensors::tensor::Metadata;
use torch_ext::Layout;

use super::{Element, Entry, kind_of};

/// A longer header than this is no header (the format's own bound).
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The tensors of a file, by name.
pub(super) fn entries(bytes: &[u8]) -> Result<BTreeMap<String, Entry>, String> {
    let len = bytes.len() as u64;
    let Some((prefix, _)) = bytes.split_first_chunk() else {
        return Err(format!("only {len} bytes"));
    };
    let header_len = u64::from_le_bytes(*prefix);
    if header_len > MAX_HEADER_BYTES.min(len - 8) {
        return Err(format!(
            "a header of {header_len} bytes in a file of {len} bytes"
        ));
    }
    let data_start = 8 + header_len as usize;
    // Deserializing checks that the tensors cover the data without gaps or overlaps.
    let metadata: Metadata =
        serde_json::from_slice(&bytes[8..data_start]).map_err(|error| error.to_string())?;
    let expected = (data_start as u64).checked_add(metadata.data_len() as u64);
    if expected != Some(len) {
        let described = expected.map_or("more".to_owned(), |bytes| bytes.to_string());
        return Err(format!("{len} bytes, but its header describes {described}"));
    }
    let all = metadata.tensors().into_iter();
    let entries = all.map(|(name, info)| {
        let dims: Vec<i64> = info.shape.iter().map(|n| *n as i64).collect();
        let kind = kind_of(info.dtype).unwrap_or(tch::Kind::Uint8);
        let (start, end) = info.data_offsets;
        let entry = Entry {
            strides: Layout::contiguous(dims.clone(), kind).strides,
            dims,
            element: Element::Plain(info.dtype),
            start: data_start + start,
            bytes: end - start,
        };
        (name, entry)
    });
    Ok(entries.collect())
}
