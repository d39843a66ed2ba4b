//! Decoding with cached keys and values.
//!
//! Shape suffixes: n new tokens of all rows, b rows, h heads, e width of a head, d width.

use std::mem;

use tch::{Kind, Tensor};
use torch_ext::{CACHE_BLOCK, CachedRows};

use crate::block::LayerCache;
use crate::cached::{Attender, CachedSpan};
use crate::context::Columns;
use crate::transformer::Model;

// What the plan counts with.
const _: () = assert!(CACHE_BLOCK == recipe::memory::CACHE_BLOCK);

/// Keys and values of all layers, in blocks of 16 positions that rows take and give back. Rows with the
/// same beginning share its blocks.
#[derive(Debug)]
pub struct KvCache {
    /// Keys `[blocks, h, e, 16]` and values `[blocks, h, 16, e]` of each layer; on a GPU the numbers of a block of
    /// keys lie in another order.
    layers: Vec<(Tensor, Tensor)>,
    free: Vec<u32>,
    /// How many rows hold each block.
    holders: Vec<u32>,
}

/// What a [`KvCache`] holds of one row.
#[derive(Debug, Default)]
pub struct CachedRow {
    pub(crate) blocks: Vec<u32>,
    pub(crate) len: usize,
}

impl CachedRow {
    /// Tokens that are cached.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl KvCache {
    /// An empty cache of so many blocks.
    pub fn new(model: &Model, num_blocks: usize) -> Self {
        let shape = &model.shape;
        let [blocks, heads, width, block] =
            [num_blocks, shape.kv_heads, shape.head_dim, CACHE_BLOCK].map(|n| n as i64);
        let options = (model.kind(), model.device());
        let memory = |dims| {
            match Attender::of(options.1, shape.head_dim) {
                // What no token has filled takes part with weight 0, and must be a number.
                Attender::Operators => Tensor::zeros(dims, options),
                Attender::Cpu | Attender::Device => Tensor::empty(dims, options),
            }
        };
        let layer = |_| {
            let keys = memory([blocks, heads, width, block]);
            (keys, memory([blocks, heads, block, width]))
        };
        Self {
            layers: (0..shape.layers).map(layer).collect(),
            free: (0..num_blocks as u32).rev().collect(),
            holders: vec![0; num_blocks],
        }
    }

    /// Blocks that hold so many positions.
    pub fn blocks_for(positions: usize) -> usize {
        positions.div_ceil(CACHE_BLOCK)
    }

    /// Blocks of it.
    pub(crate) fn num_blocks(&self) -> usize {
        self.holders.len()
    }

    /// Blocks that no row holds.
    pub fn num_free(&self) -> usize {
        self.free.len()
    }

    /// Another row with the same tokens. Full blocks are shared, and the last is copied where it is not full.
    ///
    /// # Panics
    /// When no block is free.
    pub fn fork(&mut self, row: &CachedRow) -> CachedRow {
        let mut fork = CachedRow {
            blocks: row.blocks[..Self::blocks_for(row.len)].to_vec(),
            len: row.len,
        };
        for block in &fork.blocks {
            self.holders[*block as usize] += 1;
        }
        if !row.len.is_multiple_of(CACHE_BLOCK)
            && let Some(last) = fork.blocks.last_mut()
        {
            let from = mem::replace(last, self.take());
            self.holders[from as usize] -= 1;
            let (from, to) = (i64::from(from), i64::from(*last));
            for (keys, values) in &self.layers {
                for tensor in [keys, values] {
                    tensor.get(to).copy_(&tensor.get(from));
                }
            }
        }
        fork
    }

    /// Frees the blocks that no other row holds.
    pub fn release(&mut self, row: CachedRow) {
        for block in row.blocks {
            let holders = &mut self.holders[block as usize];
            *holders -= 1;
            if *holders == 0 {
                self.free.push(block);
            }
        }
    }

    pub(crate) fn layers(&self) -> &[(Tensor, Tensor)] {
        &self.layers
    }

    fn take(&mut self) -> u32 {
        let Some(block) = self.free.pop() else {
            panic!("all {} blocks of the cache are held", self.holders.len())
        };
        self.holders[block as usize] = 1;
        block
    }

    pub(crate) fn make_room(&mut self, row: &mut CachedRow, new: usize) {
        while row.blocks.len() < Self::blocks_for(row.len + new) {
            row.blocks.push(self.take());
        }
    }
}

impl Model {
    /// Hidden states `[b, d]` (after the final norm) of the last of the tokens that follow the cached ones of
    /// each row; the keys and values of all are added to the cache. Rows may have any numbers of new tokens
    /// (but 0) and of cached ones, and nothing is padded. Call it under `no_grad`.
    ///
    /// `ids_n` are the new tokens, int64 `[n]`, those of each row behind each other, and `rows` each row and how
    /// many of them are its own.
    ///
    /// Equal to a full pass, but for rows beyond the trained length under dynamic rotary scaling
    /// ([`recipe::shape::RopeScaling::Dynamic`]): there a call turns by the row's present length, and cached
    /// keys stay as they were rotated, as in transformers.
    ///
    /// # Panics
    /// When the cache has no block left, `ids_n` is not as long as the rows say, or a row becomes longer than
    /// the model's positions.
    pub fn forward_cached(
        &self,
        ids_n: &Tensor,
        rows: &mut [(&mut CachedRow, usize)],
        cache: &mut KvCache,
    ) -> Tensor {
        self.assert_whole();
        for (row, new) in rows.iter_mut() {
            assert!(
                *new > 0 && row.len + *new <= self.shape.max_positions,
                "{new} tokens behind {}, and the model has {} positions",
                row.len,
                self.shape.max_positions
            );
            cache.make_room(row, *new);
        }
        let span = CachedRows::new(rows.iter().map(|(row, n)| (*n, row.len, &row.blocks[..])));
        assert_eq!(ids_n.size(), [span.num_tokens()], "new tokens of the rows");
        let options = (Kind::Int64, self.device());
        let to_device = |numbers: Vec<i64>| Tensor::from_slice(&numbers).to_device(options.1);
        let each = |of: fn((usize, usize), usize) -> usize| {
            let numbers = rows.iter().flat_map(|(row, new)| {
                (0..*new).map(move |i| of((row.len, row.len + new), i) as i64)
            });
            to_device(numbers.collect())
        };
        // Each token is a row of one column.
        let positions_n1 = each(|(past, _), i| past + i).unsqueeze(1);
        let lengths_n = each(|(_, total), _| total);
        let attender = Attender::of(options.1, self.shape.head_dim);
        let bias_hs = self.bias_of_keys(span.columns() as i64);
        let span = CachedSpan::new(span, bias_hs, self.window(), (attender, options.1));
        let context = self.cached_context(span, &positions_n1, &lengths_n);
        let mut x_n1d = self.embed(&ids_n.unsqueeze(1), &positions_n1, None);
        for (block, (keys, values)) in self.blocks().iter().zip(&cache.layers) {
            let layer = LayerCache { keys, values };
            x_n1d = block.forward(&x_n1d, &context, Some(&layer), 0.0, Columns::All);
        }
        let mut end = 0;
        let last = rows.iter_mut().map(|(row, new)| {
            row.len += *new;
            end += *new as i64;
            end - 1
        });
        let last_b: Vec<i64> = last.collect();
        let x_nd = x_n1d.squeeze_dim(1);
        let x_bd = if last_b.len() as i64 == ids_n.size()[0] {
            x_nd
        } else {
            x_nd.index_select(0, &to_device(last_b))
        };
        self.final_norm(&x_bd)
    }
}
