//! Named model sizes with their published shapes, and two tiny ones for tests.

use crate::families::Sizes;
use crate::shape::{BlockOrder, Family, LocalAttention, ModelShape, Positions, Rotary};

/// A name, and the shape that it stands for.
type NamedShape = (&'static str, fn() -> ModelShape);

const SIZES: &[NamedShape] = &[
    ("gpt1-117m", || {
        sized(Family::Gpt1, (40478, 512), 12, (768, 12))
    }),
    ("gpt2-tiny", || sized(Family::Gpt2, (512, 128), 2, (64, 2))),
    ("gpt2-82m", || gpt2(6, 768, 12)),
    ("gpt2-124m", || gpt2(12, 768, 12)),
    ("gpt2-355m", || gpt2(24, 1024, 16)),
    ("gpt2-774m", || gpt2(36, 1280, 20)),
    ("gpt2-1.5b", || gpt2(48, 1600, 25)),
    // Brown et al. 2020, table 2.1.
    ("gpt3-125m", || gpt3(12, 768, 12)),
    ("gpt3-350m", || gpt3(24, 1024, 16)),
    ("gpt3-760m", || gpt3(24, 1536, 16)),
    // The table gives 24 heads of 128 numbers, which is no width of 2048; 16 heads are.
    ("gpt3-1.3b", || gpt3(24, 2048, 16)),
    ("gpt3-2.7b", || gpt3(32, 2560, 32)),
    ("gpt3-6.7b", || gpt3(32, 4096, 32)),
    // The table gives a width of 5140, which 40 heads of 128 numbers do not have.
    ("gpt3-13b", || gpt3(40, 5120, 40)),
    ("gpt3-175b", || gpt3(96, 12288, 96)),
    // Zhang et al. 2022, table 1.
    ("opt-125m", || opt(12, 768, 12)),
    ("opt-350m", || ModelShape {
        embedding_width: 512,
        order: BlockOrder::PostNorm,
        ..opt(24, 1024, 16)
    }),
    ("opt-1.3b", || opt(24, 2048, 32)),
    ("opt-2.7b", || opt(32, 2560, 32)),
    ("opt-6.7b", || opt(32, 4096, 32)),
    ("opt-13b", || opt(40, 5120, 40)),
    ("opt-30b", || opt(48, 7168, 56)),
    ("opt-66b", || opt(64, 9216, 72)),
    ("opt-175b", || opt(96, 12288, 96)),
    // Biderman et al. 2023, table 1; the rows of the embedding are those of the published folders.
    ("pythia-70m", || pythia(50304, 6, 512, 8)),
    ("pythia-160m", || pythia(50304, 12, 768, 12)),
    ("pythia-410m", || pythia(50304, 24, 1024, 16)),
    ("pythia-1b", || pythia(50304, 16, 2048, 8)),
    ("pythia-1.4b", || pythia(50304, 24, 2048, 16)),
    ("pythia-2.8b", || pythia(50304, 32, 2560, 32)),
    ("pythia-6.9b", || pythia(50432, 32, 4096, 32)),
    ("pythia-12b", || pythia(50688, 36, 5120, 40)),
    ("llama-tiny", || llama((512, 128), 2, (64, 192), (4, 2))),
    // Zhang et al. 2024 (TinyLlama).
    ("llama-1.1b", || {
        llama((32000, 2048), 22, (2048, 5632), (32, 4))
    }),
    // Touvron et al. 2023, table 2.
    ("llama-7b", || llama1(32, (4096, 11008), 32)),
    ("llama-13b", || llama1(40, (5120, 13824), 40)),
    ("llama-33b", || llama1(60, (6656, 17920), 52)),
    ("llama-65b", || ModelShape {
        norm_eps: 1e-5,
        ..llama1(80, (8192, 22016), 64)
    }),
    // Touvron et al. 2023 (Llama 2), table 1.
    ("llama2-7b", || {
        llama((32000, 4096), 32, (4096, 11008), (32, 32))
    }),
    ("llama2-13b", || {
        llama((32000, 4096), 40, (5120, 13824), (40, 40))
    }),
    ("llama2-70b", || {
        llama((32000, 4096), 80, (8192, 28672), (64, 8))
    }),
    // Grattafiori et al. 2024, table 3.
    ("llama3-8b", || {
        with_theta(5e5, llama((128_256, 8192), 32, (4096, 14336), (32, 8)))
    }),
    ("llama3-70b", || {
        with_theta(5e5, llama((128_256, 8192), 80, (8192, 28672), (64, 8)))
    }),
    // Jiang et al. 2023.
    ("mistral-7b", || ModelShape {
        family: Family::Mistral,
        local: Some(LocalAttention {
            window: 4096,
            layers: (0..32).collect(),
        }),
        ..llama((32000, 32768), 32, (4096, 14336), (32, 8))
    }),
    // Yang et al. 2024 and 2025; the published folders.
    ("qwen2.5-0.5b", || ModelShape {
        tie_embeddings: true,
        ..qwen(Family::Qwen2, (151_936, 32768), 24, (896, 4864), (14, 2))
    }),
    ("qwen2.5-7b", || {
        qwen(
            Family::Qwen2,
            (152_064, 131_072),
            28,
            (3584, 18944),
            (28, 4),
        )
    }),
    ("qwen3-0.6b", || ModelShape {
        tie_embeddings: true,
        head_dim: 128,
        positions: qwen(Family::Qwen3, (1, 1), 1, (128, 1), (1, 1)).positions,
        ..qwen(Family::Qwen3, (151_936, 40960), 28, (1024, 3072), (16, 8))
    }),
    ("qwen3-8b", || {
        qwen(Family::Qwen3, (151_936, 40960), 36, (4096, 12288), (32, 8))
    }),
    // Almazrouei et al. 2023, and the published folders.
    ("falcon-7b", || {
        sized(Family::Falcon, (65024, 2048), 32, (4544, 71))
    }),
    ("falcon-40b", || ModelShape {
        kv_heads: 8,
        order: BlockOrder::ParallelTwoNorms,
        ..sized(Family::Falcon, (65024, 2048), 60, (8192, 128))
    }),
    // Zeng et al. 2024, and the published folders.
    ("chatglm2-6b", || glm((65024, 32768), 28, 1e-5)),
    ("chatglm3-6b", || glm((65024, 8192), 28, 1e-5)),
    ("glm4-9b", || {
        with_theta(5e6, glm((151_552, 131_072), 40, 1.5625e-7))
    }),
];

fn sized(
    family: Family,
    (vocab_size, max_positions): (usize, usize),
    layers: usize,
    (width, heads): (usize, usize),
) -> ModelShape {
    family.shape(&Sizes {
        vocab_size,
        max_positions,
        layers,
        width,
        heads,
    })
}

fn gpt2(layers: usize, width: usize, heads: usize) -> ModelShape {
    sized(Family::Gpt2, (50257, 1024), layers, (width, heads))
}

fn gpt3(layers: usize, width: usize, heads: usize) -> ModelShape {
    sized(Family::GptNeo, (50257, 2048), layers, (width, heads))
}

fn opt(layers: usize, width: usize, heads: usize) -> ModelShape {
    sized(Family::Opt, (50272, 2048), layers, (width, heads))
}

fn pythia(vocab_size: usize, layers: usize, width: usize, heads: usize) -> ModelShape {
    sized(Family::GptNeox, (vocab_size, 2048), layers, (width, heads))
}

fn llama(
    table: (usize, usize),
    layers: usize,
    (width, mlp_width): (usize, usize),
    (heads, kv_heads): (usize, usize),
) -> ModelShape {
    ModelShape {
        kv_heads,
        mlp_width,
        ..sized(Family::Llama, table, layers, (width, heads))
    }
}

fn llama1(layers: usize, widths: (usize, usize), heads: usize) -> ModelShape {
    ModelShape {
        norm_eps: 1e-6,
        ..llama((32000, 2048), layers, widths, (heads, heads))
    }
}

fn qwen(
    family: Family,
    table: (usize, usize),
    layers: usize,
    (width, mlp_width): (usize, usize),
    (heads, kv_heads): (usize, usize),
) -> ModelShape {
    let shape = sized(family, table, layers, (width, heads));
    with_theta(
        1e6,
        ModelShape {
            kv_heads,
            mlp_width,
            norm_eps: 1e-6,
            ..shape
        },
    )
}

fn glm(table: (usize, usize), layers: usize, norm_eps: f64) -> ModelShape {
    let shape = sized(Family::Glm, table, layers, (4096, 32));
    ModelShape {
        kv_heads: 2,
        mlp_width: 13696,
        norm_eps,
        ..shape
    }
}

fn with_theta(theta: f64, shape: ModelShape) -> ModelShape {
    let positions = match shape.positions {
        Positions::Rotary(rotary) => Positions::Rotary(Rotary { theta, ..rotary }),
        other => other,
    };
    ModelShape { positions, ..shape }
}

/// Every named size.
pub fn names() -> Vec<&'static str> {
    SIZES.iter().map(|(name, _)| *name).collect()
}

/// The shape of a named size; `None` if there is none of that name.
pub fn named(name: &str) -> Option<ModelShape> {
    let (_, shape) = SIZES.iter().find(|(known, _)| *known == name)?;
    Some(shape())
}
