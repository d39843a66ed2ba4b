//! Decoding with cached keys and values.
//!
//! Shape suffixes: b rows, t new positions, s all positions, h heads, e width of a head, d width.

use tch::{Kind, Tensor};

use crate::attention::Span;
use crate::block::LayerCache;
use crate::transformer::Model;

/// Keys and values of all layers, in memory that is allocated once.
#[derive(Debug)]
pub struct KvCache {
    /// Keys and values `[b, h, capacity, e]` of each layer.
    layers: Vec<(Tensor, Tensor)>,
    len: usize,
    capacity: usize,
}

impl KvCache {
    /// An empty cache for `batch` rows of at most `max_len` positions.
    pub fn new(model: &Model, batch: usize, max_len: usize) -> Self {
        let shape = &model.shape;
        let dims = [batch, shape.kv_heads, max_len, shape.head_dim].map(|n| n as i64);
        let zeros = || Tensor::zeros(dims, (model.kind(), model.device()));
        Self {
            layers: (0..shape.layers).map(|_| (zeros(), zeros())).collect(),
            len: 0,
            capacity: max_len,
        }
    }

    /// Positions filled so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position is filled.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keeps the given rows (int64 indices `[n]`), in that order; the others' memory is freed.
    pub fn retain(&mut self, rows: &Tensor) {
        for (keys, values) in &mut self.layers {
            *keys = keys.index_select(0, rows);
            *values = values.index_select(0, rows);
        }
    }
}

impl Model {
    /// Hidden states `[b, t, d]` (after the final norm) of tokens that follow the cached ones; their
    /// keys and values are added to the cache. The first call takes the prompts, later ones a token
    /// each. Call it under `no_grad`.
    ///
    /// Equal to a full pass, but for rows beyond the trained length under dynamic rotary scaling
    /// ([`recipe::shape::RopeScaling::Dynamic`]): there a call turns by the row's present length, and cached
    /// keys stay as they were rotated, as in transformers.
    ///
    /// - `ids_bt`: int64 `[b, t]`;
    /// - `positions_bt`: each token's position among the real tokens of its row, int64 `[b, t]`
    ///   (padding: 0);
    /// - `valid_bs`: `true` on real tokens, bool `[b, cache.len() + t]`, the new tokens included;
    ///   `None` where nothing is padded.
    ///
    /// # Panics
    /// When the cache is too short, or `valid_bs` has another length.
    pub fn forward_cached(
        &self,
        ids_bt: &Tensor,
        positions_bt: &Tensor,
        cache: &mut KvCache,
        valid_bs: Option<&Tensor>,
    ) -> Tensor {
        let new = ids_bt.size()[1];
        let (past, total) = (cache.len as i64, cache.len as i64 + new);
        assert!(
            total <= cache.capacity as i64,
            "{total} positions in a cache of {}",
            cache.capacity
        );
        if let Some(valid_bs) = valid_bs {
            let expected = [ids_bt.size()[0], total];
            assert_eq!(valid_bs.size(), expected, "the mask covers all positions");
            assert_eq!(valid_bs.kind(), Kind::Bool, "the mask is boolean");
        }
        let span = Span {
            past,
            queries: new,
            valid_bs,
            prefixes: &[],
            device: self.device(),
        };
        let context = self.span_context(&span, positions_bt, None);
        let mut x_btd = self.embed(ids_bt, positions_bt, None);
        for (block, (keys, values)) in self.blocks().iter().zip(&cache.layers) {
            let layer = LayerCache { keys, values, past };
            x_btd = block.forward(&x_btd, &context, Some(&layer), 0.0);
        }
        cache.len += new as usize;
        self.final_norm(&x_btd)
    }
}
