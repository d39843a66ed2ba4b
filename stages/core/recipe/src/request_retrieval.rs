//! What `rlhf eval retrieval` asks of the worker, and the answer.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::request::Compute;

/// `rlhf eval retrieval`: a number hidden in texts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetrievalRequest {
    /// A language model's folder.
    pub model: PathBuf,
    /// Tokens of a text and its answer at most; each is tried.
    pub lengths: Vec<usize>,
    /// Places of the number in the text.
    pub depths: usize,
    /// Numbers hidden at each place.
    pub samples: usize,
    /// From which the numbers derive.
    pub seed: u64,
    /// How it is computed.
    pub compute: Compute,
}

/// The answer to a [`RetrievalRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RetrievalReport {
    /// The model's own longest sequence, tokens.
    pub max_positions: usize,
    /// Numbers hidden at each place.
    pub samples: usize,
    /// From which the numbers derive.
    pub seed: u64,
    /// In the order of the request.
    pub lengths: Vec<LengthReport>,
}

/// How often numbers are found in texts of one length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LengthReport {
    /// Tokens of a text and its answer at most.
    pub length: usize,
    /// Share of the numbers that are found, over all depths.
    pub accuracy: f64,
    /// By place, from the start to the end.
    pub depths: Vec<DepthReport>,
}

/// How often numbers at one place are found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DepthReport {
    /// 0 at the start of the text, 1 at its end.
    pub depth: f64,
    /// Share of the numbers that are found.
    pub accuracy: f64,
}
