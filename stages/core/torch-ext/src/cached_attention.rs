//! Attention over keys and values that are cached in blocks, on the CPU.
//!
//! Shape suffixes: n new tokens of all rows, h query heads, k key heads, e width of a head, s positions,
//! b rows, m columns of the table of blocks.

use std::collections::HashSet;

use tch::{Device, Kind, Tensor};

use crate::TorchError;
use crate::ffi::{self, check};
use crate::kind::wide_kind;
use crate::ops::{argument, describe};

/// Positions of a block.
pub const CACHE_BLOCK: usize = 16;

/// Which rows new tokens belong to, and which blocks hold what came before them.
#[derive(Debug, Clone, Default)]
pub struct CachedRows {
    counts: Vec<i64>,
    pasts: Vec<i64>,
    table: Vec<i32>,
    columns: usize,
    num_tokens: i64,
    longest: i64,
    num_blocks: i64,
}

impl CachedRows {
    /// For each row: its number of new tokens, of cached ones, and its blocks, of which there are enough for
    /// both.
    ///
    /// # Panics
    /// When a row has too few blocks, or two rows would write into one.
    pub fn new<'a>(rows: impl Iterator<Item = (usize, usize, &'a [u32])>) -> Self {
        let rows: Vec<_> = rows.collect();
        let columns = rows.iter().map(|(.., blocks)| blocks.len()).max();
        let mut all = Self {
            columns: columns.unwrap_or(0),
            ..Self::default()
        };
        let mut written = HashSet::new();
        for (count, past, blocks) in rows {
            let room = blocks.len() * CACHE_BLOCK;
            assert!(
                past <= room && count <= room - past,
                "{past} and {count} tokens in {} blocks",
                blocks.len()
            );
            if count > 0 {
                for block in &blocks[past / CACHE_BLOCK..(past + count).div_ceil(CACHE_BLOCK)] {
                    assert!(written.insert(*block), "two rows write into block {block}");
                }
            }
            all.counts.push(count as i64);
            all.pasts.push(past as i64);
            all.num_tokens += count as i64;
            all.longest = all.longest.max((count + past) as i64);
            for block in blocks {
                all.num_blocks = all.num_blocks.max(i64::from(*block) + 1);
                let block = i32::try_from(*block);
                all.table
                    .push(block.unwrap_or_else(|_| panic!("a block beyond 2^31")));
            }
            all.table.resize(all.counts.len() * all.columns, 0);
        }
        all
    }

    /// New tokens of each row.
    pub fn counts(&self) -> &[i64] {
        &self.counts
    }

    /// Cached tokens of each row.
    pub fn pasts(&self) -> &[i64] {
        &self.pasts
    }

    /// The blocks of each row, `[b, m]`, 0 behind its last.
    pub fn table(&self) -> &[i32] {
        &self.table
    }

    /// Columns of the table.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Blocks that a cache must have for these rows.
    pub(crate) fn num_blocks(&self) -> i64 {
        self.num_blocks
    }

    /// New tokens of all rows.
    pub fn num_tokens(&self) -> i64 {
        self.num_tokens
    }
}

/// What the products of queries and keys go through.
#[derive(Debug)]
pub struct CachedOptions<'a> {
    /// Multiplied with.
    pub scale: f64,
    /// Keys that a query sees at most, its own the last (1 or more); `None`: all.
    pub window: Option<usize>,
    /// Added to the products, by head and position of the key, `[h, s]` in f32 (f64 for f64).
    pub bias_hs: Option<&'a Tensor>,
}

