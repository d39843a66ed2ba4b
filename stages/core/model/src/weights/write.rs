//! Writing tensors as safetensors files: whole, with the same bytes for the same tensors.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;

use recipe::tensors::{INDEX, WEIGHTS};
use runtime::files;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde_json::json;
use tch::{Device, Tensor};

use super::KINDS;
use crate::ModelError;

/// Bytes of a file of weights at most, where nothing says otherwise (transformers' usual bound).
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// Writes a model's tensors into an existing folder: as [`WEIGHTS`], or in files of at most `shard_bytes`
/// (a larger tensor stands alone) with their [`INDEX`].
///
/// # Errors
/// As [`write()`].
pub fn write_shards(
    dir: &Path,
    tensors: &BTreeMap<String, Tensor>,
    shard_bytes: u64,
) -> Result<(), ModelError> {
    let mut shards: Vec<BTreeMap<String, Tensor>> = vec![BTreeMap::new()];
    let (mut filled, mut total) = (0, 0);
    for (name, tensor) in tensors {
        let bytes = num_bytes(tensor) as u64;
        if filled > 0 && filled + bytes > shard_bytes {
            shards.push(BTreeMap::new());
            filled = 0;
        }
        (filled, total) = (filled + bytes, total + bytes);
        if let Some(shard) = shards.last_mut() {
            shard.insert(name.clone(), tensor.shallow_clone());
        }
    }
    if let [single] = &shards[..] {
        return write(&dir.join(WEIGHTS), single);
    }
    let mut weight_map = BTreeMap::new();
    for (index, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", index + 1, shards.len());
        write(&dir.join(&file), shard)?;
        weight_map.extend(shard.keys().map(|name| (name, file.clone())));
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    Ok(files::write_json(&dir.join(INDEX), &index)?)
}

/// Writes a file whole: tensors in the order of their element sizes (largest first, which keeps them
/// aligned), then names; the same tensors give the same bytes.
///
/// # Errors
/// When the disk is full or writing fails.
///
/// # Panics
/// For a type that is not stored (complex numbers, quantised ones).
pub fn write(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<(), ModelError> {
    let mut order: Vec<(&String, &Tensor)> = tensors.iter().collect();
    order.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.kind().elt_size_in_bytes()));
    let mut offset = 0;
    let mut infos = Vec::with_capacity(order.len());
    for (name, tensor) in &order {
        let end = offset + num_bytes(tensor);
        let shape = tensor.size().iter().map(|n| *n as usize).collect();
        let info = TensorInfo {
            dtype: dtype_of(tensor),
            shape,
            data_offsets: (offset, end),
        };
        infos.push(((*name).clone(), info));
        offset = end;
    }
    // transformers refuses files without this word.
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let malformed = |reason: String| ModelError::Malformed {
        path: path.into(),
        reason,
    };
    let metadata = Metadata::new(Some(format), infos).map_err(|e| malformed(e.to_string()))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|e| malformed(e.to_string()))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    if let Some(dir) = path.parent() {
        files::ensure_space(dir, (8 + header.len() + offset) as u64)?;
    }
    files::write_whole(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        order
            .iter()
            .try_for_each(|(_, tensor)| out.write_all(&bytes_of(tensor)))
    })?;
    Ok(())
}

fn num_bytes(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.kind().elt_size_in_bytes()
}

fn bytes_of(tensor: &Tensor) -> Vec<u8> {
    let mut bytes = vec![0; num_bytes(tensor)];
    let on_cpu = tensor.detach().to_device(Device::Cpu).contiguous();
    on_cpu.copy_data_u8(&mut bytes, tensor.numel());
    bytes
}

fn dtype_of(tensor: &Tensor) -> Dtype {
    let kind = tensor.kind();
    let known = KINDS.iter().find(|(_, k)| *k == kind);
    known
        .unwrap_or_else(|| panic!("tensors of {kind:?} are not stored"))
        .0
}
