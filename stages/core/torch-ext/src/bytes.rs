//! Tensors from bytes that lie elsewhere: a file mapped into memory, a part of it.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;

use memmap2::{Mmap, UncheckedAdvice};
use tch::{Device, Kind, Tensor};

use crate::TorchError;

/// A file's bytes without a copy of them: pages are read when they are looked at, and the system may
/// drop them again.
///
/// The file must not be shortened while it is mapped: its readers would be killed. Files of ours never
/// are (a new file takes an old one's place).
pub struct MappedFile(Option<Mmap>);

impl MappedFile {
    /// Maps a whole file; an empty one is no bytes.
    ///
    /// # Errors
    /// When it cannot be opened or mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Ok(Self(None));
        }
        // SAFETY: the bytes are only read; that nobody shortens or overwrites the file meanwhile is
        // what every reader of mapped weights relies on.
        Ok(Self(Some(unsafe { Mmap::map(&file) }?)))
    }

    /// Gives back the memory of some bytes that were looked at, so that a file that is read through does
    /// not stay in it whole; they are read from the file again when they are looked at again.
    pub fn release(&self, range: Range<usize>) {
        if let Some(map) = &self.0 {
            let (start, len) = (range.start, range.len());
            // SAFETY: pages of a file that is only read come back from the file unchanged. A refusal
            // costs memory alone.
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, len) };
        }
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or(&[])
    }
}

/// How a tensor lies in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Its size along each dimension.
    pub dims: Vec<i64>,
    /// Elements from one index to the next, along each dimension.
    pub strides: Vec<i64>,
    /// The type of its elements, little-endian.
    pub kind: Kind,
}

impl Layout {
    /// Rows after rows without gaps.
    pub fn contiguous(dims: Vec<i64>, kind: Kind) -> Self {
        let mut strides = vec![1; dims.len()];
        for axis in (1..dims.len()).rev() {
            strides[axis - 1] = dims[axis].max(1).saturating_mul(strides[axis]);
        }
        Self {
            dims,
            strides,
            kind,
        }
    }

    /// Bytes from the first element's to the last element's end; `None` for a negative size or stride,
    /// or where the number is too large for the machine.
    pub fn span(&self) -> Option<usize> {
        if self.dims.len() != self.strides.len() {
            return None;
        }
        let mut last = 0_i64;
        for (size, stride) in self.dims.iter().zip(&self.strides) {
            if *size < 0 || *stride < 0 {
                return None;
            }
            last = last.checked_add((size - 1).max(0).checked_mul(*stride)?)?;
        }
        if self.dims.contains(&0) {
            return Some(0);
        }
        let bytes = last
            .checked_add(1)?
            .checked_mul(self.kind.elt_size_in_bytes() as i64)?;
        usize::try_from(bytes).ok()
    }
}

const OPERATION: &str = "tensor_from_bytes";

/// A tensor of its own, contiguous, of type `kind` on `device`, from bytes that start with its first
/// element: one copy, straight from the bytes to where it is wanted.
///
/// # Errors
/// When the bytes are fewer than the layout's span, or libtorch refuses (no memory).
pub fn tensor_from_bytes(
    bytes: &[u8],
    layout: &Layout,
    kind: Kind,
    device: Device,
) -> Result<Tensor, TorchError> {
    let span = layout.span().filter(|span| *span <= bytes.len());
    let Some(span) = span else {
        return Err(TorchError::Argument {
            operation: OPERATION,
            name: "layout",
            found: format!("{layout:?}"),
            expected: format!("a tensor within {} bytes", bytes.len()),
        });
    };
    if span == 0 {
        return Tensor::f_zeros(&layout.dims, (kind, device)).map_err(|error| libtorch(&error));
    }
    let size = layout.kind.elt_size_in_bytes();
    let misaligned = !(bytes.as_ptr() as usize).is_multiple_of(size);
    // u64 elements give every type its alignment.
    let aligned = misaligned.then(|| {
        let words = bytes[..span].chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_ne_bytes(word)
        });
        words.collect::<Vec<u64>>()
    });
    let start = aligned
        .as_ref()
        .map_or(bytes.as_ptr(), |words| words.as_ptr().cast());
    let copy = || -> Result<Tensor, tch::TchError> {
        // SAFETY: `start` is aligned, and all elements lie within `span` bytes from it, which outlive
        // `view`: the copy that leaves this function is forced, and shares nothing with it.
        let view = unsafe {
            Tensor::f_from_blob(
                start,
                &layout.dims,
                &layout.strides,
                layout.kind,
                Device::Cpu,
            )?
        };
        view.f_to_device_(device, kind, false, true)?.f_contiguous()
    };
    copy().map_err(|error| libtorch(&error))
}

fn libtorch(error: &tch::TchError) -> TorchError {
    TorchError::Libtorch {
        operation: OPERATION,
        message: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn any_alignment_and_stride_gives_the_same_numbers() {
        let stored = bytes(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let transposed = Layout {
            dims: vec![3, 2],
            strides: vec![1, 3],
            kind: Kind::Float,
        };
        for shift in 0..8 {
            let shifted = [vec![7; shift], stored.clone()].concat();
            let layout = Layout::contiguous(vec![2, 3], Kind::Float);
            for (layout, expected) in [
                (&layout, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]),
                (&transposed, [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]),
            ] {
                let tensor =
                    tensor_from_bytes(&shifted[shift..], layout, Kind::Double, Device::Cpu)
                        .expect("within the bytes");
                assert!(tensor.is_contiguous());
                assert_eq!(tensor.size(), layout.dims);
                let values = Vec::<f64>::try_from(tensor.flatten(0, 1)).expect("values");
                assert_eq!(values, expected);
            }
        }
    }

    #[test]
    fn released_bytes_are_read_again() {
        let path = std::env::temp_dir().join(format!("released-{}", std::process::id()));
        let bytes: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).expect("write");
        let file = MappedFile::open(&path).expect("open");
        std::fs::remove_file(&path).expect("remove");
        assert_eq!(file[..], bytes);
        file.release(5000..90_000);
        assert_eq!(file[..], bytes);
    }

    #[test]
    fn a_tensor_outlives_its_bytes() {
        let stored = bytes(&[1.5, 2.5]);
        let layout = Layout::contiguous(vec![2], Kind::Float);
        let tensor = tensor_from_bytes(&stored, &layout, Kind::Float, Device::Cpu).expect("copy");
        drop(stored);
        assert_eq!(
            Vec::<f32>::try_from(tensor).expect("values"),
            vec![1.5, 2.5]
        );
    }

    #[test]
    fn layouts_beyond_the_bytes_are_refused() {
        let stored = bytes(&[1.0, 2.0, 3.0]);
        let kind = Kind::Float;
        for (dims, strides) in [
            (vec![4], vec![1]),
            (vec![2], vec![3]),
            (vec![2], vec![-1]),
            (vec![-2], vec![1]),
            (vec![2, 2], vec![1]),
            (vec![i64::MAX, 2], vec![1, i64::MAX]),
            (vec![i64::MAX], vec![i64::MAX]),
        ] {
            let layout = Layout {
                dims,
                strides,
                kind,
            };
            let outcome = tensor_from_bytes(&stored, &layout, kind, Device::Cpu);
            assert!(outcome.is_err(), "{layout:?}");
        }
        let empty = Layout::contiguous(vec![2, 0], kind);
        let tensor = tensor_from_bytes(&[], &empty, kind, Device::Cpu).expect("nothing");
        assert_eq!(tensor.size(), [2, 0]);
    }
}
