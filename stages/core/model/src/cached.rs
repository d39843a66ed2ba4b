//! Attention of new tokens over the cache.
//!
//! Shape suffixes: n new tokens of all rows, h query heads, k key heads, e width of a head, s key
//! positions, m blocks of a row; of the rows of a group: g rows, t queries.

use tch::{Device, Kind, Tensor};
use torch_ext::{
    CACHE_BLOCK, CachedOptions, CachedRows, DeviceRows, WIDEST_DEVICE_HEAD, cached_attention,
    device_attention, has_device_kernels,
};

use crate::block::{LayerCache, fused};

const BLOCK: i64 = CACHE_BLOCK as i64;

/// Who attends over the cache. Each has its own order of the numbers in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attender {
    /// The kernel of the CPU.
    Cpu,
    /// That of the GPU.
    Device,
    /// Operators that run on every device.
    Operators,
}

impl Attender {
    /// For heads of so many numbers.
    pub(crate) fn of(device: Device, head_dim: usize) -> Self {
        if has_device_kernels(device) && head_dim <= WIDEST_DEVICE_HEAD {
            Self::Device
        } else if device == Device::Cpu && !torch_ext::is_plain() {
            Self::Cpu
        } else {
            Self::Operators
        }
    }
}

/// The rows of a pass over the cache, and what bounds or shifts their products.
#[derive(Debug)]
pub(crate) struct CachedSpan {
    rows: SpanRows,
    /// Added to the products by head and position of the key, `[h, s]`, f32 (f64 for f64).
    bias_hs: Option<Tensor>,
    window: Option<usize>,
}

#[derive(Debug)]
pub(crate) enum SpanRows {
    Cpu(CachedRows),
    Device(DeviceRows),
    Operators(Gathered),
}

impl CachedSpan {
    /// `window`: that of the layers that have one.
    pub(crate) fn new(
        rows: CachedRows,
        bias_hs: Option<Tensor>,
        window: Option<usize>,
        (attender, device): (Attender, Device),
    ) -> Self {
        let rows = match attender {
            Attender::Cpu => SpanRows::Cpu(rows),
            Attender::Device => SpanRows::Device(DeviceRows::new(&rows, device)),
            Attender::Operators => {
                SpanRows::Operators(Gathered::new(&rows, bias_hs.as_ref(), window, device))
            }
        };
        Self {
            rows,
            bias_hs,
            window,
        }
    }

    /// The same of tables that lie on the device already.
    pub(crate) fn on_device(
        rows: DeviceRows,
        bias_hs: Option<Tensor>,
        window: Option<usize>,
    ) -> Self {
        Self {
            rows: SpanRows::Device(rows),
            bias_hs,
            window,
        }
    }

    /// Adds keys and values to the cache, and attends to all of their rows, `[n, h, e]`; `local`: the layer
    /// has the window.
    pub(crate) fn attend(
        &self,
        qkv: [&Tensor; 3],
        layer: &LayerCache,
        scale: f64,
        local: bool,
    ) -> Tensor {
        let options = CachedOptions {
            scale,
            window: self.window.filter(|_| local),
            bias_hs: self.bias_hs.as_ref(),
        };
        let cache = (layer.keys, layer.values);
        fused(match &self.rows {
            SpanRows::Cpu(rows) => cached_attention(qkv, cache, rows, &options),
            SpanRows::Device(rows) => device_attention(qkv, cache, rows, &options),
            SpanRows::Operators(gathered) => return gathered.attend(qkv, layer, scale, local),
        })
    }
}

/// The same out of operators that run on every device: the rows' blocks are put behind each other first, up to
/// the longest row. What no token has filled is masked, but must be a number ([`crate::KvCache::new`]).
#[derive(Debug)]
pub(crate) struct Gathered {
    /// The block of each new token, and its place there.
    slots_n: [Tensor; 2],
    /// Rows of one new token, and rows of several.
    groups: Vec<Group>,
}

