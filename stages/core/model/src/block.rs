//! One transformer block, put together from the parts that a shape names.
//!
//! Shape suffixes: b rows, t positions, s key positions, d width, h heads, e width of a head.

use recipe::families::QkvNames;
use recipe::shape::{Activation, BlockOrder, ModelShape, NormKind};
use tch::Tensor;
use torch_ext::{RowNorm, TorchError, is_fusible};

use crate::attention::attend;
use crate::context::{Columns, Context, Sight, Tail};
use crate::linear::{Linear, Weight};
use crate::mlp::Mlp;
use crate::parameters::Parameters;

/// Keys `[blocks, h, e, 16]` and values `[blocks, h, 16, e]` of one layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LayerCache<'a> {
    pub(crate) keys: &'a Tensor,
    pub(crate) values: &'a Tensor,
}

/// The parameters of a model by name; a missing one is a broken invariant (`recipe::tensors` listed
/// them).
pub(crate) struct Params<'a> {
    pub(crate) all: &'a Parameters,
    pub(crate) shape: &'a ModelShape,
    /// For products of how many rows matrices are packed; `None`: they are not.
    pub(crate) packed: Option<usize>,
}

impl Params<'_> {
    pub(crate) fn get(&self, name: &str) -> Tensor {
        self.all
            .dense
            .get(name)
            .unwrap_or_else(|| panic!("parameter `{name}` exists"))
            .shallow_clone()
    }

    pub(crate) fn weight(&self, name: &str) -> Tensor {
        self.get(&format!("{name}.weight"))
    }

    pub(crate) fn linear(&self, name: &str, bias: bool) -> Linear {
        let linear = self.plain(name, bias);
        match self.packed {
            Some(rows) => linear.into_packed(rows),
            None => linear,
        }
    }

    /// Several matrices of the same inputs as one, where that can be.
    pub(crate) fn joined(&self, names: &[String], bias: bool) -> Option<Linear> {
        let parts: Vec<Linear> = names.iter().map(|name| self.plain(name, bias)).collect();
        Linear::joined(&parts.iter().collect::<Vec<_>>(), self.packed?)
    }

    fn plain(&self, name: &str, bias: bool) -> Linear {
        let adapter = self.all.adapter.as_ref();
        Linear {
            weight: match self.all.codes(&format!("{name}.weight")) {
                Some(matrix) => Weight::Codes(matrix.share()),
                None if self.shape.names().in_out => Weight::InOut(self.weight(name)),
                None => Weight::OutIn(self.weight(name)),
            },
            bias: bias.then(|| self.get(&format!("{name}.bias"))),
            adapter: adapter.and_then(|adapter| adapter.beside(name)),
        }
    }

    pub(crate) fn norm(&self, name: &str) -> Norm {
        let biased = self.shape.norm == NormKind::Layer;
        Norm {
            weight: self.weight(name),
            bias: biased.then(|| self.get(&format!("{name}.bias"))),
            eps: self.shape.norm_eps,
        }
    }
}

/// `LayerNorm` where there is a bias, else `RMSNorm` (Zhang and Sennrich 2019).
#[derive(Debug)]
pub(crate) struct Norm {
    weight: Tensor,
    bias: Option<Tensor>,
    eps: f64,
}

impl Norm {
    pub(crate) fn forward(&self, x_btd: &Tensor) -> Tensor {
        if is_fusible(x_btd) {
            return fused(self.row_norm().of(x_btd));
        }
        let dims = self.weight.size();
        match &self.bias {
            Some(bias) => x_btd.layer_norm(dims, Some(&self.weight), Some(bias), self.eps, true),
            None => x_btd.rms_norm(dims, Some(&self.weight), self.eps),
        }
    }

    /// The residual stream with what is added to it, and its norm.
    fn forward_sum(&self, x_btd: &Tensor, added_btd: &Tensor) -> (Tensor, Tensor) {
        if is_fusible(x_btd) {
            return fused(self.row_norm().of_sum(x_btd, added_btd));
        }
        let sum_btd = x_btd + added_btd;
        let normed_btd = self.forward(&sum_btd);
        (sum_btd, normed_btd)
    }

    fn row_norm(&self) -> RowNorm<'_> {
        RowNorm {
            weight_d: &self.weight,
            bias_d: self.bias.as_ref(),
            eps: self.eps,
            centred: self.bias.is_some(),
        }
    }
}

