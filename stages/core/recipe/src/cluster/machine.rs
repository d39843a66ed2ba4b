//! The rates that the cost model reckons with: a cluster's peaks, and the shares of them that are assumed.

use super::gpus::Gpu;
use crate::plan::Dtype;

/// GPUs, and how they are joined.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cluster {
    /// Of this kind.
    pub gpu: Gpu,
    /// In all.
    pub gpus: usize,
    /// In one node.
    pub gpus_per_node: usize,
    /// Of a node to the others, all its adapters together, one direction, 10^9 bits a second.
    pub network_gbps: f64,
}

/// What is reached of a GPU's peak in matrix products, recomputation counted as work and the network apart. Published
/// for training in bf16, model FLOPs, network included: 33 to 39 % on H100 (torchtitan, Llama 3.1 8B); 44 to 58 % on one to eight
/// H200, 27 to 33 % on 32 (`KempnerForge`, Llama 3 7B and 13B, every block recomputed); on A100 52 % (llm.c, GPT-2 124M).
pub const COMPUTE_SHARE: f64 = 0.40;

/// What is reached of a GPU's memory bandwidth while tokens are decoded and weights updated: the goal of this engine.
pub const BANDWIDTH_SHARE: f64 = 0.5;

/// What collective operations reach of a link: published runs of nccl-tests reach 0.8 and more of it with large buckets.
pub const LINK_SHARE: f64 = 0.7;

/// What tensors may take of a card's memory by its name, a power of ten. Cards have up to 7 % more; contexts of CUDA and NCCL,
/// fragments, and what the plan leaves out (1 to 8 % of what was measured on a CPU) are not tensors.
pub const MEMORY_SHARE: f64 = 0.95;

/// Rates of one rank, and of what joins ranks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Machine {
    /// What a rank's tensors may take, bytes.
    pub memory: u64,
    /// Matrix products in bf16, operations a second, as reached.
    pub bf16_flops: f64,
    /// In f32 and f64.
    pub f32_flops: f64,
    /// Memory, bytes a second, as reached.
    pub bandwidth: f64,
    /// Between ranks of a node, bytes a second, as reached.
    pub link: f64,
    /// Of a node to the others, bytes a second, as reached.
    pub network: f64,
    /// Ranks of a node.
    pub ranks_per_node: usize,
}

impl Cluster {
    /// The rates that are assumed to be reached.
    pub fn machine(&self) -> Machine {
        let gpu = &self.gpu;
        Machine {
            memory: (MEMORY_SHARE * gpu.memory_gb * 1e9) as u64,
            bf16_flops: COMPUTE_SHARE * gpu.bf16_tflops * 1e12,
            f32_flops: COMPUTE_SHARE * gpu.f32_tflops * 1e12,
            bandwidth: BANDWIDTH_SHARE * gpu.memory_gb_per_s * 1e9,
            link: LINK_SHARE * gpu.link_gb_per_s * 1e9,
            network: LINK_SHARE * self.network_gbps * 1e9 / 8.0,
            ranks_per_node: self.gpus_per_node,
        }
    }
}

impl Machine {
    /// Matrix products in a type, operations a second.
    pub(crate) fn flops(&self, dtype: Dtype) -> f64 {
        match dtype {
            Dtype::Bf16 => self.bf16_flops,
            Dtype::F32 | Dtype::F64 => self.f32_flops,
        }
    }

    /// Seconds in which `bytes` of each rank reach all others, or are summed and shared out: around a ring, of which each
    /// rank passes on all but its own part. A ring through nodes crosses their network, whose adapters serve rings of their
    /// own at the same time.
    pub(crate) fn ring_seconds(&self, bytes: u64, ranks: usize) -> f64 {
        if ranks == 1 {
            return 0.0;
        }
        let slowest = if ranks > self.ranks_per_node {
            self.link.min(self.network)
        } else {
            self.link
        };
        (ranks - 1) as f64 / ranks as f64 * bytes as f64 / slowest
    }
}
