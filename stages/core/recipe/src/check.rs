//! Whether the numbers of a shape fit together.

use crate::error::ShapeError;
use crate::families::Sizes;
use crate::shape::{ModelShape, Positions, RopeScaling, Rotary};

/// The largest sizes of a model: far above every published one, and small enough that counts of
/// parameters, operations and bytes fit 64 bits.
const MOST_LAYERS: usize = 10_000;
const WIDEST: usize = 1 << 20;
const MOST_POSITIONS: usize = 1 << 24;
const LARGEST_VOCABULARY: usize = 1 << 28;

/// A size beyond its bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Excess {
    /// The size's name, which is its key in the table `model`.
    pub(crate) name: &'static str,
    pub(crate) found: usize,
    pub(crate) most: usize,
}

impl Excess {
    pub(crate) const HINT: &str =
        "no model of this size is computed; look for a slip in the number";

    /// The first that is beyond its bound.
    fn first(sizes: &[(&'static str, usize, usize)]) -> Option<Self> {
        let beyond = sizes.iter().find(|(_, found, most)| found > most);
        beyond.map(|&(name, found, most)| Self { name, found, most })
    }
}

impl From<Excess> for ShapeError {
    fn from(Excess { name, found, most }: Excess) -> Self {
        Self::Inconsistent {
            what: format!("{name} must be at most {most}, is {found}"),
            hint: Excess::HINT,
        }
    }
}

impl Sizes {
    /// The first size beyond its bound.
    pub(crate) fn excess(&self) -> Option<Excess> {
        Excess::first(&[
            ("layers", self.layers, MOST_LAYERS),
            ("width", self.width, WIDEST),
            ("heads", self.heads, WIDEST),
            ("max_positions", self.max_positions, MOST_POSITIONS),
            ("vocab_size", self.vocab_size, LARGEST_VOCABULARY),
        ])
    }
}

impl ModelShape {
    /// The first size beyond its bound.
    pub(crate) fn excess(&self) -> Option<Excess> {
        let sizes = Sizes {
            vocab_size: self.vocab_size,
            max_positions: self.max_positions,
            layers: self.layers,
            width: self.width,
            heads: self.heads,
        };
        let queries = self.heads.saturating_mul(self.head_dim);
        let window = self.local.as_ref().map_or(0, |local| local.window);
        sizes.excess().or(Excess::first(&[
            ("embedding_width", self.embedding_width, WIDEST),
            ("kv_heads", self.kv_heads, WIDEST),
            ("head_dim", self.head_dim, WIDEST),
            ("heads times head_dim", queries, WIDEST),
            ("mlp_width", self.mlp_width, WIDEST),
            ("window", window, MOST_POSITIONS),
        ]))
    }

    /// Checks that the numbers fit together.
    ///
    /// # Errors
    /// [`ShapeError::Inconsistent`], naming the numbers and the rule.
    pub fn check(&self) -> Result<(), ShapeError> {
        let sizes = [
            self.vocab_size,
            self.max_positions,
            self.layers,
            self.width,
            self.embedding_width,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.mlp_width,
        ];
        if sizes.contains(&0) {
            let what = format!("a size is 0 in {self:?}");
            return wrong(what, "every size must be at least 1");
        }
        if let Some(excess) = self.excess() {
            return Err(excess.into());
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            let what = format!("norm_eps must be above 0 and below 1, is {}", self.norm_eps);
            return wrong(what, "1e-5 is usual");
        }
        self.check_heads()?;
        if let Some(local) = &self.local
            && (local.window == 0 || local.layers.iter().any(|layer| *layer >= self.layers))
        {
            let what = format!("{local:?} in a model of {} layers", self.layers);
            return wrong(what, "a window is 1 token at least, of layers that exist");
        }
        match &self.positions {
            Positions::Rotary(rotary) => self.check_rotary(rotary),
            Positions::Learned { .. } | Positions::Sinusoidal | Positions::Alibi => Ok(()),
        }
    }

    fn check_heads(&self) -> Result<(), ShapeError> {
        let Self {
            family,
            width,
            heads,
            kv_heads,
            head_dim,
            ..
        } = *self;
        if heads % kv_heads != 0 {
            let what = format!("kv_heads {kv_heads} must divide heads {heads}");
            return wrong(
                what,
                "give as many key heads as query heads, or a divisor of them",
            );
        }
        if heads * head_dim != width && !family.free_head_dim() {
            let what = format!("heads {heads} times head_dim {head_dim} must be width {width}");
            return wrong(what, "choose a number of heads that divides the width");
        }
        if kv_heads != heads && !family.grouped() {
            let what = format!("kv_heads {kv_heads} must be heads {heads}");
            return wrong(
                what,
                "models of this family have no grouped-query attention",
            );
        }
        Ok(())
    }

    fn check_rotary(&self, rotary: &Rotary) -> Result<(), ShapeError> {
        let (rotated, head_dim) = (rotary.width, self.head_dim);
        if rotated % 2 != 0 || rotated == 0 || rotated > head_dim {
            let what =
                format!("{rotated} of the {head_dim} numbers of a head (head_dim) are rotated");
            return wrong(
                what,
                "rotary positions rotate pairs of numbers: an even part of a head, above 0",
            );
        }
        if !(rotary.theta > 0.0 && rotary.theta.is_finite()) {
            let what = format!("rope_theta must be above 0, is {}", rotary.theta);
            return wrong(what, "10000 is usual");
        }
        check_scaling(rotary)
    }
}

fn check_scaling(rotary: &Rotary) -> Result<(), ShapeError> {
    let factor = match rotary.scaling {
        RopeScaling::None => return Ok(()),
        RopeScaling::Linear { factor }
        | RopeScaling::Llama3 { factor, .. }
        | RopeScaling::Dynamic { factor, .. } => factor,
        RopeScaling::Yarn(yarn) => yarn.factor,
    };
    if !(factor > 0.0 && factor.is_finite()) {
        let what = format!("the factor of rope_scaling must be above 0, is {factor}");
        return wrong(what, "it says how many times longer the context became");
    }
    match rotary.scaling {
        RopeScaling::Llama3 {
            low_frequency: low,
            high_frequency: high,
            ..
        } if low.partial_cmp(&high) != Some(std::cmp::Ordering::Less) => {
            let what = format!("low_freq_factor {low} must be below high_freq_factor {high}");
            wrong(what, "Llama 3's are 1 and 4")
        }
        RopeScaling::Dynamic { factor, .. } if factor < 1.0 => {
            let what = format!("the factor of dynamic scaling must be at least 1, is {factor}");
            wrong(what, "2 makes rows of twice the trained length possible")
        }
        RopeScaling::Dynamic { .. } if rotary.width == 2 => {
            let what = "dynamic scaling of 2 rotated numbers of a head".to_owned();
            wrong(what, "its exponent w / (w - 2) needs more than 2")
        }
        _ => Ok(()),
    }
}

fn wrong<T>(what: String, hint: &'static str) -> Result<T, ShapeError> {
    Err(ShapeError::Inconsistent { what, hint })
}
