//! Seconds of a rank's work: operations over what is reached of the peak, bytes over what is reached of the bandwidth of
//! memory and of the network.

use std::ops::{Add, Mul};

use super::machine::Machine;
use crate::arithmetic::weight_bytes;
use crate::memory::Held;
use crate::plan::{Dtype, Sharding};

/// Of a pass with its backward pass, what is backward (Kaplan et al. 2020: a forward pass is a third).
const BACKWARD: f64 = 2.0 / 3.0;

/// What time goes into.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Seconds {
    /// Matrix products.
    pub compute: f64,
    /// Reading and writing memory: decoding that waits for weights and cache, updates of weights.
    pub memory: f64,
    /// Waiting for other ranks' bytes.
    pub network: f64,
}

impl Seconds {
    /// All of it.
    pub fn total(self) -> f64 {
        self.compute + self.memory + self.network
    }
}

impl Add for Seconds {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            compute: self.compute + other.compute,
            memory: self.memory + other.memory,
            network: self.network + other.network,
        }
    }
}

impl Mul<f64> for Seconds {
    type Output = Self;

    fn mul(self, times: f64) -> Self {
        Self {
            compute: self.compute * times,
            memory: self.memory * times,
            network: self.network * times,
        }
    }
}

/// Passes of one kind on one rank.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share {
    /// Operations of all of them.
    pub(crate) flops: f64,
    /// How many.
    pub(crate) passes: usize,
}

/// Rows that are decoded on one rank.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Decoding {
    /// All rows.
    pub(crate) rows: usize,
    /// Rows of the same prompt, which is read once.
    pub(crate) alike: usize,
    /// Rows at a time.
    pub(crate) at_once: usize,
    /// Tokens of a prompt.
    pub(crate) prompt: usize,
    /// Tokens of a response.
    pub(crate) new: usize,
}

impl Held<'_> {
    /// Until sharded weights are whole.
    fn gathering_seconds(&self, machine: &Machine) -> f64 {
        machine.ring_seconds(self.whole_blocks_bytes(), self.site.ranks)
    }

    /// Forward passes without gradients of so many operations. Sharded weights come before them, and nothing hides that.
    pub(crate) fn scoring_seconds(&self, machine: &Machine, flops: f64) -> Seconds {
        Seconds {
            compute: flops / machine.flops(self.dtype()),
            memory: 0.0,
            network: self.gathering_seconds(machine),
        }
    }

    /// Backward passes and the update after them. Where blocks are recomputed their forward passes run twice.
    pub(crate) fn update_seconds(&self, machine: &Machine, share: Share) -> Seconds {
        let again = if self.execution.checkpointing {
            1.0 + (1.0 - BACKWARD)
        } else {
            1.0
        };
        let compute = again * share.flops / machine.flops(self.dtype());
        Seconds {
            compute,
            memory: self.optimizer_seconds(machine),
            network: self.exchange_seconds(machine, share.passes, compute),
        }
    }

    /// Reads gradients, master weights and moments, and writes all but gradients, and the weights.
    fn optimizer_seconds(&self, machine: &Machine) -> f64 {
        let bytes = match self.dtype() {
            Dtype::Bf16 => 4 * (4 + 3) + 2,
            Dtype::F32 | Dtype::F64 => self.dtype().bytes() * (4 + 3),
        };
        let of_rank = if self.divides(Sharding::Optimizer) {
            self.num_trained().div_ceil(self.site.ranks as u64)
        } else {
            self.num_trained()
        };
        (of_rank * bytes) as f64 / machine.bandwidth
    }

    /// What an update waits for. Gradients travel block by block while those of the blocks before are made, and a sharded block
    /// while the one that is wanted earlier is computed: waited for are one block's, and what takes longer than the pass.
    /// Weights that were updated travel while nothing else is done, but for those of sharded blocks, which stay.
    fn exchange_seconds(&self, machine: &Machine, passes: usize, compute: f64) -> f64 {
        let ranks = self.site.ranks;
        let around = |bytes| machine.ring_seconds(bytes, ranks);
        let gradients = around(weight_bytes(self.num_trained(), self.dtype().wide()));
        // All of a sum for every rank is a share of it for each, and these for all.
        let (gradients, exchanges) = match self.execution.sharding {
            Sharding::None => (2.0 * gradients, 1),
            Sharding::Optimizer => (gradients, 1),
            Sharding::Gradients | Sharding::Parameters => (gradients, passes),
        };
        let of_block = 1.0 / self.shape.layers as f64;
        let waited = |travelling: f64, pass: f64| {
            let hidden = (1.0 - of_block) * pass * compute / passes as f64;
            (travelling - hidden).max(of_block * travelling)
        };
        let gathered = self.gathering_seconds(machine);
        let forward = passes as f64 * waited(gathered, 1.0 - BACKWARD);
        let backward = exchanges as f64 * waited(gathered + gradients, BACKWARD);
        let updated = match self.execution.sharding {
            Sharding::None => 0,
            _ => self.whole_trained(),
        };
        forward + backward + around(weight_bytes(updated, self.dtype()))
    }

    /// Prompts are read, then each step reads all weights and the keys and values so far. Sharded weights are gathered once.
    pub(crate) fn decoding_seconds(&self, machine: &Machine, decoding: Decoding) -> Seconds {
        let Decoding {
            rows,
            alike,
            at_once,
            prompt,
            new,
        } = decoding;
        let per_second = machine.flops(self.dtype());
        let prompts = (rows.div_ceil(alike) * prompt) as f64;
        let reading = prompts * self.shape.forward_flops_per_token(prompt) / per_second;
        let at_once = at_once.min(rows);
        let steps = (rows.div_ceil(at_once) * new) as f64;
        let middle = prompt + new / 2;
        let cache = at_once as u64 * self.shape.cache_bytes(middle, self.dtype());
        let cache = cache as f64 / machine.bandwidth;
        let weights = self.frozen_parts().all() as f64 / machine.bandwidth;
        let products = at_once as f64 * self.shape.forward_flops_per_token(middle) / per_second;
        // Weights are read while they are multiplied, whichever takes longer; attention reads the cache after that.
        let (products, weights) = if products > weights {
            (products, 0.0)
        } else {
            (0.0, weights)
        };
        Seconds {
            compute: reading + steps * products,
            memory: steps * (weights + cache),
            network: self.gathering_seconds(machine),
        }
    }
}
