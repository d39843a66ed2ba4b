//! Judged responses, and the pairs that follow from a judgement.

use serde::{Deserialize, Serialize};

use crate::rows::{
    DatasetKind, Message, Row, check_id, check_messages, check_unanswered, messages_bytes,
};

/// One of several answers to a prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// The answer.
    pub content: String,
    /// 1 is best; equal ranks are ties.
    pub rank: Option<i32>,
    /// Larger is better; used where there are no ranks.
    pub rating: Option<f32>,
    /// Who wrote it.
    pub model: Option<String>,
}

/// A judgement between two responses, by index from 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// The preferred response.
    pub better: i32,
    /// The other one.
    pub worse: i32,
    /// How clear the preference is, in the labeler's words.
    pub grade: Option<String>,
}

/// Two or more responses to one prompt, judged by one labeler.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// As in [`crate::Text`]; rows of several labelers may share it.
    pub id: String,
    /// The dialogue that all responses answer.
    pub prompt: Vec<Message>,
    /// The answers.
    pub responses: Vec<Response>,
    /// Who judged.
    pub labeler: Option<String>,
    /// Judgements that are no order; they override ranks and ratings.
    pub pairs: Option<Vec<Pair>>,
}

impl Comparison {
    /// All judged pairs as `(better, worse)` indices of responses, and the number of ties.
    ///
    /// Explicit pairs come as they are, with no ties; else ranks decide (1 is best), else ratings
    /// (larger is better).
    ///
    /// # Panics
    /// When [`Row::check`] would refuse the row; [`crate::read`] and [`crate::write`] have checked.
    pub fn ordered_pairs(&self) -> (Vec<(usize, usize)>, usize) {
        assert_eq!(
            self.check(),
            Ok(()),
            "comparison `{}` was not checked",
            self.id
        );
        if let Some(pairs) = &self.pairs {
            return (
                pairs
                    .iter()
                    .map(|p| (p.better as usize, p.worse as usize))
                    .collect(),
                0,
            );
        }
        let goodness = self.goodness().unwrap_or_default();
        let mut pairs = Vec::new();
        let mut ties = 0;
        for i in 0..goodness.len() {
            for j in i + 1..goodness.len() {
                if goodness[i] > goodness[j] {
                    pairs.push((i, j));
                } else if goodness[i] < goodness[j] {
                    pairs.push((j, i));
                } else {
                    ties += 1;
                }
            }
        }
        (pairs, ties)
    }

    /// A number per response, larger for better ones; `None` without ranks and ratings.
    fn goodness(&self) -> Option<Vec<f64>> {
        let ranks: Option<Vec<f64>> = self
            .responses
            .iter()
            .map(|r| r.rank.map(|rank| -f64::from(rank)))
            .collect();
        ranks.or_else(|| {
            self.responses
                .iter()
                .map(|r| r.rating.map(f64::from))
                .collect()
        })
    }

    fn check_judgement(&self) -> Result<(), String> {
        if let Some(pairs) = &self.pairs {
            return pairs
                .iter()
                .try_for_each(|pair| check_pair(pair, self.responses.len()));
        }
        let ranked = self.responses.iter().filter(|r| r.rank.is_some()).count();
        if ranked > 0 && ranked < self.responses.len() {
            return Err(format!(
                "`responses.rank` is given for {ranked} of {} responses",
                self.responses.len()
            ));
        }
        if let Some(rank) = self
            .responses
            .iter()
            .filter_map(|r| r.rank)
            .find(|rank| *rank < 1)
        {
            return Err(format!(
                "`responses.rank` is {rank}; ranks count from 1, the best"
            ));
        }
        if let Some(rating) = self
            .responses
            .iter()
            .filter_map(|r| r.rating)
            .find(|rating| !rating.is_finite())
        {
            return Err(format!("`responses.rating` is {rating}"));
        }
        match self.goodness() {
            Some(_) => Ok(()),
            None => Err("neither `pairs` nor a rank or rating of every response".to_owned()),
        }
    }
}

fn check_pair(pair: &Pair, responses: usize) -> Result<(), String> {
    for (field, index) in [("better", pair.better), ("worse", pair.worse)] {
        if usize::try_from(index)
            .ok()
            .is_none_or(|index| index >= responses)
        {
            return Err(format!(
                "`pairs.{field}` is {index}, but there are {responses} responses"
            ));
        }
    }
    if pair.better == pair.worse {
        return Err(format!(
            "`pairs` prefers response {} to itself",
            pair.better
        ));
    }
    Ok(())
}

impl Row for Comparison {
    const KIND: DatasetKind = DatasetKind::Comparisons;

    fn id(&self) -> &str {
        &self.id
    }

    fn num_bytes(&self) -> usize {
        let responses: usize = self.responses.iter().map(|r| r.content.len()).sum();
        messages_bytes(&self.prompt) + responses
    }

    fn check(&self) -> Result<(), String> {
        check_id(&self.id)?;
        check_messages("prompt", &self.prompt)?;
        check_unanswered("prompt", &self.prompt)?;
        if self.responses.len() < 2 {
            return Err(format!(
                "`responses` has {} entry; a comparison needs 2 at least",
                self.responses.len()
            ));
        }
        self.check_judgement()
    }

    fn prompt(&self) -> Option<&[Message]> {
        Some(&self.prompt)
    }
}
