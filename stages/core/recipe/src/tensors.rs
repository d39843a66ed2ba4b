//! Every tensor of a model: its Hugging Face name, shape and initial distribution.

use crate::families::{MlpNames, QkvNames};
use crate::shape::{BlockOrder, ModelShape, NormKind, Positions};

/// The name of weights in one file.
pub const WEIGHTS: &str = "model.safetensors";
/// The name of the list of files where there are several.
pub const INDEX: &str = "model.safetensors.index.json";
/// What holds a model's weights, or lists the files that do, in the order in which it is looked for;
/// older repositories have the last two.
pub const WEIGHT_FILES: [&str; 4] = [
    WEIGHTS,
    INDEX,
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// What a model computes from its hidden states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// Logits over the vocabulary (`…ForCausalLM`, `GPT2LMHeadModel`).
    Token,
    /// One number a position (`…ForSequenceClassification` with one label).
    Scalar,
}

/// How a tensor starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// All zeros.
    Zeros,
    /// All ones.
    Ones,
    /// Uniform between minus and plus this bound.
    Uniform(f64),
}

/// One tensor of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    /// Hugging Face's name.
    pub name: String,
    /// Its shape. Matrices are `[out, in]`, except where the family's are `[in, out]` (`Conv1D`).
    pub dims: Vec<i64>,
    /// How it starts.
    pub init: Init,
}

impl TensorSpec {
    /// Outputs and inputs of a block's matrix, which may be quantised; `None` for other tensors.
    pub fn block_matrix(&self, shape: &ModelShape) -> Option<[i64; 2]> {
        let in_block = self.in_block(shape);
        match self.dims[..] {
            [inputs, outputs] if in_block && shape.names().in_out => Some([outputs, inputs]),
            [outputs, inputs] if in_block => Some([outputs, inputs]),
            _ => None,
        }
    }

    /// Whether it belongs to one of the blocks.
    pub(crate) fn in_block(&self, shape: &ModelShape) -> bool {
        let within = self.name.strip_prefix(shape.names().block);
        within.is_some_and(|rest| rest.starts_with('.'))
    }
}

/// The scalar head's name, in every family.
pub const SCALAR_HEAD: &str = "score.weight";

/// Standard deviation of matrices at the start (Radford et al. 2019).
const STD: f64 = 0.02;

/// All tensors of a model. A tied output projection is not among them, nor are sinusoidal positions.
///
/// Matrices start at N(0, 0.02²), those that write into the residual stream at 0.02/sqrt(2 layers)
/// (Radford et al. 2019, section 2.3), the scalar head at N(0, 1/(width+1)) (Stiennon et al. 2020).
pub fn tensors(shape: &ModelShape, head: Head) -> Vec<TensorSpec> {
    let names = shape.names();
    let (vocab, narrow) = (shape.vocab_size, shape.embedding_width);
    let mut list = Specs {
        shape,
        list: Vec::new(),
    };
    list.table(names.embedding, vocab);
    if let Positions::Learned { unused, places } = shape.positions {
        list.push(
            names.positions,
            "weight",
            &[shape.max_positions + unused, shape.width],
            Init::Normal(STD),
        );
        if places > 0 {
            list.push(
                &names.places(),
                "weight",
                &[places, shape.width],
                Init::Normal(STD),
            );
        }
    }
    if narrow != shape.width {
        let [into, out] = names.project;
        list.push(into, "weight", &[shape.width, narrow], Init::Normal(STD));
        list.push(out, "weight", &[narrow, shape.width], Init::Normal(STD));
    }
    for layer in 0..shape.layers {
        list.block(&format!("{}.{layer}", names.block));
    }
    if shape.final_norm() {
        list.norm(names.final_norm, shape.width);
    }
    match head {
        Head::Scalar => {
            let std = 1.0 / (narrow as f64 + 1.0).sqrt();
            list.list.push(TensorSpec {
                name: SCALAR_HEAD.to_owned(),
                dims: vec![1, narrow as i64],
                init: Init::Normal(std),
            });
        }
        Head::Token if !shape.tie_embeddings => list.table(names.head, vocab),
        Head::Token => {}
    }
    list.list
}

struct Specs<'a> {
    shape: &'a ModelShape,
    list: Vec<TensorSpec>,
}

