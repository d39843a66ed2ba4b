//! Whether the numbers of a shape fit together.

use crate::error::ShapeError;
use crate::shape::{ModelShape, Positions, RopeScaling, Rotary};

impl ModelShape {
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
        let (turned, head_dim) = (rotary.width, self.head_dim);
        if turned % 2 != 0 || turned == 0 || turned > head_dim {
            let what =
                format!("{turned} of the {head_dim} numbers of a head (head_dim) are turned");
            return wrong(
                what,
                "rotary positions turn pairs of numbers: an even part of a head, above 0",
            );
        }
        if !(rotary.theta > 0.0 && rotary.theta.is_finite()) {
            let what = format!("rope_theta must be above 0, is {}", rotary.theta);
            return wrong(what, "10000 is usual");
        }
        if let RopeScaling::Dynamic { factor, .. } = rotary.scaling {
            if !(factor >= 1.0 && factor.is_finite()) {
                let what = format!("the factor of dynamic scaling must be at least 1, is {factor}");
                return wrong(what, "2 makes rows of twice the trained length possible");
            }
            if turned == 2 {
                let what = "dynamic scaling of 2 turned numbers of a head".to_owned();
                return wrong(what, "its exponent w / (w - 2) needs more than 2");
            }
        }
        Ok(())
    }
}

fn wrong<T>(what: String, hint: &'static str) -> Result<T, ShapeError> {
    Err(ShapeError::Inconsistent { what, hint })
}
