//! A step of decoding whose tables stay in their places on the device, so that it can be recorded and
//! repeated: one new token for each row.
//!
//! Shape suffixes: b rows, m columns of the table of blocks, h heads, s key positions, d width.

use tch::{Kind, Tensor};
use torch_ext::DeviceRows;

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
        let (rows, columns) = (rows as i64, KvCache::blocks_for(positions) as i64);
        let (long, int) = ((Kind::Int64, model.device()), (Kind::Int, model.device()));
        let mut filler = CachedRow::default();
        cache.make_room(&mut filler, 1);
        Self {
            ids_b: Tensor::zeros([rows], long),
            rows: DeviceRows {
                row_n: Tensor::arange(rows, int),
                position_n: Tensor::zeros([rows], int),
                table_bm: Tensor::zeros([rows, columns], int),
            },
            bias_hs: model.bias_of_keys(columns),
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
        let size = self.rows.table_bm.size();
        let (all, columns) = (size[0] as usize, size[1] as usize);
        assert!(rows.len() <= all, "{} rows in tables of {all}", rows.len());
        let filler = self.filler.blocks[0] as i32;
        let mut positions = vec![0; all];
        let mut table = vec![filler; all * columns];
        for (index, row) in rows.iter_mut().enumerate() {
            positions[index] = row.len as i32;
            cache.make_room(row, steps);
            assert!(
                row.blocks.len() <= columns,
                "a row of {} blocks in tables of {columns}",
                row.blocks.len()
            );
            for (place, block) in table[index * columns..].iter_mut().zip(&row.blocks) {
                *place = *block as i32;
            }
            row.len += steps;
        }
        // One copy for all, since it waits for the device.
        let numbers = Tensor::from_slice(&[positions, table].concat()).to_device(ids_b.device());
        self.rows
            .position_n
            .copy_(&numbers.narrow(0, 0, all as i64));
        let table = numbers.narrow(0, all as i64, (all * columns) as i64);
        self.rows
            .table_bm
            .copy_(&table.view_as(&self.rows.table_bm));
        self.ids_b.narrow(0, 0, rows.len() as i64).copy_(ids_b);
    }

    /// Goes on to the next position, with these tokens, int64 `[b]`.
    pub fn advance(&mut self, ids_b: &Tensor) {
        self.ids_b.copy_(ids_b);
        let _ = self.rows.position_n.g_add_scalar_(1);
    }
}

impl Model {
    /// Hidden states `[b, d]` (after the final norm) of the tables' tokens, whose keys and values are added to the
    /// cache: as [`Self::forward_cached`]. Nothing waits for the device. Call it under `no_grad`.
    ///
    /// # Panics
    /// When the tables are of another model.
    pub fn step(&self, tables: &StepTables, cache: &KvCache) -> Tensor {
        let rows = DeviceRows {
            row_n: tables.rows.row_n.shallow_clone(),
            position_n: tables.rows.position_n.shallow_clone(),
            table_bm: tables.rows.table_bm.shallow_clone(),
        };
        let positions_b1 = rows.position_n.to_kind(Kind::Int64).unsqueeze(1);
        let lengths_b = rows.position_n.to_kind(Kind::Int64) + 1;
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
