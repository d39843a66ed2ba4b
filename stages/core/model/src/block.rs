//! One transformer block of either family.
//!
//! Shape suffixes: b rows, t positions, s key positions, d width, h heads, e width of a head.

use std::collections::BTreeMap;

use recipe::shape::{Family, ModelShape};
use tch::Tensor;

use crate::attention::{Mask, Rotary, attend};

/// What all blocks of one forward pass share.
#[derive(Debug)]
pub(crate) struct Context {
    /// Present where positions enter through attention (Llama).
    pub(crate) rotary: Option<Rotary>,
    /// Which keys a query sees.
    pub(crate) mask: Mask,
}

/// Keys and values of one layer, `[b, h, capacity, e]`, of which `past` positions are filled.
pub(crate) struct LayerCache<'a> {
    pub(crate) keys: &'a Tensor,
    pub(crate) values: &'a Tensor,
    pub(crate) past: i64,
}

/// The parameters of a model by name; a missing one is a broken invariant (`layout` made them).
pub(crate) struct Params<'a>(pub(crate) &'a BTreeMap<String, Tensor>);

impl Params<'_> {
    pub(crate) fn get(&self, name: &str) -> Tensor {
        self.0
            .get(name)
            .unwrap_or_else(|| panic!("parameter `{name}` exists"))
            .shallow_clone()
    }

    fn linear(&self, name: &str) -> Linear {
        Linear::OutIn(self.get(&format!("{name}.weight")))
    }

    fn conv1d(&self, name: &str) -> Linear {
        let bias = self.get(&format!("{name}.bias"));
        Linear::InOut {
            weight: self.get(&format!("{name}.weight")),
            bias,
        }
    }
}

/// A matrix in its family's layout.
#[derive(Debug)]
enum Linear {
    /// `[out, in]`, no bias (Llama).
    OutIn(Tensor),
    /// `[in, out]` with a bias (GPT-2's `Conv1D`).
    InOut { weight: Tensor, bias: Tensor },
}

