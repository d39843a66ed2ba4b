//! What each of several ranks keeps of a model, and what of it is whole on every rank for a while
//! ([`Sharding`]; Rajbhandari et al. 2020).
//!
//! Divided are numbers, not tensors, so that a rank keeps as much as any other but for a remainder. Codes of quantised
//! matrices are on every rank.

use crate::arithmetic::{frozen_parts, num_parts, state_bytes, weight_bytes};
use crate::memory::{Held, Passes};
use crate::plan::Sharding;

/// Blocks whose weights are whole on a rank at once in training where the weights are divided: the one at work, and the
/// next, which is on its way.
pub const BLOCKS_GATHERED: u64 = 2;

/// Gradients in whole that are on their way to the ranks that sum them, at most: two buckets. A block, or a table
/// of embeddings, that has more is on its way as a whole.
pub const IN_FLIGHT_BYTES: u64 = 2 * (25 << 20);

/// Numbers or bytes of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parts {
    /// In its blocks, all together.
    pub(crate) blocks: u64,
    /// Before and behind them: embeddings, final norm, head.
    pub(crate) outside: u64,
}

impl Parts {
    pub(crate) fn all(self) -> u64 {
        self.blocks + self.outside
    }
}

impl Held<'_> {
    /// Whether so much, or more, is divided among ranks.
    pub(crate) fn divides(&self, least: Sharding) -> bool {
        self.site.ranks > 1 && self.execution.sharding >= least
    }

    /// A rank's share of what is divided where so much, or more, is.
    fn share(&self, count: u64, least: Sharding) -> u64 {
        if self.divides(least) {
            count.div_ceil(self.site.ranks as u64)
        } else {
            count
        }
    }

    /// What is trained.
    fn trained_parts(&self) -> Parts {
        match self.lora {
            None => num_parts(self.shape, self.head),
            Some(lora) => {
                let blocks = lora.num_parameters(self.shape);
                let outside = self.num_trained() - blocks;
                Parts { blocks, outside }
            }
        }
    }

    /// Bytes of weights that are not trained, or were not before adapters were.
    pub(crate) fn frozen_parts(&self) -> Parts {
        frozen_parts(self.shape, self.head, self.dtype(), self.quantize)
    }

    /// Weights of a model that is not trained, or under adapters, through all of a stage.
    pub(crate) fn frozen_bytes(&self) -> u64 {
        let parts = self.frozen_parts();
        let blocks = match self.quantize {
            None => self.share(parts.blocks, Sharding::Parameters),
            Some(_) => parts.blocks,
        };
        blocks + parts.outside
    }

    /// What is trained and whole on every rank, numbers. Adapters are, also in blocks that are not.
    pub(crate) fn whole_trained(&self) -> u64 {
        let parts = self.trained_parts();
        if self.divides(Sharding::Parameters) && self.lora.is_none() {
            parts.outside
        } else {
            parts.all()
        }
    }

    /// What is trained, through all of a stage: weights, master weights and moments.
    pub(crate) fn trained_bytes(&self) -> u64 {
        let parts = self.trained_parts();
        let blocks = match self.lora {
            None => self.share(parts.blocks, Sharding::Parameters),
            Some(_) => parts.blocks,
        };
        let kept = blocks + parts.outside;
        let states = self.share(parts.all(), Sharding::Optimizer);
        weight_bytes(kept, self.dtype()) + state_bytes(states, self.dtype())
    }

    /// A model in training: what is trained, and what is under adapters.
    pub(crate) fn model_bytes(&self) -> u64 {
        let frozen = self.lora.map_or(0, |_| self.frozen_bytes());
        frozen + self.trained_bytes()
    }

    /// An average of what is trained.
    pub(crate) fn average_bytes(&self, beside: u64) -> u64 {
        let numbers = self.share(self.num_trained() + beside, Sharding::Optimizer);
        weight_bytes(numbers, self.dtype().wide())
    }

    /// The weights of so many blocks, whole, where a rank keeps a part of them.
    pub(crate) fn gathered_bytes(&self, blocks: u64) -> u64 {
        let layers = self.shape.layers as u64;
        blocks.min(layers) * self.whole_blocks_bytes() / layers
    }

    /// The weights of all blocks, whole, where a rank keeps a part of them: what all that reads weights without training
    /// them gathers.
    pub(crate) fn whole_blocks_bytes(&self) -> u64 {
        match self.quantize {
            None if self.divides(Sharding::Parameters) => self.frozen_parts().blocks,
            _ => 0,
        }
    }

    /// Gradients that wait for the next micro-batch or the update: for bf16 their sums, in f32. `only`: the update has one
    /// micro-batch, whose gradients are summed over ranks as they are made.
    pub(crate) fn waiting_bytes(&self, only: bool) -> u64 {
        let numbers = if self.sums_as_made(only) {
            self.share(self.num_trained(), Sharding::Optimizer)
        } else {
            self.num_trained()
        };
        weight_bytes(numbers, self.dtype().wide())
    }

    /// Whether a pass leaves to each rank its share of the gradients, and never has all of them.
    fn sums_as_made(&self, only: bool) -> bool {
        self.divides(Sharding::Gradients) || (only && self.divides(Sharding::Optimizer))
    }

    /// What a backward pass has of gradients that are there before they are summed, and of gathered weights, where the sums
    /// begin in its midst: at its first block, and at its end, which is the last block's or, without gathered weights, that of
    /// embeddings (whose gradients go last, with the head's); `None` where all wait for its end.
    pub(crate) fn passing_bytes(&self, passes: &Passes) -> Option<[u64; 2]> {
        if !self.sums_as_made(passes.only) {
            return None;
        }
        let wide = self.dtype().wide();
        let parts = self.trained_parts();
        let table = self.head_bytes() / self.dtype().bytes();
        let block = parts.blocks.div_ceil(self.shape.layers as u64);
        let on_way = |largest: u64| weight_bytes(largest, wide).max(IN_FLIGHT_BYTES);
        let all = weight_bytes(parts.all(), wide);
        let outside = weight_bytes(parts.outside, self.dtype());
        // Sums of this pass lie beside those of the ones before until it ends.
        let sums = self.waiting_bytes(passes.only) * if passes.on_gradients { 2 } else { 1 };
        let of_block = on_way(block).min(all);
        let last_block = self.head_bytes() + of_block + self.gathered_bytes(1);
        let embeddings = outside + on_way(block.max(table)).min(all);
        Some([
            of_block + self.gathered_bytes(BLOCKS_GATHERED),
            sums + last_block.max(embeddings),
        ])
    }
}
