//! Passkey retrieval (Mohtashami and Jaggi 2023, section 4.2): a number is hidden in filler text, and asked
//! for at its end. Documents to learn from, and the texts that a model is tested with.

use crate::rows::Text;
use crate::synthetic::Draws;

/// The filler, again and again.
const FILLER: [&str; 5] = [
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
];

/// A text that hides a number and asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passkey {
    /// Five digits.
    pub key: String,
    /// Sentences of filler.
    pub sentences: usize,
    /// How many of them stand before the number.
    pub before: usize,
}

impl Passkey {
    /// The key of a number: the same for the same seed and index.
    pub fn key(seed: u64, index: u64) -> String {
        draw_key(&mut draws(seed, "passkey test", index))
    }

    /// The text up to where the answer must follow.
    ///
    /// # Panics
    /// When more sentences stand before the number than there are.
    pub fn question(&self) -> String {
        let Self {
            key,
            sentences,
            before,
        } = self;
        assert!(before <= sentences, "{before} of {sentences} sentences");
        let needle = format!("The pass key is {key}. Remember it. {key} is the pass key.");
        let filler = |range: std::ops::Range<usize>| range.map(|i| FILLER[i % FILLER.len()]);
        let mut parts: Vec<&str> = filler(0..*before).collect();
        parts.push(&needle);
        parts.extend(filler(*before..*sentences));
        parts.push("What is the pass key? The pass key is");
        parts.join(" ")
    }

    /// What must follow the question.
    pub fn answer(&self) -> String {
        format!(" {}", self.key)
    }
}

fn draws(seed: u64, purpose: &'static str, index: u64) -> Draws {
    Draws {
        seed,
        purpose,
        conversation: index,
        count: 0,
    }
}

fn draw_key(draws: &mut Draws) -> String {
    format!("{:05}", draws.below(100_000))
}

/// `count` documents of at most `sentences` sentences of filler, each with its answer; the same ones for the
/// same seed.
pub(crate) fn generate(seed: u64, count: usize, sentences: usize) -> Vec<Text> {
    let document = |index| {
        let mut draws = draws(seed, "passkey", index);
        let key = draw_key(&mut draws);
        let sentences = 1 + draws.below(sentences);
        let passkey = Passkey {
            key,
            sentences,
            before: draws.below(sentences + 1),
        };
        Text {
            id: format!("passkey-{index:06}"),
            text: format!("{}{}.", passkey.question(), passkey.answer()),
            source: "passkey".to_owned(),
        }
    };
    (0..count as u64).map(document).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_stands_where_it_is_told_and_is_asked_for() {
        let passkey = Passkey {
            key: "01234".to_owned(),
            sentences: 3,
            before: 1,
        };
        assert_eq!(
            passkey.question() + &passkey.answer(),
            "The grass is green. The pass key is 01234. Remember it. 01234 is the pass key. \
             The sky is blue. The sun is yellow. What is the pass key? The pass key is 01234"
        );
    }

    #[test]
    fn documents_vary_in_number_length_and_place_and_repeat_by_their_seed() {
        let documents = generate(3, 200, 10);
        assert_eq!(documents, generate(3, 200, 10));
        assert_ne!(documents, generate(4, 200, 10));
        let distinct = |of: fn(&Text) -> String| {
            let all: std::collections::BTreeSet<String> = documents.iter().map(of).collect();
            all.len()
        };
        assert!(distinct(|row| row.text[row.text.len() - 6..].to_owned()) > 190);
        // Ten lengths of filler; their places differ in how the text starts.
        assert_eq!(
            distinct(|row| row.text.matches('.').count().to_string()),
            10
        );
        assert!(distinct(|row| row.text.split("pass").next().unwrap_or("").to_owned()) > 9);
        for row in &documents {
            let answer = &row.text[row.text.len() - 6..row.text.len() - 1];
            assert_eq!(row.text.matches(answer).count(), 3, "{}", row.text);
        }
    }
}