#[derive(Debug)]
enum QueryKeyValue {
    Split([Linear; 3]),
    /// All queries, then all keys, then all values, in one product.
    Joined(Linear),
    /// The same with as many of each.
    Thirds(Linear),
    /// For each key head its queries, its key and its value.
    Groups(Linear),
}

#[derive(Debug)]
struct Attention {
    qkv: QueryKeyValue,
    qk_norms: Option<[Norm; 2]>,
    output: Linear,
    heads: i64,
    kv_heads: i64,
    head_dim: i64,
    /// What products are multiplied by; `None`: one over the root of `head_dim`.
    scale: Option<f64>,
    /// The layer has a sliding window.
    local: bool,
}

impl Attention {
    fn new(params: &Params, block: &str, index: usize) -> Self {
        let (shape, names) = (params.shape, params.shape.names());
        let name = |part: &str| format!("{block}.{part}");
        let linear = |part: &str| params.linear(&name(part), shape.biases.qkv);
        let norm = |part: &str| params.norm(&format!("{block}.{part}"));
        let local = shape.local.as_ref();
        Self {
            qkv: match names.qkv {
                QkvNames::Split(parts) => match params.joined(&parts.map(name), shape.biases.qkv) {
                    Some(joined) => QueryKeyValue::Joined(joined),
                    None => QueryKeyValue::Split(parts.map(linear)),
                },
                QkvNames::Thirds(part) => QueryKeyValue::Thirds(linear(part)),
                QkvNames::Groups(part) => QueryKeyValue::Groups(linear(part)),
            },
            qk_norms: shape.qk_norm.then(|| names.qk_norms.map(norm)),
            output: params.linear(&format!("{block}.{}", names.output), shape.biases.output),
            heads: shape.heads as i64,
            kv_heads: shape.kv_heads as i64,
            head_dim: shape.head_dim as i64,
            scale: (!shape.scaled_attention).then_some(1.0),
            local: local.is_some_and(|local| local.layers.contains(&index)),
        }
    }

    /// Queries, keys and values, `[b, h, t, e]`; `dropout` is the rate before adapters.
    fn project(&self, x_btd: &Tensor, dropout: f64) -> [Tensor; 3] {
        let (rows, len) = (x_btd.size()[0], x_btd.size()[1]);
        let split = |y: &Tensor, heads: i64| y.reshape([rows, len, heads, -1]).transpose(1, 2);
        match &self.qkv {
            QueryKeyValue::Split([q, k, v]) => [
                split(&q.forward(x_btd, dropout), self.heads),
                split(&k.forward(x_btd, dropout), self.kv_heads),
                split(&v.forward(x_btd, dropout), self.kv_heads),
            ],
            QueryKeyValue::Joined(linear) => {
                let y = linear.forward(x_btd, dropout);
                let mut start = 0;
                [self.heads, self.kv_heads, self.kv_heads].map(|heads| {
                    let part = y.narrow(-1, start, heads * self.head_dim);
                    start += heads * self.head_dim;
                    split(&part, heads)
                })
            }
            QueryKeyValue::Thirds(linear) => {
                let parts = linear.forward(x_btd, dropout).chunk(3, -1);
                [0, 1, 2].map(|i| split(&parts[i], self.heads))
            }
            QueryKeyValue::Groups(linear) => {
                let group = self.heads / self.kv_heads;
                let dims = [rows, len, self.kv_heads, group + 2, self.head_dim];
                let grouped = linear.forward(x_btd, dropout).view(dims);
                let part = |start, len| grouped.narrow(3, start, len).flatten(2, 3).transpose(1, 2);
                [part(0, group), part(group, 1), part(group + 1, 1)]
            }
        }
    }

