//! A step of decoding whose tables stay in their places on the device, so that it can be recorded and
//! repeated: one new token for each row.
//!
//! Shape suffixes: b rows, m columns of the table of blocks, h heads, s key positions, d width.

use tch::{Kind, Tensor};
use torch_ext::{CachedRows, DeviceRows};

use crate::block::LayerCache;
use crate::cache::{CachedRow, KvCache};
use crate::cached::{Attender, CachedSpan};
use crate::context::Columns;
use crate::transformer::Model;

/// What a step reads of its rows. Rows behind those that are loaded are fillers: they read and write a
/// block of the cache that is theirs.
#[derive(Debug)]
pub struct StepTables {
    /// The last token of each row, int64 `[b]`.
    ids_b: Tensor,
    rows: DeviceRows,
    /// What `ALiBi` adds, `[h, s]`.
    bias_hs: Option<Tensor>,
    filler: CachedRow,
}

impl StepTables {
    /// Whether a model's steps can run from such tables.
    pub fn serve(model: &Model) -> bool {
        Attender::of(model.device(), model.shape.head_dim) == Attender::Device
    }

    /// Tables of `rows` rows of up to `positions` tokens. Takes a block of the cache for fillers.
    ///
    /// # Panics
    /// When no block is free.
    pub fn new(model: &Model, cache: &mut KvCache, rows: usize, positions: usize) -> Self {
        let columns = KvCache::blocks_for(positions);
        let mut filler = CachedRow::default();
        cache.make_room(&mut filler, 1);
        Self {
            ids_b: Tensor::zeros([rows as i64], (Kind::Int64, model.device())),
            rows: DeviceRows::for_steps([rows, columns, cache.num_blocks()], model.device()),
            bias_hs: model.bias_of_keys(columns as i64),
            filler,
        }
    }

    /// Takes the first rows' tokens, int64 `[..]`, and the places of the next `steps` tokens of each row, whose
    /// keys and values count as cached from then on.
    ///
    /// # Panics
    /// When there are more rows than the tables have, they are longer, or the cache has no block left.
    pub fn load(
        &mut self,
        ids_b: &Tensor,
        rows: &mut [&mut CachedRow],
        steps: usize,
        cache: &mut KvCache,
    ) {
        for row in rows.iter_mut() {
            cache.make_room(row, steps);
        }
        let places = rows.iter().map(|row| (steps, row.len, &row.blocks[..]));
        self.rows
            .load(&CachedRows::new(places), self.filler.blocks[0]);
        for row in rows.iter_mut() {
            row.len += steps;
        }
        self.ids_b.narrow(0, 0, rows.len() as i64).copy_(ids_b);
    }

    /// Goes on to the next position, with these tokens, int64 `[b]`.
    pub fn advance(&mut self, ids_b: &Tensor) {
        self.ids_b.copy_(ids_b);
        self.rows.advance();
    }
}

impl Model {
    /// Hidden states `[b, d]` (after the final norm) of the tables' tokens, whose keys and values are added to the
    /// cache: as [`Self::forward_cached`]. Nothing waits for the device. Call it under `no_grad`.
    ///
    /// # Panics
    /// When the tables are of another model.
    pub fn step(&self, tables: &StepTables, cache: &KvCache) -> Tensor {
        let rows = tables.rows.share();
        let positions_b1 = rows.positions_n().unsqueeze(1);
        let lengths_b = rows.positions_n() + 1;
        let bias_hs = tables.bias_hs.as_ref().map(Tensor::shallow_clone);
        let span = CachedSpan::on_device(rows, bias_hs, self.window());
        let context = self.cached_context(span, &positions_b1, &lengths_b);
        let mut x_b1d = self.embed(&tables.ids_b.unsqueeze(1), &positions_b1, None);
        for (block, (keys, values)) in self.blocks().iter().zip(cache.layers()) {
            let layer = LayerCache { keys, values };
            x_b1d = block.forward(&x_b1d, &context, Some(&layer), 0.0, Columns::All);
        }
        self.final_norm(&x_b1d.squeeze_dim(1))
    }
}
