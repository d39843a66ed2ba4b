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
use crate::unpadded::{Places, Unpadded};

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
        tail: Option<Box<Tail>>,
    },
    /// Keys of the cache, to which those of this pass are added.
    Cache(CachedSpan),
}

/// A pass over the rows of an input, without a cache.
#[derive(Debug)]
pub(crate) struct Pass {
    /// What goes into the first block: `[b, t, d]`, or, without padding, `[1, n, d]`.
    pub(crate) embedded_btd: Tensor,
    pub(crate) context: Context,
    /// Where what comes out of the last block belongs.
    pub(crate) output: Output,
}

/// Which hidden states of `[b, t, d]` a pass makes.
#[derive(Debug)]
pub(crate) enum Output {
    /// Those of some of so many columns.
    Columns(Wanted, i64),
    /// Those of some tokens.
    Places(Places),
}

impl Output {
    /// Hidden states `[b, t, d]`: those that were made, and zeros.
    pub(crate) fn fill(&self, made: &Tensor) -> Tensor {
        match self {
            Self::Columns(wanted, columns) => wanted.among_zeros(made, *columns),
            Self::Places(places) => places.fill(made),
        }
    }

    /// Of `[b, t, d]` what belongs to those that were made.
    pub(crate) fn of(&self, hidden_btd: &Tensor) -> Tensor {
        match self {
            Self::Columns(wanted, _) => wanted.of(hidden_btd, 1),
            Self::Places(places) => places.of(hidden_btd),
        }
    }
}

/// What the queries of some columns see.
#[derive(Debug)]
pub(crate) struct Tail {
    pub(crate) selection: Selection,
    pub(crate) mask: Mask,
    pub(crate) local: Option<Mask>,
}

/// The columns of a pass whose output is wanted.
#[derive(Debug)]
pub(crate) enum Selection {
    /// Of padded rows.
    Columns(Wanted),
    /// Of rows without padding, int64 `[m]`.
    Tokens(Tensor),
}

impl Selection {
    /// These of a tensor that has the columns along `dim`.
    pub(crate) fn of(&self, x: &Tensor, dim: usize) -> Tensor {
        match self {
            Self::Columns(wanted) => wanted.of(x, dim),
            Self::Tokens(tokens_m) => x.index_select(dim as i64, tokens_m),
        }
    }
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
            Sight::Pass { tail, .. } if columns == Columns::Wanted => tail.as_deref(),
            _ => None,
        }
    }
}

impl Model {
    /// A pass without a cache, up to the first block.
    ///
    /// # Panics
    /// When a row is longer than the positions of the model.
    pub(crate) fn pass(&self, input: &Input) -> Pass {
        let (columns, bound) = (input.ids_bt.size()[1], self.shape.max_positions);
        assert!(
            columns as usize <= bound || input.spans_bt.is_some(),
            "an input of {columns} tokens is longer than the model's {bound} positions"
        );
        match Unpadded::new(input, &self.shape) {
            Some(unpadded) => self.unpadded_pass(unpadded),
            None => Pass {
                embedded_btd: self.embed(&input.ids_bt, &input.positions(), input.places()),
                context: self.context(input),
                output: Output::Columns(input.wanted.shallow_clone(), columns),
            },
        }
    }

    fn unpadded_pass(&self, unpadded: Unpadded) -> Pass {
        let tail = unpadded.wanted.map(|(tokens_m, mask)| {
            Box::new(Tail {
                selection: Selection::Tokens(tokens_m),
                mask,
                local: None,
            })
        });
        let sight = Sight::Pass {
            mask: unpadded.mask,
            local: None,
            tail,
        };
        Pass {
            embedded_btd: self.embed(&unpadded.ids_1n, &unpadded.positions_1n, None),
            context: Context {
                rotation: self.rotation(&unpadded.positions_1n, None),
                sight,
                adapter_dropout: 0.0,
            },
            output: Output::Places(unpadded.places),
        }
    }

    /// What the blocks share, for a pass over padded rows.
    fn context(&self, input: &Input) -> Context {
        let (shape, prefixes, valid_bt) = (&self.shape, &input.prefixes, input.mask_bt());
        assert!(
            prefixes.is_empty()
                || valid_bt.is_none()
                    && shape.local.is_none()
                    && shape.positions != Positions::Alibi,
            "tokens that see each other in both directions, in {shape:?}"
        );
        let span = Span {
            len: input.ids_bt.size()[1],
            valid_bt: valid_bt.as_ref(),
            prefixes,
            device: self.device(),
        };
        let mask = match shape.positions {
            Positions::Alibi => Mask::alibi(&span, shape.heads, shape.head_dim, self.kind()),
            _ => Mask::new(&span, None, self.kind()),
        };
        let local = shape.local.as_ref();
        let local = local.map(|local| Mask::new(&span, Some(local.window), self.kind()));
        let tail = input.wanted_columns().map(|wanted| {
            Box::new(Tail {
                mask: mask.tail(&span, &wanted, self.kind()),
                local: local
                    .as_ref()
                    .map(|local| local.tail(&span, &wanted, self.kind())),
                selection: Selection::Columns(wanted),
            })
        });
        // Behind padding the positions say where a row ends.
        let ends_early = !input.real.is_empty() && valid_bt.is_none();
        let lengths_b = ends_early.then(|| {
            let lengths: Vec<i64> = input.real.iter().map(|row| row.len() as i64).collect();
            Tensor::from_slice(&lengths).to_device(self.device())
        });
        Context {
            rotation: self.rotation(&input.positions(), lengths_b.as_ref()),
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