#[derive(Debug)]
struct Group {
    /// The new tokens of each row, the last repeated to the length of the longest, `[g * t]`.
    tokens: Tensor,
    /// Which of those are no repetitions, and what they are.
    real: [Tensor; 2],
    /// Blocks of each row, `[g * m]`.
    blocks: Tensor,
    dims: [i64; 2],
    /// Added to the products in layers without a window, and in those with one.
    masks: [Tensor; 2],
}

impl Gathered {
    fn new(
        rows: &CachedRows,
        bias_hs: Option<&Tensor>,
        window: Option<usize>,
        device: Device,
    ) -> Self {
        let to_device = |numbers: &[i64]| Tensor::from_slice(numbers).to_device(device);
        let (mut blocks, mut places) = (Vec::new(), Vec::new());
        let tables = rows.table().chunks(rows.columns().max(1));
        for ((count, past), table) in rows.counts().iter().zip(rows.pasts()).zip(tables) {
            for position in *past..past + count {
                blocks.push(i64::from(table[(position / BLOCK) as usize]));
                places.push(position % BLOCK);
            }
        }
        let (single, several): (Vec<usize>, _) =
            (0..rows.counts().len()).partition(|row| rows.counts()[*row] == 1);
        let groups = [single, several].into_iter().filter(|it| !it.is_empty());
        Self {
            slots_n: [to_device(&blocks), to_device(&places)],
            groups: groups
                .map(|members| Group::new(rows, &members, bias_hs, window, device))
                .collect(),
        }
    }

    fn attend(
        &self,
        [q_nhe, k_nke, v_nke]: [&Tensor; 3],
        layer: &LayerCache,
        scale: f64,
        local: bool,
    ) -> Tensor {
        let [block_n, place_n] = self.slots_n.each_ref().map(|it| Some(it.shallow_clone()));
        let places = [block_n.as_ref(), None, None, place_n.as_ref()];
        let _ = layer.keys.shallow_clone().index_put_(&places, k_nke, false);
        let places = [block_n.as_ref(), None, place_n.as_ref(), None];
        let _ = layer
            .values
            .shallow_clone()
            .index_put_(&places, v_nke, false);
        let out_nhe = q_nhe.zeros_like();
        for group in &self.groups {
            let y = group.attend(q_nhe, layer, scale, local);
            let [which, tokens] = &group.real;
            let _ = out_nhe
                .shallow_clone()
                .index_copy_(0, tokens, &y.index_select(0, which));
        }
        out_nhe
    }
}

impl Group {
    fn new(
        rows: &CachedRows,
        members: &[usize],
        bias_hs: Option<&Tensor>,
        window: Option<usize>,
        device: Device,
    ) -> Self {
        let to_device = |numbers: &[i64]| Tensor::from_slice(numbers).to_device(device);
        let counts: Vec<i64> = members.iter().map(|row| rows.counts()[*row]).collect();
        let pasts: Vec<i64> = members.iter().map(|row| rows.pasts()[*row]).collect();
        let longest = counts.iter().max().copied().unwrap_or(0);
        let columns = rows.columns();
        let (mut tokens, mut which, mut real, mut blocks) = (vec![], vec![], vec![], vec![]);
        for (row, count) in members.iter().zip(&counts) {
            let first: i64 = rows.counts()[..*row].iter().sum();
            for i in 0..longest {
                if i < *count {
                    which.push(tokens.len() as i64);
                    real.push(first + i);
                }
                tokens.push(first + i.min(count - 1));
            }
            let table = &rows.table()[row * columns..(row + 1) * columns];
            blocks.extend(table.iter().map(|block| i64::from(*block)));
        }
        let options = (Kind::Int64, device);
        let keys_s = Tensor::arange(columns as i64 * BLOCK, options);
        let steps_t = Tensor::arange(longest, options);
        let last_g1 = to_device(&counts).unsqueeze(1) - 1;
        let own_gt1 = (to_device(&pasts).unsqueeze(1) + steps_t.minimum(&last_g1)).unsqueeze(-1);
        let mask = |window: Option<usize>| {
            let mut hidden_gts = keys_s.gt_tensor(&own_gt1);
            if let Some(window) = window {
                let first_gt1 = &own_gt1 - (window as i64 - 1);
                hidden_gts = hidden_gts.logical_or(&keys_s.lt_tensor(&first_gt1));
            }
            let hidden_g1ts = hidden_gts.unsqueeze(1);
            let added = match bias_hs {
                Some(bias_hs) => bias_hs.narrow(1, 0, keys_s.size()[0]).unsqueeze(1),
                None => Tensor::zeros([1, 1], (Kind::Float, device)),
            };
            added.masked_fill(&hidden_g1ts, f64::NEG_INFINITY)
        };
        Self {
            tokens: to_device(&tokens),
            real: [to_device(&which), to_device(&real)],
            blocks: to_device(&blocks),
            dims: [members.len() as i64, longest],
            masks: [mask(None), mask(window)],
        }
    }