impl Linear {
    fn forward(&self, x_btd: &Tensor) -> Tensor {
        match self {
            Self::OutIn(weight) => x_btd.linear(weight, None::<Tensor>),
            Self::InOut { weight, bias } => {
                let dims = x_btd.size();
                let rows = x_btd.reshape([-1, dims[2]]);
                bias.addmm(&rows, weight).view([dims[0], dims[1], -1])
            }
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
    pub(crate) fn new(params: &Params, name: &str, shape: &ModelShape) -> Self {
        let bias = (shape.family == Family::Gpt2).then(|| params.get(&format!("{name}.bias")));
        Self {
            weight: params.get(&format!("{name}.weight")),
            bias,
            eps: shape.norm_eps,
        }
    }

    pub(crate) fn forward(&self, x_btd: &Tensor) -> Tensor {
        let dims = self.weight.size();
        match &self.bias {
            Some(bias) => x_btd.layer_norm(dims, Some(&self.weight), Some(bias), self.eps, true),
            None => x_btd.rms_norm(dims, Some(&self.weight), self.eps),
        }
    }
}

#[derive(Debug)]
enum QueryKeyValue {
    Fused(Linear),
    Split([Linear; 3]),
}

#[derive(Debug)]
enum Mlp {
    Gelu {
        up: Linear,
        down: Linear,
    },
    SwiGlu {
        gate: Linear,
        up: Linear,
        down: Linear,
    },
}

impl Mlp {
    fn forward(&self, x_btd: &Tensor) -> Tensor {
        match self {
            // GPT-2's "gelu_new" is the tanh approximation.
            Self::Gelu { up, down } => down.forward(&up.forward(x_btd).gelu("tanh")),
            Self::SwiGlu { gate, up, down } => {
                down.forward(&(gate.forward(x_btd).silu() * up.forward(x_btd)))
            }
        }
    }
}

/// One block: attention, then the MLP, each behind a norm and added to the residual stream.
#[derive(Debug)]
pub(crate) struct Block {
    attention_norm: Norm,
    qkv: QueryKeyValue,
    output: Linear,
    mlp_norm: Norm,
    mlp: Mlp,
    heads: i64,
    kv_heads: i64,
}

impl Block {
    pub(crate) fn new(params: &Params, shape: &ModelShape, index: usize) -> Self {
        let (heads, kv_heads) = (shape.heads as i64, shape.kv_heads as i64);
        match shape.family {
            Family::Gpt2 => {
                let name = |part: &str| format!("transformer.h.{index}.{part}");
                Self {
                    attention_norm: Norm::new(params, &name("ln_1"), shape),
                    qkv: QueryKeyValue::Fused(params.conv1d(&name("attn.c_attn"))),
                    output: params.conv1d(&name("attn.c_proj")),
                    mlp_norm: Norm::new(params, &name("ln_2"), shape),
                    mlp: Mlp::Gelu {
                        up: params.conv1d(&name("mlp.c_fc")),
                        down: params.conv1d(&name("mlp.c_proj")),
                    },
                    heads,
                    kv_heads,
                }
            }
            Family::Llama => {
                let name = |part: &str| format!("model.layers.{index}.{part}");
                let qkv = ["q_proj", "k_proj", "v_proj"]
                    .map(|part| params.linear(&name(&format!("self_attn.{part}"))));
                Self {
                    attention_norm: Norm::new(params, &name("input_layernorm"), shape),
                    qkv: QueryKeyValue::Split(qkv),
                    output: params.linear(&name("self_attn.o_proj")),
                    mlp_norm: Norm::new(params, &name("post_attention_layernorm"), shape),
                    mlp: Mlp::SwiGlu {
                        gate: params.linear(&name("mlp.gate_proj")),
                        up: params.linear(&name("mlp.up_proj")),
                        down: params.linear(&name("mlp.down_proj")),
                    },
                    heads,
                    kv_heads,
                }
            }
        }
    }

    /// `x_btd` to the same shape. `dropout` is the rate on what is added to the residual stream.
    pub(crate) fn forward(
        &self,
        x_btd: &Tensor,
        context: &Context,
        cache: Option<&LayerCache>,
        dropout: f64,
    ) -> Tensor {
        let drop = |y: Tensor| {
            if dropout > 0.0 {
                y.dropout(dropout, true)
            } else {
                y
            }
        };
        let normed = self.attention_norm.forward(x_btd);
        let x_btd = x_btd + drop(self.attention(&normed, context, cache));
        let normed = self.mlp_norm.forward(&x_btd);
        &x_btd + drop(self.mlp.forward(&normed))
    }

    fn attention(&self, x_btd: &Tensor, context: &Context, cache: Option<&LayerCache>) -> Tensor {
        let (rows, len) = (x_btd.size()[0], x_btd.size()[1]);
        let split = |y: &Tensor, heads: i64| y.view([rows, len, heads, -1]).transpose(1, 2);
        let [mut q, mut k, v] = match &self.qkv {
            QueryKeyValue::Fused(linear) => {
                let parts = linear.forward(x_btd).chunk(3, -1);
                [0, 1, 2].map(|i| {
                    parts[i]
                        .reshape([rows, len, self.heads, -1])
                        .transpose(1, 2)
                })
            }
            QueryKeyValue::Split([q, k, v]) => [
                split(&q.forward(x_btd), self.heads),
                split(&k.forward(x_btd), self.kv_heads),
                split(&v.forward(x_btd), self.kv_heads),
            ],
        };
        if let Some(rotary) = &context.rotary {
            q = rotary.rotate(&q);
            k = rotary.rotate(&k);
        }
        let y_bhte = match cache {
            None => attend(&q, &k, &v, &context.mask),
            Some(cache) => {
                let total = cache.past + len;
                cache.keys.narrow(2, cache.past, len).copy_(&k);
                cache.values.narrow(2, cache.past, len).copy_(&v);
                let keys = cache.keys.narrow(2, 0, total);
                attend(&q, &keys, &cache.values.narrow(2, 0, total), &context.mask)
            }
        };
        self.output
            .forward(&y_bhte.transpose(1, 2).reshape([rows, len, -1]))
    }
}