impl Specs<'_> {
    fn push(&mut self, name: &str, part: &str, dims: &[usize], init: Init) {
        self.list.push(TensorSpec {
            name: format!("{name}.{part}"),
            dims: dims.iter().map(|n| *n as i64).collect(),
            init,
        });
    }

    /// A row for each token.
    fn table(&mut self, name: &str, rows: usize) {
        self.push(
            name,
            "weight",
            &[rows, self.shape.embedding_width],
            Init::Normal(STD),
        );
    }

    fn norm(&mut self, name: &str, width: usize) {
        self.push(name, "weight", &[width], Init::Ones);
        if self.shape.norm == NormKind::Layer {
            self.push(name, "bias", &[width], Init::Zeros);
        }
    }

    fn linear(&mut self, name: &str, [inputs, outputs]: [usize; 2], bias: bool, std: f64) {
        let dims = if self.shape.names().in_out {
            [inputs, outputs]
        } else {
            [outputs, inputs]
        };
        self.push(name, "weight", &dims, Init::Normal(std));
        if bias {
            self.push(name, "bias", &[outputs], Init::Zeros);
        }
    }

    fn block(&mut self, block: &str) {
        let shape = self.shape;
        let names = shape.names();
        let name = |part: &str| format!("{block}.{part}");
        let residual_std = STD / (2.0 * shape.layers as f64).sqrt();
        self.norm(&name(names.norms[0]), shape.width);
        for matrix in matrices(shape) {
            let std = if matrix.residual { residual_std } else { STD };
            let dims = [matrix.inputs, matrix.outputs];
            self.linear(&name(matrix.name), dims, matrix.bias, std);
        }
        if shape.qk_norm {
            for part in names.qk_norms {
                self.norm(&name(part), shape.head_dim);
            }
        }
        if shape.order != BlockOrder::ParallelOneNorm {
            self.norm(&name(names.norms[1]), shape.width);
        }
    }
}

/// A matrix of a block.
#[derive(Debug, Clone)]
pub(crate) struct Matrix {
    /// Its name within the block, such as `self_attn.q_proj`.
    pub name: &'static str,
    /// What it is in every family; several where it is fused.
    pub roles: &'static [&'static str],
    pub inputs: usize,
    pub outputs: usize,
    pub bias: bool,
    /// It writes into the residual stream.
    pub residual: bool,
}

impl Matrix {
    /// What it may be called: by its roles, or by the last part of its name (two matrices of GPT-2 are a
    /// `c_proj`).
    pub fn words(&self) -> impl Iterator<Item = &'static str> {
        let last = self.name.rsplit('.').next();
        self.roles.iter().copied().chain(last)
    }

    pub fn is_called(&self, word: &str) -> bool {
        self.name == word || self.words().any(|known| known == word)
    }
}

/// The matrices of a block.
pub(crate) fn matrices(shape: &ModelShape) -> Vec<Matrix> {
    let (names, biases) = (shape.names(), shape.biases);
    let (width, mlp) = (shape.width, shape.mlp_width);
    let [queries, keys] = [shape.heads, shape.kv_heads].map(|heads| heads * shape.head_dim);
    let into = |name, roles, outputs, bias| Matrix {
        name,
        roles,
        inputs: width,
        outputs,
        bias,
        residual: false,
    };
    let back = |name, roles, inputs, bias| Matrix {
        name,
        roles,
        inputs,
        outputs: width,
        bias,
        residual: true,
    };
    let mut list = match names.qkv {
        QkvNames::Split([q, k, v]) => vec![
            into(q, &["q"], queries, biases.qkv),
            into(k, &["k"], keys, biases.qkv),
            into(v, &["v"], keys, biases.qkv),
        ],
        QkvNames::Thirds(all) | QkvNames::Groups(all) => {
            vec![into(all, &["q", "k", "v"], queries + 2 * keys, biases.qkv)]
        }
    };
    list.push(back(names.output, &["output"], queries, biases.output));
    let down = match names.mlp {
        MlpNames::Plain([up, down]) => {
            list.push(into(up, &["up"], mlp, biases.mlp));
            down
        }
        MlpNames::Gated([gate, up, down]) => {
            list.push(into(gate, &["gate"], mlp, biases.mlp));
            list.push(into(up, &["up"], mlp, biases.mlp));
            down
        }
        MlpNames::FusedGate([both, down]) => {
            list.push(into(both, &["gate", "up"], 2 * mlp, biases.mlp));
            down
        }
    };
    list.push(back(down, &["down"], mlp, biases.mlp));
    list
}
