//! Attention over keys and values that are cached in blocks, on a GPU.
//!
//! Shape suffixes: n new tokens of all rows, h query heads, k key heads, e width of a head, b rows,
//! m columns of the table of blocks.

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use crate::cached_attention::{CachedOptions, CachedRows, Extent, validate};
use crate::ffi::{self, check};
use crate::kernels::{has_device_kernels, multiprocessors};
use crate::row_attention::{RowSpans, row_attention, serves_rows};
use crate::{CACHE_BLOCK, TorchError};

/// The widest head that the kernel takes.
pub const WIDEST_DEVICE_HEAD: usize = 256;
/// Parts that the keys of a row are taken in where rows are few, at most.
const MOST_SPLITS: i64 = 16;

/// In the place of a number of parts: keys and values are added to the cache, and nothing is attended to.
const APPEND: i64 = 0;

/// [`CachedRows`] as a GPU reads them: tables that lie on it, and may be changed there between two calls. The kernel
/// checks nothing of them, so their numbers come from rows that were checked on the host.
#[derive(Debug)]
pub struct DeviceRows {
    /// The row of each new token, int32 `[n]`.
    row_n: Tensor,
    /// Its position in the row, int32 `[n]`.
    position_n: Tensor,
    /// The blocks of each row, int32 `[b, m]`, enough for all positions.
    table_bm: Tensor,
    /// Blocks that a cache has at least.
    num_blocks: i64,
    /// How many steps the rows have blocks for.
    steps_left: i64,
    /// Where each row's tokens begin and end, where nothing of any row was cached before.
    fresh: Option<RowSpans>,
}

/// Mirrors `Span` in `cpp/device_ops.cpp`.
#[repr(C)]
pub(crate) struct RawSpan {
    row_n: *const C_tensor,
    position_n: *const C_tensor,
    table_bm: *const C_tensor,
    splits: i64,
}

impl DeviceRows {
    /// Copies the rows' tables to a device.
    ///
    /// # Panics
    /// When libtorch throws.
    pub fn new(rows: &CachedRows, device: Device) -> Self {
        let (mut row_n, mut position_n) = (Vec::new(), Vec::new());
        for (row, (count, past)) in rows.counts().iter().zip(rows.pasts()).enumerate() {
            for position in *past..past + count {
                row_n.push(row as i32);
                position_n.push(position as i32);
            }
        }
        // One copy for all, since each waits for the device.
        let numbers = [&row_n[..], &position_n, rows.table()].concat();
        let all = Tensor::from_slice(&numbers).to_device(device);
        let tokens = row_n.len() as i64;
        let num_rows = rows.counts().len() as i64;
        let table = all.narrow(0, 2 * tokens, rows.table().len() as i64);
        Self {
            row_n: all.narrow(0, 0, tokens),
            position_n: all.narrow(0, tokens, tokens),
            table_bm: table.view([num_rows, rows.columns() as i64]),
            num_blocks: rows.num_blocks(),
            steps_left: 1,
            fresh: (rows.pasts().iter().all(|past| *past == 0))
                .then(|| RowSpans::new(rows.counts(), rows.counts(), device)),
        }
    }

    /// Tables for steps of up to `rows` rows, one new token each, of up to `columns` blocks of a cache that has
    /// `num_blocks`. [`Self::load`] says what they hold.
    ///
    /// # Panics
    /// When libtorch throws.
    pub fn for_steps([rows, columns, num_blocks]: [usize; 3], device: Device) -> Self {
        let int = (Kind::Int, device);
        let (rows, columns) = (rows as i64, columns as i64);
        Self {
            row_n: Tensor::arange(rows, int),
            position_n: Tensor::zeros([rows], int),
            table_bm: Tensor::zeros([rows, columns], int),
            num_blocks: num_blocks as i64,
            steps_left: 0,
            fresh: None,
        }
    }

    /// Begins steps at the first new token of each of these rows; they go on to the last by [`Self::advance`]. Rows of the tables
    /// behind them are fillers, which read and write the block `filler` alone.
    ///
    /// # Panics
    /// When there are more rows than the tables have, they are longer or of another cache, or their numbers of new tokens
    /// differ.
    pub fn load(&mut self, rows: &CachedRows, filler: u32) {
        let [all, columns] = [0, 1].map(|dim| self.table_bm.size()[dim] as usize);
        let (count, steps) = (rows.counts().len(), rows.counts().first().copied());
        assert!(
            count <= all && rows.columns() <= columns,
            "{count} rows of {} blocks in tables of {all} rows of {columns}",
            rows.columns()
        );
        let blocks = rows.num_blocks().max(i64::from(filler) + 1);
        assert!(
            blocks <= self.num_blocks,
            "{blocks} blocks of a cache of {}",
            self.num_blocks
        );
        let steps = steps.unwrap_or(0);
        assert!(
            rows.counts().iter().all(|it| *it == steps),
            "{:?} new tokens",
            rows.counts()
        );
        let mut positions = vec![0; all];
        let mut table = vec![filler as i32; all * columns];
        for (position, past) in positions.iter_mut().zip(rows.pasts()) {
            *position = *past as i32;
        }
        let of_rows = rows.table().chunks(rows.columns().max(1));
        for (places, blocks) in table.chunks_mut(columns.max(1)).zip(of_rows) {
            places[..blocks.len()].copy_from_slice(blocks);
        }
        // One copy for all, since it waits for the device.
        let numbers = [positions, table].concat();
        let numbers = Tensor::from_slice(&numbers).to_device(self.table_bm.device());
        let (all, size) = (all as i64, (all * columns) as i64);
        self.position_n.copy_(&numbers.narrow(0, 0, all));
        let table = numbers.narrow(0, all, size);
        self.table_bm.copy_(&table.view_as(&self.table_bm));
        self.steps_left = steps;
    }

