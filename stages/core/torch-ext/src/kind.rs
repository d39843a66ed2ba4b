//! Types of numbers.

use tch::Kind;

/// In what numbers of a type are computed where their rounding would show: f64 stays, all else is f32.
pub fn wide_kind(kind: Kind) -> Kind {
    match kind {
        Kind::Double => Kind::Double,
        _ => Kind::Float,
    }
}
