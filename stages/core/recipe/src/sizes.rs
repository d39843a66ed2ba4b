//! Named model sizes with their published shapes, and two tiny ones for tests.

use crate::shape::{Family, ModelShape};

/// A row of the table of sizes.
struct NamedShape {
    name: &'static str,
    family: Family,
    vocab_size: usize,
    max_positions: usize,
    layers: usize,
    width: usize,
    heads: usize,
    kv_heads: usize,
    mlp_width: usize,
    norm_eps: f64,
    rope_theta: f64,
    tie_embeddings: bool,
}

/// GPT-2 (Radford et al. 2019), and GPT-3's shapes (Brown et al. 2020, table 2.1), whose every other
/// layer is sparse there and dense here.
const fn gpt2(
    name: &'static str,
    vocab_size: usize,
    max_positions: usize,
    layers: usize,
    (width, heads): (usize, usize),
) -> NamedShape {
    NamedShape {
        name,
        family: Family::Gpt2,
        vocab_size,
        max_positions,
        layers,
        width,
        heads,
        kv_heads: heads,
        mlp_width: 4 * width,
        norm_eps: 1e-5,
        rope_theta: ModelShape::DEFAULT_ROPE_THETA,
        tie_embeddings: true,
    }
}

const fn llama(
    name: &'static str,
    (vocab_size, max_positions): (usize, usize),
    layers: usize,
    (width, mlp_width): (usize, usize),
    (heads, kv_heads): (usize, usize),
) -> NamedShape {
    NamedShape {
        name,
        family: Family::Llama,
        vocab_size,
        max_positions,
        layers,
        width,
        heads,
        kv_heads,
        mlp_width,
        norm_eps: 1e-5,
        rope_theta: ModelShape::DEFAULT_ROPE_THETA,
        tie_embeddings: false,
    }
}

const SIZES: &[NamedShape] = &[
    gpt2("gpt2-tiny", 512, 128, 2, (64, 2)),
    gpt2("gpt2-82m", 50257, 1024, 6, (768, 12)),
    gpt2("gpt2-124m", 50257, 1024, 12, (768, 12)),
    gpt2("gpt2-355m", 50257, 1024, 24, (1024, 16)),
    gpt2("gpt2-774m", 50257, 1024, 36, (1280, 20)),
    gpt2("gpt2-1.5b", 50257, 1024, 48, (1600, 25)),
    // The paper's table gives 24 heads of 128 numbers, which is no width of 2048; 16 heads are.
    gpt2("gpt3-1.3b", 50257, 2048, 24, (2048, 16)),
    gpt2("gpt3-6.7b", 50257, 2048, 32, (4096, 32)),
    llama("llama-tiny", (512, 128), 2, (64, 192), (4, 2)),
    // Zhang et al. 2024 (TinyLlama).
    llama("llama-1.1b", (32000, 2048), 22, (2048, 5632), (32, 4)),
    // Touvron et al. 2023 (LLaMA, table 2; Llama 2, table 1). Norm epsilon 1e-6 in the first.
    NamedShape {
        norm_eps: 1e-6,
        ..llama("llama-7b", (32000, 2048), 32, (4096, 11008), (32, 32))
    },
    NamedShape {
        norm_eps: 1e-6,
        ..llama("llama-13b", (32000, 2048), 40, (5120, 13824), (40, 40))
    },
    NamedShape {
        norm_eps: 1e-6,
        ..llama("llama-33b", (32000, 2048), 60, (6656, 17920), (52, 52))
    },
    NamedShape {
        norm_eps: 1e-6,
        ..llama("llama-65b", (32000, 2048), 80, (8192, 22016), (64, 64))
    },
    llama("llama2-7b", (32000, 4096), 32, (4096, 11008), (32, 32)),
    llama("llama2-13b", (32000, 4096), 40, (5120, 13824), (40, 40)),
    llama("llama2-70b", (32000, 4096), 80, (8192, 28672), (64, 8)),
    // Grattafiori et al. 2024.
    NamedShape {
        rope_theta: 500_000.0,
        ..llama("llama3-8b", (128_256, 8192), 32, (4096, 14336), (32, 8))
    },
];

/// Every named size.
pub fn names() -> Vec<&'static str> {
    SIZES.iter().map(|size| size.name).collect()
}

/// The shape of a named size; `None` if there is none of that name.
pub fn named(name: &str) -> Option<ModelShape> {
    let size = SIZES.iter().find(|size| size.name == name)?;
    Some(ModelShape {
        family: size.family,
        vocab_size: size.vocab_size,
        max_positions: size.max_positions,
        layers: size.layers,
        width: size.width,
        heads: size.heads,
        kv_heads: size.kv_heads,
        head_dim: size.width / size.heads,
        mlp_width: size.mlp_width,
        norm_eps: size.norm_eps,
        rope_theta: size.rope_theta,
        tie_embeddings: size.tie_embeddings,
    })
}