    /// Goes on to the next position. Where steps are recorded and repeated, it is for the caller to count them.
    pub fn advance(&mut self) {
        self.steps_left -= 1;
        let _ = self.position_n.g_add_scalar_(1);
    }

    /// The position of each new token, int64 `[n]`.
    pub fn positions_n(&self) -> Tensor {
        self.position_n.to_kind(Kind::Int64)
    }

    /// The same tables: what is loaded into one is in both.
    #[must_use]
    pub fn share(&self) -> Self {
        Self {
            row_n: self.row_n.shallow_clone(),
            position_n: self.position_n.shallow_clone(),
            table_bm: self.table_bm.shallow_clone(),
            fresh: None,
            ..*self
        }
    }

    /// Whether these are tables for so many tokens.
    fn fit(&self, tokens: i64, device: Device) -> bool {
        let tensors = [&self.row_n, &self.position_n, &self.table_bm];
        let known = tensors.iter().all(|tensor| {
            tensor.kind() == Kind::Int && tensor.device() == device && tensor.is_contiguous()
        });
        known
            && self.row_n.size() == [tokens]
            && self.position_n.size() == [tokens]
            && self.table_bm.dim() == 2
    }
}

/// Adds keys `[n, k, e]` and values to the cache, and attends with `q_nhe` to all that the rows hold then,
/// `[n, h, e]`: as [`crate::cached_attention`], on a device for which [`has_device_kernels`] says so. The cache's
/// tensors have the same sizes, but another order of their numbers. Without gradients.
///
/// # Errors
/// When shapes, types or devices do not fit.
///
/// # Panics
/// When the device has no kernels, the tables are of other rows or all steps that were loaded are gone, or a head is wider
/// than [`WIDEST_DEVICE_HEAD`].
pub fn device_attention(
    [q_nhe, k_nke, v_nke]: [&Tensor; 3],
    (keys, values): (&Tensor, &Tensor),
    rows: &DeviceRows,
    options: &CachedOptions,
) -> Result<Tensor, TorchError> {
    let operation = "device_attention";
    let device = q_nhe.device();
    let tokens = q_nhe.size().first().copied().unwrap_or(0);
    assert!(
        has_device_kernels(device) && rows.fit(tokens, device),
        "tables of {:?} rows and {:?} tokens for {:?} on {device:?}",
        rows.table_bm.size(),
        rows.row_n.size(),
        q_nhe.size()
    );
    assert!(rows.steps_left > 0, "no step is loaded any more");
    let extent = Extent {
        device,
        tokens,
        longest: rows.table_bm.size()[1] * CACHE_BLOCK as i64,
        blocks: rows.num_blocks,
    };
    validate(
        operation,
        [q_nhe, k_nke, v_nke],
        (keys, values),
        &extent,
        options,
    )?;
    let (width, key_heads) = (q_nhe.size()[2], k_nke.size()[1]);
    assert!(
        width <= WIDEST_DEVICE_HEAD as i64,
        "a head of {width} numbers, and the kernel takes {WIDEST_DEVICE_HEAD}"
    );
    // Rows that begin attend among themselves, by libtorch's kernels that multiply in tiles.
    let prefill = rows.fresh.as_ref().filter(|spans| {
        options.bias_hs.is_none()
            && options.window.is_none_or(|it| it as i64 >= spans.longest())
            && serves_rows(device, q_nhe.kind(), width)
    });
    let blocks = (tokens * key_heads).max(1);
    let splits = (2 * multiprocessors() / blocks).clamp(1, MOST_SPLITS);
    let raw = RawSpan {
        row_n: rows.row_n.as_ptr(),
        position_n: rows.position_n.as_ptr(),
        table_bm: rows.table_bm.as_ptr(),
        splits: if prefill.is_some() { APPEND } else { splits },
    };
    let window = options
        .window
        .map_or(i64::MAX, |window| window.max(1) as i64);
    let mut out = std::ptr::null_mut();
    // SAFETY: the tensors are borrowed for this call, and their sizes were checked; `out` is a valid place for
    // one pointer, which on success holds a tensor of which we are the only owner.
    unsafe {
        check(
            operation,
            ffi::rlhf_device_attention(
                q_nhe.as_ptr(),
                k_nke.as_ptr(),
                v_nke.as_ptr(),
                keys.as_ptr(),
                values.as_ptr(),
                &raw const raw,
                options.scale,
                window,
                options.bias_hs.map_or(std::ptr::null(), Tensor::as_ptr),
                &raw mut out,
            ),
        )?;
        let out_nhe = Tensor::from_ptr(out);
        let Some(spans) = prefill else {
            return Ok(out_nhe);
        };
        let [q, k, v] = [q_nhe, k_nke, v_nke].map(|x| x.transpose(0, 1));
        Ok(row_attention(&q, &k, &v, spans, options.scale)?.transpose(0, 1))
    }
}
