//! Tensors in safetensors files: read one at a time, checked; written whole, with the same bytes for
//! the same tensors.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use runtime::files;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::ModelError;

/// A longer header than this is no header (the format's own bound).
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// An open safetensors file whose header has been checked.
pub struct Reader {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    data_start: u64,
}

impl Reader {
    /// Opens a file and checks its header against its length.
    ///
    /// # Errors
    /// When there is no such file, or its header is malformed, or data are missing or left over.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        if !path.exists() {
            return Err(ModelError::Missing { path: path.into() });
        }
        let mut file = File::open(path).map_err(files::FileError::io("open", path))?;
        let len = file
            .metadata()
            .map_err(files::FileError::io("open", path))?
            .len();
        let malformed = |reason: String| ModelError::Malformed {
            path: path.into(),
            reason,
        };
        let mut prefix = [0; 8];
        file.read_exact(&mut prefix)
            .map_err(|_| malformed(format!("only {len} bytes")))?;
        let header_len = u64::from_le_bytes(prefix);
        if header_len > MAX_HEADER_BYTES.min(len - 8) {
            let reason = format!("a header of {header_len} bytes in a file of {len} bytes");
            return Err(malformed(reason));
        }
        let mut header = vec![0; header_len as usize];
        file.read_exact(&mut header)
            .map_err(files::FileError::io("read", path))?;
        // Deserializing checks that the tensors cover the data without gaps or overlaps.
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|error| malformed(error.to_string()))?;
        let (data_start, expected) = (8 + header_len, 8 + header_len + metadata.data_len() as u64);
        if len != expected {
            let reason = format!("{len} bytes, but its header describes {expected}");
            return Err(malformed(reason));
        }
        Ok(Self {
            path: path.into(),
            file,
            metadata,
            data_start,
        })
    }

    /// Names and shapes of all tensors, sorted by name.
    pub fn tensors(&self) -> BTreeMap<String, Vec<i64>> {
        let all = self.metadata.tensors();
        all.into_iter()
            .map(|(name, info)| (name, dims(info)))
            .collect()
    }

    /// The type that most of the file's bytes are of, where it is one of floats.
    pub fn kind(&self) -> Option<Kind> {
        let tensors = self.metadata.tensors();
        let largest = tensors
            .values()
            .max_by_key(|info| info.data_offsets.1 - info.data_offsets.0)?;
        kind_of(largest.dtype).filter(|kind| is_float(*kind))
    }

    /// One tensor, on the CPU, in the type it is stored in.
    ///
    /// # Errors
    /// When it is not there, its type is unknown to us, or reading fails.
    pub fn read(&mut self, name: &str) -> Result<Tensor, ModelError> {
        let Some(info) = self.metadata.info(name) else {
            let (path, name) = (self.path.clone(), name.to_owned());
            return Err(ModelError::MissingTensor {
                path,
                name,
                expected: Vec::new(),
            });
        };
        let Some(kind) = kind_of(info.dtype) else {
            return Err(ModelError::TensorType {
                path: self.path.clone(),
                name: name.to_owned(),
                found: format!("{:?}", info.dtype),
            });
        };
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        let position = SeekFrom::Start(self.data_start + start as u64);
        let outcome = self
            .file
            .seek(position)
            .and_then(|_| self.file.read_exact(&mut bytes));
        outcome.map_err(files::FileError::io("read", &self.path))?;
        if bytes.is_empty() {
            return Ok(Tensor::zeros(dims(info), (kind, Device::Cpu)));
        }
        Ok(Tensor::from_data_size(&bytes, &dims(info), kind))
    }
}

/// All tensors of a file, on the CPU, in the types they are stored in.
///
/// # Errors
/// As [`Reader::open`] and [`Reader::read`].
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>, ModelError> {
    let mut reader = Reader::open(path)?;
    let names = reader.tensors().into_keys();
    names
        .map(|name| reader.read(&name).map(|tensor| (name, tensor)))
        .collect()
}

/// Bytes of a file of weights at most, where nothing says otherwise (transformers' usual bound).
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// The name of weights in one file.
pub const WEIGHTS: &str = "model.safetensors";
/// The name of the list of files where there are several.
pub const INDEX: &str = "model.safetensors.index.json";

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

fn dims(info: &TensorInfo) -> Vec<i64> {
    info.shape.iter().map(|n| *n as i64).collect()
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

/// Whether weights can be of this type.
pub(crate) fn is_float(kind: Kind) -> bool {
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

fn dtype_of(tensor: &Tensor) -> Dtype {
    let kind = tensor.kind();
    let known = KINDS.iter().find(|(_, k)| *k == kind);
    known
        .unwrap_or_else(|| panic!("tensors of {kind:?} are not stored"))
        .0
}
