//! What all blocks of one pass share: rotations, and which keys a query sees.
//!
//! Shape suffixes: b rows, t positions, n new tokens of all rows, h heads, s key positions.

use recipe::shape::Positions;
use tch::{Kind, Tensor};
use torch_ext::{CACHE_BLOCK, wide_kind};

use crate::attention::{Mask, Span, alibi_bias};
use crate::cached::CachedSpan;
use crate::input::{Input, Wanted};
use crate::positions::Rotation;
use crate::transformer::Model;

/// What all blocks of one forward pass share.
#[derive(Debug)]
pub(crate) struct Context {
    /// Present where positions rotate queries and keys.
    pub(crate) rotation: Option<Rotation>,
    /// What a query sees.
    pub(crate) sight: Sight,
    /// The rate of dropout before adapters.
    pub(crate) adapter_dropout: f64,
}

/// Which keys queries see.
#[derive(Debug)]
pub(crate) enum Sight {
    /// Keys of the same pass.
    Pass {
        /// Which.
        mask: Mask,
        /// The same in layers with a sliding window, where there are any.
        local: Option<Mask>,
        /// In the last layer: the columns whose output is wanted, and both masks for them.
        tail: Option<Tail>,
    },
    /// Keys of the cache, to which those of this pass are added.
    Cache(CachedSpan),
}

/// What the queries of some columns see.
#[derive(Debug)]
pub(crate) struct Tail {
    pub(crate) wanted: Wanted,
    pub(crate) mask: Mask,
    pub(crate) local: Option<Mask>,
}

/// Which columns a layer computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Columns {
    /// All.
    All,
    /// Those of the [`Tail`], where there is one: it is the last layer.
    Wanted,
}

impl Context {
    /// The columns that a layer computes, where they are not all.
    pub(crate) fn tail(&self, columns: Columns) -> Option<&Tail> {
        match &self.sight {
            Sight::Pass { tail, .. } if columns == Columns::Wanted => tail.as_ref(),
            _ => None,
        }
    }
}

impl Model {
    /// What the blocks share, for a pass without a cache.
    pub(crate) fn context(&self, input: &Input) -> Context {
        let (shape, prefixes) = (&self.shape, &input.prefixes);
        assert!(
            prefixes.is_empty()
                || input.valid_bt.is_none()
                    && shape.local.is_none()
                    && shape.positions != Positions::Alibi,
            "tokens that see each other in both directions, in {shape:?}"
        );
        let span = Span {
            len: input.ids_bt.size()[1],
            valid_bt: input.valid_bt.as_ref(),
            prefixes,
            device: self.device(),
        };
        let mask = match shape.positions {
            Positions::Alibi => Mask::alibi(&span, shape.heads, shape.head_dim, self.kind()),
            _ => Mask::new(&span, None, self.kind()),
        };
        let local = shape.local.as_ref();
        let local = local.map(|local| Mask::new(&span, Some(local.window), self.kind()));
        let tail = input.wanted_columns().map(|wanted| Tail {
            mask: mask.tail(&span, &wanted, self.kind()),
            local: local
                .as_ref()
                .map(|local| local.tail(&span, &wanted, self.kind())),
            wanted,
        });
        Context {
            rotation: self.rotation(&input.positions(), input.lengths_b.as_ref()),
            sight: Sight::Pass { mask, local, tail },
            adapter_dropout: 0.0,
        }
    }

    /// What the blocks share, for a pass over the cache; each token is a row of one column, and its length that
    /// of the row it stands in.
    pub(crate) fn cached_context(
        &self,
        span: CachedSpan,
        positions_n1: &Tensor,
        lengths_n: &Tensor,
    ) -> Context {
        Context {
            rotation: self.rotation(positions_n1, Some(lengths_n)),
            sight: Sight::Cache(span),
            adapter_dropout: 0.0,
        }
    }

    /// The keys that a query sees at most in layers with a sliding window.
    pub(crate) fn window(&self) -> Option<usize> {
        self.shape.local.as_ref().map(|local| local.window)
    }

    /// What `ALiBi` adds to products with the keys of so many blocks, `[h, s]` in f32 (f64 for f64).
    pub(crate) fn bias_of_keys(&self, columns: i64) -> Option<Tensor> {
        let shape = &self.shape;
        matches!(shape.positions, Positions::Alibi).then(|| {
            let keys = columns * CACHE_BLOCK as i64;
            let keys_s = Tensor::arange(keys, (Kind::Int64, self.device()));
            let bias_hs = alibi_bias(&keys_s, shape.heads, shape.head_dim, self.kind());
            bias_hs.to_kind(wide_kind(self.kind()))
        })
    }

    /// `lengths_b`: tokens of each row, int64 `[b]`, where they are not its largest position plus 1.
    fn rotation(&self, positions_bt: &Tensor, lengths_b: Option<&Tensor>) -> Option<Rotation> {
        let rotary = self.shape.rotary()?;
        Some(Rotation::new(rotary, positions_bt, lengths_b, self.kind()))
    }

    /// The columns that a block computes.
    pub(crate) fn columns(&self, block: usize) -> Columns {
        if block + 1 == self.blocks().len() {
            Columns::Wanted
        } else {
            Columns::All
        }
    }
}
