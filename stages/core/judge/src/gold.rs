//! Gold rules: known rewards, so that improvement can be measured and not only believed.

use crate::vader;

/// A rule that scores a response by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoldRule {
    /// VADER's compound sentiment (Hutto and Gilbert 2014), -1 to 1.
    Vader,
}

impl GoldRule {
    /// The score of a response; higher is better. Any text has a score, the empty one 0.
    pub fn score(self, response: &str) -> f64 {
        match self {
            Self::Vader => vader::compound(response),
        }
    }
}

impl From<recipe::plan::GoldRule> for GoldRule {
    fn from(rule: recipe::plan::GoldRule) -> Self {
        match rule {
            recipe::plan::GoldRule::Vader => Self::Vader,
        }
    }
}
