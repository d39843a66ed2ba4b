//! Numbers in blocks of 32 that share a scale: the quantized types of GGUF.
//!
//! Source: ggml's `ggml-common.h` and `ggml-quants.c` (`block_q8_0`, `block_q4_0`, `block_q4_1`).

use half::f16;

/// Numbers of a block.
pub(super) const BLOCK: usize = 32;

/// How a block is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockType {
    /// A scale `d` (f16) and 32 bytes `q`: the numbers are `d q`.
    Q8_0,
    /// A scale and 32 half-bytes: `d (q - 8)`.
    Q4_0,
    /// A scale, a minimum `m` (f16) and 32 half-bytes: `d q + m`.
    Q4_1,
}

impl BlockType {
    /// Bytes of a block.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Q8_0 => 2 + BLOCK,
            Self::Q4_0 => 2 + BLOCK / 2,
            Self::Q4_1 => 4 + BLOCK / 2,
        }
    }

    /// The numbers of whole blocks as the bytes of f32s, to the bit as ggml computes them.
    pub(super) fn dequantize(self, bytes: &[u8]) -> Vec<u8> {
        let blocks = bytes.chunks_exact(self.bytes());
        let mut out = Vec::with_capacity(blocks.len() * BLOCK * size_of::<f32>());
        let mut push = |number: f32| out.extend_from_slice(&number.to_le_bytes());
        for block in blocks {
            let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
            let scale = half(0);
            match self {
                Self::Q8_0 => {
                    let quants = block[2..].iter();
                    quants.for_each(|q| push(f32::from(q.cast_signed()) * scale));
                }
                Self::Q4_0 => half_bytes(&block[2..]).for_each(|q| push((q - 8.0) * scale)),
                Self::Q4_1 => {
                    let minimum = half(2);
                    half_bytes(&block[4..]).for_each(|q| push(q * scale + minimum));
                }
            }
        }
        out
    }
}

/// The low halves of all bytes, then the high ones.
fn half_bytes(quants: &[u8]) -> impl Iterator<Item = f32> {
    let low = quants.iter().map(|q| f32::from(q & 15));
    low.chain(quants.iter().map(|q| f32::from(q >> 4)))
}