    /// `[g * t, h, e]`.
    fn attend(&self, q_nhe: &Tensor, layer: &LayerCache, scale: f64, local: bool) -> Tensor {
        let [rows, queries] = self.dims;
        let (heads, width) = (q_nhe.size()[1], q_nhe.size()[2]);
        let key_heads = layer.keys.size()[1];
        let q_ghte = q_nhe
            .index_select(0, &self.tokens)
            .view([rows, queries, heads, width])
            .transpose(1, 2);
        let of_rows = |blocks: &Tensor, order: [i64; 5]| {
            let size = blocks.size();
            blocks
                .index_select(0, &self.blocks)
                .view([rows, -1, key_heads, size[2], size[3]])
                .permute(order)
                .reshape([rows, key_heads, -1, width])
        };
        let keys_gkse = of_rows(layer.keys, [0, 2, 1, 4, 3]);
        let values_gkse = of_rows(layer.values, [0, 2, 1, 3, 4]);
        let mask = self.masks[usize::from(local)].to_kind(q_nhe.kind());
        Tensor::scaled_dot_product_attention(
            &q_ghte,
            &keys_gkse,
            &values_gkse,
            Some(&mask),
            0.0,
            false,
            Some(scale),
            heads != key_heads,
        )
        .transpose(1, 2)
        .reshape([-1, heads, width])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of 1, 5 and 1 new tokens behind 20, 3 and 0, in shuffled blocks.
    #[test]
    fn gathered_blocks_give_what_the_kernel_gives() {
        tch::manual_seed(3);
        let tables: [&[u32]; 3] = [&[5, 0], &[3], &[1]];
        let rows = [(1, 20), (5, 3), (1, 0)].into_iter().zip(tables);
        let rows = CachedRows::new(rows.map(|((new, past), blocks)| (new, past, blocks)));
        let options = (Kind::Double, Device::Cpu);
        for (heads, key_heads, width) in [(4, 2, 24), (3, 3, 5), (8, 1, 16)] {
            let random = |dims: &[i64]| Tensor::randn(dims, options);
            let [q, k, v] = [heads, key_heads, key_heads].map(|heads| random(&[7, heads, width]));
            let bias = random(&[heads, 32]);
            for (bias, window) in [(None, None), (None, Some(4)), (Some(&bias), None)] {
                let keys = random(&[6, key_heads, width, BLOCK]);
                let values = random(&[6, key_heads, BLOCK, width]);
                let span = |attender| {
                    let bias_hs = bias.map(Tensor::shallow_clone);
                    CachedSpan::new(rows.clone(), bias_hs, window, (attender, Device::Cpu))
                };
                let copies = [keys.copy(), values.copy()];
                let (layer, other) = (
                    LayerCache {
                        keys: &keys,
                        values: &values,
                    },
                    LayerCache {
                        keys: &copies[0],
                        values: &copies[1],
                    },
                );
                let ours = span(Attender::Cpu).attend([&q, &k, &v], &layer, 0.3, true);
                let plain = span(Attender::Operators).attend([&q, &k, &v], &other, 0.3, true);
                let gap = (ours - plain).abs().max().double_value(&[]);
                assert!(gap < 1e-12, "{heads} heads, {window:?}: {gap:e}");
                assert!(keys.equal(&copies[0]) && values.equal(&copies[1]));
            }
        }
    }
}
