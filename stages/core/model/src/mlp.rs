//! The multi-layer perceptron of a block.
//!
//! Shape suffixes: b rows, t positions, d width.

use recipe::families::MlpNames;
use recipe::shape::Activation;
use tch::Tensor;
use torch_ext::{gelu_tanh, is_fusible, swiglu};

use crate::block::{Params, fused};
use crate::linear::Linear;

/// `activation(gate) up`.
fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Tensor {
    if activation == Activation::Silu && is_fusible(gate) {
        fused(swiglu(gate, up))
    } else {
        activate(gate, activation) * up
    }
}

#[derive(Debug)]
pub(crate) enum Mlp {
    Plain {
        up: Linear,
        down: Linear,
    },
    Gated {
        gate: Linear,
        up: Linear,
        down: Linear,
    },
    /// Gate and up in one matrix.
    FusedGate {
        both: Linear,
        down: Linear,
    },
}

impl Mlp {
    pub(crate) fn new(params: &Params, block: &str) -> Self {
        let biased = params.shape.biases.mlp;
        let linear = |part: &str| params.linear(&format!("{block}.{part}"), biased);
        match params.shape.names().mlp {
            MlpNames::Plain(parts) => {
                let [up, down] = parts.map(linear);
                Self::Plain { up, down }
            }
            MlpNames::Gated([gate, up, down]) => {
                let names = [gate, up].map(|part| format!("{block}.{part}"));
                match params.joined(&names, biased) {
                    Some(both) => Self::FusedGate {
                        both,
                        down: linear(down),
                    },
                    None => Self::Gated {
                        gate: linear(gate),
                        up: linear(up),
                        down: linear(down),
                    },
                }
            }
            MlpNames::FusedGate(parts) => {
                let [both, down] = parts.map(linear);
                Self::FusedGate { both, down }
            }
        }
    }

    pub(crate) fn forward(&self, x_btd: &Tensor, activation: Activation, dropout: f64) -> Tensor {
        match self {
            Self::Plain { up, down } => {
                let up = match up.without_bias(x_btd) {
                    Some((product, bias)) if activation == Activation::GeluTanh => {
                        fused(gelu_tanh(&product, Some(bias)))
                    }
                    _ => activate(&up.forward(x_btd, dropout), activation),
                };
                down.forward(&up, dropout)
            }
            Self::Gated { gate, up, down } => {
                let (gate, up) = (gate.forward(x_btd, dropout), up.forward(x_btd, dropout));
                down.forward(&gated(&gate, &up, activation), dropout)
            }
            Self::FusedGate { both, down } => {
                let parts = both.forward(x_btd, dropout).chunk(2, -1);
                down.forward(&gated(&parts[0], &parts[1], activation), dropout)
            }
        }
    }
}

fn activate(x: &Tensor, activation: Activation) -> Tensor {
    match activation {
        Activation::GeluTanh if is_fusible(x) => fused(gelu_tanh(x, None)),
        Activation::GeluTanh => x.gelu("tanh"),
        Activation::Gelu => x.gelu("none"),
        Activation::Relu => x.relu(),
        Activation::Silu => x.silu(),
    }
}