    /// With a tail the output has its columns alone.
    fn forward(
        &self,
        x_btd: &Tensor,
        context: &Context,
        cache: Option<&LayerCache>,
        tail: Option<&Tail>,
    ) -> Tensor {
        let [mut q, mut k, v] = self.project(x_btd, context.adapter_dropout);
        if let Some([q_norm, k_norm]) = &self.qk_norms {
            q = q_norm.forward(&q);
            k = k_norm.forward(&k);
        }
        if let Some(rotation) = &context.rotation {
            q = rotation.apply(&q);
            k = rotation.apply(&k);
        }
        let y_bhte = match (&context.sight, cache) {
            (Sight::Pass { mask, local, .. }, None) => {
                let (mask, local) = match tail {
                    Some(tail) => (&tail.mask, &tail.local),
                    None => (mask, local),
                };
                let mask = local.as_ref().filter(|_| self.local).unwrap_or(mask);
                if let Some(tail) = tail {
                    q = tail.selection.of(&q, 2);
                }
                attend(&q, &k, &v, mask, self.scale)
            }
            (Sight::Cache(span), Some(layer)) => {
                // Each token is a row of its own.
                let [q, k, v] = [&q, &k, &v].map(|x_nh1e| x_nh1e.squeeze_dim(2));
                let usual = 1.0 / (self.head_dim as f64).sqrt();
                let scale = self.scale.unwrap_or(usual);
                span.attend([&q, &k, &v], layer, scale, self.local)
                    .unsqueeze(2)
            }
            _ => unreachable!("a layer has a cache where the pass has one"),
        };
        let y_btd = y_bhte.transpose(1, 2).flatten(2, 3);
        self.output.forward(&y_btd, context.adapter_dropout)
    }
}

/// One block: attention and MLP, each with a norm, added to the residual stream.
#[derive(Debug)]
pub(crate) struct Block {
    attention_norm: Norm,
    attention: Attention,
    /// Absent where the MLP takes attention's norm.
    mlp_norm: Option<Norm>,
    mlp: Mlp,
    order: BlockOrder,
    activation: Activation,
}

impl Block {
    pub(crate) fn new(params: &Params, index: usize) -> Self {
        let (shape, names) = (params.shape, params.shape.names());
        let block = format!("{}.{index}", names.block);
        let [attention_norm, mlp_norm] = names.norms.map(|part| format!("{block}.{part}"));
        let two_norms = shape.order != BlockOrder::ParallelOneNorm;
        Self {
            attention_norm: params.norm(&attention_norm),
            attention: Attention::new(params, &block, index),
            mlp_norm: two_norms.then(|| params.norm(&mlp_norm)),
            mlp: Mlp::new(params, &block),
            order: shape.order,
            activation: shape.activation,
        }
    }

    /// `x_btd` to the same shape, or to the columns that are wanted. `dropout` is the rate on what is added to the
    /// residual stream.
    pub(crate) fn forward(
        &self,
        x_btd: &Tensor,
        context: &Context,
        cache: Option<&LayerCache>,
        dropout: f64,
        columns: Columns,
    ) -> Tensor {
        let drop = |y: Tensor| {
            if dropout > 0.0 {
                y.dropout(dropout, true)
            } else {
                y
            }
        };
        let tail = context.tail(columns);
        let wanted = |x: &Tensor| match tail {
            Some(tail) => tail.selection.of(x, 1),
            None => x.shallow_clone(),
        };
        let attention = |x: &Tensor| drop(self.attention.forward(x, context, cache, tail));
        let rate = context.adapter_dropout;
        let mlp = |x: &Tensor| drop(self.mlp.forward(x, self.activation, rate));
        let norm1 = |x: &Tensor| self.attention_norm.forward(x);
        let mlp_norm = self.mlp_norm.as_ref().unwrap_or(&self.attention_norm);
        match self.order {
            BlockOrder::PreNorm => {
                let added = attention(&norm1(x_btd));
                let (x_btd, normed) = mlp_norm.forward_sum(&wanted(x_btd), &added);
                x_btd + mlp(&normed)
            }
            BlockOrder::PostNorm => {
                let norm1 = &self.attention_norm;
                let (_, x_btd) = norm1.forward_sum(&wanted(x_btd), &attention(x_btd));
                mlp_norm.forward_sum(&x_btd, &mlp(&x_btd)).1
            }
            BlockOrder::ParallelOneNorm => {
                let normed = norm1(x_btd);
                wanted(x_btd) + attention(&normed) + mlp(&wanted(&normed))
            }
            BlockOrder::ParallelTwoNorms => {
                let x_wanted = wanted(x_btd);
                &x_wanted + attention(&norm1(x_btd)) + mlp(&mlp_norm.forward(&x_wanted))
            }
        }
    }
}

/// Of tensors that the model itself made.
pub(crate) fn fused<T>(made: Result<T, TorchError>) -> T {
    made.unwrap_or_else(|error| panic!("{error}"))
}