/// Adds the keys and values of new tokens to the cache, then `softmax(scale q k^T) v` of each of their
/// queries over its row's tokens up to its own, `[n, h, e]`. The new tokens of a row lie behind each other, those
/// of the rows in their order. Without gradients.
///
/// `cache` holds keys `[blocks, k, e, 16]` and values `[blocks, k, 16, e]`.
///
/// # Errors
/// When shapes, types or devices do not fit, or libtorch throws.
pub fn cached_attention(
    [q_nhe, k_nke, v_nke]: [&Tensor; 3],
    cache: (&Tensor, &Tensor),
    rows: &CachedRows,
    options: &CachedOptions,
) -> Result<Tensor, TorchError> {
    let operation = "cached_attention";
    let extent = Extent {
        device: Device::Cpu,
        tokens: rows.num_tokens,
        longest: rows.longest,
        blocks: rows.num_blocks,
    };
    validate(operation, [q_nhe, k_nke, v_nke], cache, &extent, options)?;
    let longest = rows.longest.max(1);
    let window = options.window.map_or(longest, |window| {
        i64::try_from(window).unwrap_or(longest).clamp(1, longest)
    });
    let mut out = std::ptr::null_mut();
    // SAFETY: the tensors are borrowed for this call, and that all blocks and positions lie inside them was
    // checked; `out` is a valid place for one pointer, which on success holds a tensor of which we are the
    // only owner.
    unsafe {
        check(
            operation,
            ffi::rlhf_cached_attention(
                q_nhe.as_ptr(),
                k_nke.as_ptr(),
                v_nke.as_ptr(),
                cache.0.as_ptr(),
                cache.1.as_ptr(),
                rows.table.as_ptr(),
                rows.columns as i64,
                rows.counts.as_ptr(),
                rows.pasts.as_ptr(),
                rows.counts.len() as i64,
                options.scale,
                window,
                options.bias_hs.map_or(std::ptr::null(), Tensor::as_ptr),
                &raw mut out,
            ),
        )?;
        Ok(Tensor::from_ptr(out))
    }
}

/// What tensors must lie on and hold.
pub(crate) struct Extent {
    pub(crate) device: Device,
    /// New tokens.
    pub(crate) tokens: i64,
    /// Positions of the longest row.
    pub(crate) longest: i64,
    /// Blocks of the cache, at least.
    pub(crate) blocks: i64,
}

pub(crate) fn validate(
    operation: &'static str,
    [q_nhe, k_nke, v_nke]: [&Tensor; 3],
    (keys, values): (&Tensor, &Tensor),
    extent: &Extent,
    options: &CachedOptions,
) -> Result<(), TorchError> {
    let refuse = |name, tensor: &Tensor, expected: &str| {
        Err(argument(operation, name, &describe(tensor), expected))
    };
    let (kind, q) = (q_nhe.kind(), q_nhe.size());
    let known = matches!(kind, Kind::Float | Kind::Double | Kind::BFloat16);
    let there = |tensor: &Tensor| tensor.device() == extent.device && tensor.kind() == kind;
    let packed = |tensor: &Tensor| tensor.stride().last() == Some(&1);
    if !known || q.len() != 3 || q[0] != extent.tokens || !there(q_nhe) || !packed(q_nhe) {
        let expected = format!(
            "[{}, h, e] in Float, Double or BFloat16 on {:?}",
            extent.tokens, extent.device
        );
        return refuse("q_nhe", q_nhe, &expected);
    }
    let k = k_nke.size();
    let grouped = k.len() == 3 && k[1] > 0 && q[1] % k[1] == 0;
    if !grouped || [k[0], k[2]] != [q[0], q[2]] || !there(k_nke) || !packed(k_nke) {
        return refuse(
            "k_nke",
            k_nke,
            "as many tokens, and heads that divide the queries'",
        );
    }
    if v_nke.size() != k || !there(v_nke) || !packed(v_nke) {
        return refuse("v_nke", v_nke, "the keys' shape");
    }
    let blocks = keys.size().first().copied().unwrap_or(0);
    let block = CACHE_BLOCK as i64;
    for (name, tensor, dims) in [
        ("keys", keys, [blocks, k[1], k[2], block]),
        ("values", values, [blocks, k[1], block, k[2]]),
    ] {
        if tensor.size() != dims || !there(tensor) || !tensor.is_contiguous() {
            return refuse(name, tensor, &format!("{dims:?}"));
        }
    }
    if extent.blocks > blocks {
        let expected = format!("{} blocks, which the rows name", extent.blocks);
        return refuse("keys", keys, &expected);
    }
    let wide = wide_kind(kind);
    let fits = |bias: &Tensor| {
        let size = bias.size();
        let covers = size.len() == 2 && size[0] == q[1] && size[1] >= extent.longest;
        covers && bias.kind() == wide && bias.device() == extent.device && packed(bias)
    };
    match options.bias_hs {
        Some(bias) if !fits(bias) => {
            let expected = format!("{wide:?} [{}, {} or more]", q[1], extent.longest);
            refuse("bias_hs", bias, &expected)
        }
        _ => Ok(()),
    }
}
