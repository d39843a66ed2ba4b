//! How a model knows the order of its tokens: rotary and sinusoidal positions.
//!
//! Shape suffixes: b rows, t positions, h heads, e width of a head, f frequencies, d width.

use std::f64::consts::PI;

use recipe::shape::{RopeScaling, Rotary, Yarn};
use tch::{Device, Kind, Tensor};
use torch_ext::{is_fusible, wide_kind};

/// Rotary position embedding (Su et al. 2021): `x cos + rotate(x) sin` of the first numbers of a head,
/// where `rotate` takes pairs of numbers a half apart (Llama), or of neighbours (GLM).
#[derive(Debug)]
pub(crate) struct Rotation {
    cos_b1te: Tensor,
    sin_b1te: Tensor,
    interleaved: bool,
}

impl Rotation {
    /// Tables for the given positions, computed in f32 (f64 for f64 models), as transformers does.
    /// `lengths_b`: tokens of each row, for dynamic scaling; where it is absent, each row ends with its
    /// largest position.
    pub(crate) fn new(
        rotary: &Rotary,
        positions_bt: &Tensor,
        lengths_b: Option<&Tensor>,
        kind: Kind,
    ) -> Self {
        let precise = wide_kind(kind);
        let theta = match rotary.scaling {
            RopeScaling::Dynamic { factor, original } => {
                let lengths_b = lengths_b
                    .map_or_else(|| positions_bt.amax([-1], false) + 1, Tensor::shallow_clone);
                dynamic_theta(rotary, (factor, original), &lengths_b)
            }
            _ => plain_theta(rotary, positions_bt.device()),
        };
        let frequencies_f = frequencies(rotary, &theta, precise);
        let angles_btf = positions_bt.to_kind(precise).unsqueeze(-1) * frequencies_f;
        let angles_bte = if rotary.interleaved {
            angles_btf.repeat_interleave_self_int(2, -1, None)
        } else {
            Tensor::cat(&[&angles_btf, &angles_btf], -1)
        };
        let angles_b1te = angles_bte.unsqueeze(1);
        let table = |x_b1te: Tensor| match rotary.scaling {
            RopeScaling::Yarn(yarn) => (x_b1te * yarn.attention_factor).to_kind(kind),
            _ => x_b1te.to_kind(kind),
        };
        Self {
            cos_b1te: table(angles_b1te.cos()),
            sin_b1te: table(angles_b1te.sin()),
            interleaved: rotary.interleaved,
        }
    }

    pub(crate) fn apply(&self, x_bhte: &Tensor) -> Tensor {
        if is_fusible(x_bhte) {
            let Self {
                cos_b1te, sin_b1te, ..
            } = self;
            return torch_ext::rotate(x_bhte, cos_b1te, sin_b1te, self.interleaved)
                .unwrap_or_else(|error| panic!("{error}"));
        }
        let (width, rotated) = (last(x_bhte), last(&self.cos_b1te));
        if rotated == width {
            return self.apply_whole(x_bhte);
        }
        let head = self.apply_whole(&x_bhte.narrow(-1, 0, rotated));
        Tensor::cat(&[&head, &x_bhte.narrow(-1, rotated, width - rotated)], -1)
    }

    fn apply_whole(&self, x_bhte: &Tensor) -> Tensor {
        let rotated = if self.interleaved {
            let even = x_bhte.slice(-1, 0, None, 2);
            let odd = x_bhte.slice(-1, 1, None, 2);
            Tensor::stack(&[&-odd, &even], -1).flatten(-2, -1)
        } else {
            let halves = x_bhte.chunk(2, -1);
            Tensor::cat(&[&-&halves[1], &halves[0]], -1)
        };
        x_bhte * &self.cos_b1te + rotated * &self.sin_b1te
    }
}

fn last(tensor: &Tensor) -> i64 {
    tensor.size().last().copied().unwrap_or_default()
}

/// What a scaling divides the plain frequencies by, `[f]`, f64.
pub(crate) fn divisors(rotary: &Rotary) -> Tensor {
    let plain = Rotary {
        scaling: RopeScaling::None,
        ..*rotary
    };
    let (theta, kind) = (plain_theta(rotary, Device::Cpu), Kind::Double);
    frequencies(&plain, &theta, kind) / frequencies(rotary, &theta, kind)
}

/// The base as the model names it, a scalar in f64.
fn plain_theta(rotary: &Rotary, device: Device) -> Tensor {
    Tensor::full([0i64; 0], rotary.theta, (Kind::Double, device))
}

