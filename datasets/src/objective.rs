//! Objectives of pretraining: what is hidden of a row of text, and what is to be predicted.
//!
//! What becomes of a row is a function of (seed, purpose, the row's number) alone: no batch, batch mate
//! or resumption changes it. Special tokens (ends of documents, turns) are never hidden: they are not
//! text, and a blank would join two documents.

use serde::{Deserialize, Serialize};

use crate::infill::{Blanks, Infill};
use crate::lm_row::LmRow;
use crate::masked::Masked;
use crate::tokenizer::Tokenizer;
use crate::tokenizer_error::TokenizerError;

/// The share of a row's text that is hidden (Devlin et al. 2019, section 3.1; Du et al. 2022, section
/// 2.1).
pub const HIDDEN_SHARE: f64 = 0.15;

/// What a model is pretrained to predict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// The next token, from those before it (Radford et al. 2018).
    #[default]
    Causal,
    /// Hidden tokens, from both sides (BERT; Devlin et al. 2019).
    Masked,
    /// Hidden spans, token by token, from both sides and what is already filled in (GLM; Du et al.
    /// 2022).
    Infill,
}

/// A special token that an objective puts into rows.
struct Needed {
    /// What it stands for.
    role: &'static str,
    /// The key of `tokenizer_config.json` that names it, where there is a usual one.
    key: Option<&'static str>,
    /// Its names; tokenizers trained here have the first.
    names: &'static [&'static str],
}

const MASK: Needed = Needed {
    role: "what is hidden",
    key: Some("mask_token"),
    names: &["<|mask|>", "[MASK]", "<mask>"],
};
const START: Needed = Needed {
    role: "the start of a span",
    key: None,
    names: &["<|startofpiece|>", "<sop>"],
};
const END: Needed = Needed {
    role: "the end of a span",
    key: None,
    names: &["<|endofpiece|>", "<eop>"],
};

impl Objective {
    /// Every objective, by its word in the configuration.
    pub const ALL: &[(&str, Self)] = &[
        ("causal", Self::Causal),
        ("masked", Self::Masked),
        ("infill", Self::Infill),
    ];

    /// Its word in the configuration.
    pub fn word(self) -> &'static str {
        match self {
            Self::Causal => "causal",
            Self::Masked => "masked",
            Self::Infill => "infill",
        }
    }

    fn needed(self) -> &'static [Needed] {
        match self {
            Self::Causal => &[],
            Self::Masked => &[MASK],
            Self::Infill => &[MASK, START, END],
        }
    }

    /// The special tokens that a tokenizer which is trained here gets for it.
    pub fn special_tokens(self) -> impl Iterator<Item = &'static str> {
        self.needed().iter().map(|token| token.names[0])
    }

    /// The ids of its special tokens, in the order of [`Self::special_tokens`].
    fn token_ids(self, tokenizer: &Tokenizer) -> Result<Vec<u32>, TokenizerError> {
        let find = |token: &Needed| {
            let declared = token.key.and_then(|key| tokenizer.declared(key));
            let named = token.names.iter().map(|name| (*name).to_owned());
            let mut ordinary = None;
            for name in declared.into_iter().chain(named) {
                match tokenizer.id_of(&name) {
                    Some(id) if tokenizer.is_special(id) => return Ok(id),
                    Some(_) => ordinary = ordinary.or(Some(name)),
                    None => {}
                }
            }
            Err(TokenizerError::NoObjectiveToken {
                objective: self.word(),
                role: token.role,
                names: token.names.join(", "),
                found: ordinary.map_or_else(
                    || "which the tokenizer does not have".to_owned(),
                    |name| format!("and the tokenizer's {name:?} is not special"),
                ),
            })
        };
        self.needed().iter().map(find).collect()
    }

    /// Checks that a tokenizer has the special tokens that it needs.
    ///
    /// # Errors
    /// [`TokenizerError::NoObjectiveToken`] names the first that is missing.
    pub fn check(self, tokenizer: &Tokenizer) -> Result<(), TokenizerError> {
        self.token_ids(tokenizer).map(drop)
    }

    /// Tokens of the longest row that `context` tokens of text become: each span of an infilled row
    /// adds its blank and its start.
    pub fn longest_row(self, context: usize) -> usize {
        match self {
            Self::Causal | Self::Masked => context,
            Self::Infill => context + 2 * num_hidden(context),
        }
    }
}

/// Tokens to be hidden among `num_ordinary` that may be.
pub(crate) fn num_hidden(num_ordinary: usize) -> usize {
    (num_ordinary as f64 * HIDDEN_SHARE).ceil() as usize
}

/// Makes tasks of rows of text.
#[derive(Debug, Clone)]
pub struct Tasks(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Causal,
    Masked(Masked),
    Infill(Infill),
}

/// The tokens of a tokenizer that may be hidden, ascending.
#[derive(Debug, Clone)]
pub(crate) struct Ordinary(pub Vec<u32>);

impl Ordinary {
    fn of(tokenizer: &Tokenizer) -> Self {
        let all = 0..tokenizer.vocab_size() as u32;
        Self(all.filter(|id| !tokenizer.is_special(*id)).collect())
    }

    pub fn contains(&self, id: u32) -> bool {
        self.0.binary_search(&id).is_ok()
    }
}

impl Tasks {
    /// The tasks of an objective; `purpose` tells those of one seed apart.
    ///
    /// # Errors
    /// [`TokenizerError::NoObjectiveToken`].
    pub fn new(
        objective: Objective,
        tokenizer: &Tokenizer,
        seed: u64,
        purpose: &str,
    ) -> Result<Self, TokenizerError> {
        let ids = objective.token_ids(tokenizer)?;
        let ordinary = Ordinary::of(tokenizer);
        let seed = runtime::seeds::key(seed, purpose, 0, 0);
        Ok(Self(match (objective, &ids[..]) {
            (Objective::Masked, &[mask]) => Kind::Masked(Masked {
                mask,
                ordinary,
                seed,
            }),
            (Objective::Infill, &[mask, start, end]) => Kind::Infill(Infill {
                blanks: Blanks { mask, start, end },
                ordinary,
                seed,
            }),
            _ => Kind::Causal,
        }))
    }

    /// The task that the `number`-th row becomes.
    pub fn row(&self, ids: Vec<u32>, number: u64) -> LmRow {
        match &self.0 {
            Kind::Causal => LmRow::plain(ids),
            Kind::Masked(masked) => masked.row(ids, number),
            Kind::Infill(infill) => infill.row(&ids, number),
        }
    }
}

#[cfg(test)]
#[path = "objective_tests.rs"]
mod tests;