/// The base for rows of these lengths, `[b, 1, 1]` in f64: [`RopeScaling::Dynamic`]'s, in a form that is
/// exactly `theta` within the trained length.
fn dynamic_theta(rotary: &Rotary, (factor, original): (f64, usize), lengths_b: &Tensor) -> Tensor {
    let beyond_b = (lengths_b.to_kind(Kind::Double) / original as f64 - 1.0).clamp_min(0.0);
    let width = rotary.width as f64;
    let stretch_b = (beyond_b * factor + 1.0).pow_tensor_scalar(width / (width - 2.0));
    (stretch_b * rotary.theta).view([-1, 1, 1])
}

/// Radians per position of each rotated pair, `[f]` (`[b, 1, f]` for a base of each row): `theta^(-2i/width)`,
/// stretched as the model says.
fn frequencies(rotary: &Rotary, theta: &Tensor, kind: Kind) -> Tensor {
    let device = theta.device();
    let width = rotary.width as i64;
    let exponents_f = Tensor::arange_start_step(0, width, 2, (Kind::Int64, device));
    let exponents_f = exponents_f.to_kind(kind) / width as f64;
    let plain_f = theta.to_kind(kind).pow(&exponents_f).reciprocal();
    match rotary.scaling {
        RopeScaling::None | RopeScaling::Dynamic { .. } => plain_f,
        RopeScaling::Linear { factor } => plain_f / factor,
        RopeScaling::Llama3 {
            factor,
            low_frequency,
            high_frequency,
            original,
        } => {
            // Turns within the original context: few are divided, many are kept.
            let turns_f = &plain_f * (original as f64 / (2.0 * PI));
            let kept_f =
                ((turns_f - low_frequency) / (high_frequency - low_frequency)).clamp(0.0, 1.0);
            blend(&plain_f, factor, &kept_f)
        }
        RopeScaling::Yarn(yarn) => {
            let (low, high) = yarn_range(rotary, &yarn);
            let pairs_f = Tensor::arange(width / 2, (kind, device));
            let divided_f = ((pairs_f - low) / (high - low)).clamp(0.0, 1.0);
            blend(&plain_f, yarn.factor, &(1.0 - divided_f))
        }
    }
}

/// `kept` of each plain frequency, and the rest of it divided by `factor`.
fn blend(plain_f: &Tensor, factor: f64, kept_f: &Tensor) -> Tensor {
    plain_f / factor * (1.0 - kept_f) + plain_f * kept_f
}

/// The pairs between which `YaRN`'s ramp lies: those that go round `beta_fast` and `beta_slow` times within the
/// original context.
fn yarn_range(rotary: &Rotary, yarn: &Yarn) -> (f64, f64) {
    let width = rotary.width as f64;
    let pair = |turns: f64| {
        width * (yarn.original as f64 / (turns * 2.0 * PI)).ln() / (2.0 * rotary.theta.ln())
    };
    let (mut low, mut high) = (pair(yarn.beta_fast), pair(yarn.beta_slow));
    if yarn.truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, high) = (low.max(0.0), high.min(width - 1.0));
    (
        low,
        if high - low == 0.0 {
            high + 0.001
        } else {
            high
        },
    )
}

/// Sinusoidal positions (Vaswani et al. 2017, section 3.5), `[t, d]` in f64 on the CPU:
/// `sin(t / 10000^(2i/d))` in column `2i`, and its cosine in the next.
pub(crate) fn sinusoidal(positions: usize, width: usize) -> Tensor {
    let options = (Kind::Double, Device::Cpu);
    let columns_d = Tensor::arange(width as i64, options);
    let exponents_d = columns_d.divide_scalar_mode(2.0, "floor") * (2.0 / width as f64);
    let frequencies_d = (exponents_d * -10_000f64.ln()).exp();
    let angles_td = Tensor::arange(positions as i64, options).unsqueeze(1) * frequencies_d;
    let odd_d = columns_d.remainder(2.0).eq(1.0);
    angles_td.cos().where_self(&odd_d, &angles_td.sin())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked out by hand: the second pair turns a hundredth as fast.
    #[test]
    fn sinusoidal_positions_are_those_of_the_paper() {
        let table: Vec<f64> = sinusoidal(3, 4).view(-1).try_into().expect("numbers");
        let expected = [
            [0.0, 1.0, 0.0, 1.0],
            [0.841_470_985, 0.540_302_306, 0.009_999_833, 0.999_950_000],
            [0.909_297_427, -0.416_146_837, 0.019_998_667, 0.999_800_007],
        ];
        for (found, expected) in table.iter().zip(expected.as_flattened()) {
            assert!((found - expected).abs() < 1e-9, "{table:?}");
        }
    }
}
