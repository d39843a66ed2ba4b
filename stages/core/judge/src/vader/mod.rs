//! VADER: rule-based sentiment of short English texts (Hutto and Gilbert 2014, ICWSM).
//!
//! Follows the authors' program, `vaderSentiment.py` 3.3.2, step by step, oddities included (see
//! [`weigh_but`]): `tests/golden/vader.jsonl` holds its scores, and every one must come out here.

mod words;

use words::{BOOSTERS, EMOJI, LEXICON, idiom, is_negation};

/// Added to the size of a valence whose word is in capitals among words that are not.
const CAPITALS: f64 = 0.733;
/// Factor of a negated valence.
const NEGATED: f64 = -0.74;
/// Normalisation: the compound is `x / sqrt(x² + ALPHA)`.
const ALPHA: f64 = 15.0;

/// The compound score of a text, -1 to 1, rounded to four decimals as the original does;
/// 0 for a text without words.
pub(crate) fn compound(text: &str) -> f64 {
    let described = describe_emoji(text);
    let text = described.trim_matches(is_space);
    let sentence = Sentence::new(text);
    let mut valences: Vec<f64> = (0..sentence.lower.len())
        .map(|i| sentence.valence(i))
        .collect();
    weigh_but(&sentence.lower, &mut valences);
    let sum: f64 = valences.iter().sum();
    let emphasis = punctuation_emphasis(text);
    let sum = match sum {
        s if s > 0.0 => s + emphasis,
        s if s < 0.0 => s - emphasis,
        _ => 0.0,
    };
    let compound = sum / (sum * sum + ALPHA).sqrt();
    (compound.clamp(-1.0, 1.0) * 1e4).round_ties_even() / 1e4
}

/// White space of Python's `str.split`: Unicode's, and the four ASCII separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Python's `str.isupper`: cased characters, and none of them in lower or title case.
fn is_upper(word: &str) -> bool {
    let is_title = |c: char| !c.is_uppercase() && c.to_lowercase().ne([c]);
    word.chars().any(char::is_uppercase) && !word.chars().any(|c| c.is_lowercase() || is_title(c))
}

/// Puts the words for each emoji in its place, apart from what stands before it.
fn describe_emoji(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut after_space = true;
    for c in text.chars() {
        if let Some(words) = EMOJI.get(&c) {
            if !after_space {
                out.push(' ');
            }
            out.push_str(words);
            after_space = false;
        } else {
            out.push(c);
            after_space = c == ' ';
        }
    }
    out
}

/// Emphasis by up to four exclamation marks and by two or more question marks.
fn punctuation_emphasis(text: &str) -> f64 {
    let count = |mark| text.chars().filter(|&c| c == mark).count();
    let question = match count('?') {
        0 | 1 => 0.0,
        n @ 2..=3 => 0.18 * n as f64,
        _ => 0.96,
    };
    0.292 * count('!').min(4) as f64 + question
}

/// Halves valences before the first "but" and raises those after it by half.
///
/// As in the original, each valence is looked up by its value, so that of equal valences the first one
/// is changed, as often as there are equals.
#[expect(clippy::float_cmp, reason = "the original compares the same way")]
fn weigh_but(lower: &[String], valences: &mut [f64]) {
    let Some(but) = lower.iter().position(|word| word == "but") else {
        return;
    };
    for i in 0..valences.len() {
        let value = valences[i];
        let first = valences
            .iter()
            .position(|&other| other == value)
            .unwrap_or(i);
        if first < but {
            valences[first] = value * 0.5;
        } else if first > but {
            valences[first] = value * 1.5;
        }
    }
}

/// The words of a text: punctuation at their ends removed, emoticons kept.
struct Sentence {
    lower: Vec<String>,
    /// In capitals, while other words are not.
    stressed: Vec<bool>,
}

impl Sentence {
    fn new(text: &str) -> Self {
        let words: Vec<&str> = text
            .split(is_space)
            .filter(|word| !word.is_empty())
            .map(strip_punctuation)
            .collect();
        let upper: Vec<bool> = words.iter().map(|word| is_upper(word)).collect();
        let mixed = upper.contains(&true) && upper.contains(&false);
        Self {
            lower: words.iter().map(|word| word.to_lowercase()).collect(),
            stressed: upper.iter().map(|&upper| upper && mixed).collect(),
        }
    }

    fn in_lexicon(&self, i: usize) -> bool {
        LEXICON.contains_key(self.lower[i].as_str())
    }

    fn is(&self, i: usize, word: &str) -> bool {
        self.lower.get(i).is_some_and(|lower| lower == word)
    }

    /// The valence of word `i` in its surroundings.
    fn valence(&self, i: usize) -> f64 {
        let word = self.lower[i].as_str();
        let is_modifier = BOOSTERS.contains_key(word) || (word == "kind" && self.is(i + 1, "of"));
        let Some(&own) = LEXICON.get(word).filter(|_| !is_modifier) else {
            return 0.0;
        };
        let mut valence = self.after_no(i, own);
        if self.stressed[i] {
            valence += if valence > 0.0 { CAPITALS } else { -CAPITALS };
        }
        for distance in 1..=i.min(3) {
            if !self.in_lexicon(i - distance) {
                valence += self.boost(i, distance, valence);
                valence = self.negate(i, distance, valence);
                if distance == 3 {
                    valence = self.idioms(i, valence);
                }
            }
        }
        self.least(i, valence)
    }

    /// "no" negates a word of the lexicon that it precedes, and is then no negative word itself.
    fn after_no(&self, i: usize, own: f64) -> f64 {
        let before = |distance: usize, word| i >= distance && self.is(i - distance, word);
        if before(1, "no")
            || before(2, "no")
            || (before(3, "no") && (before(1, "or") || before(1, "nor")))
        {
            return own * NEGATED;
        }
        let modifies = self.is(i, "no") && i + 1 < self.lower.len() && self.in_lexicon(i + 1);
        if modifies { 0.0 } else { own }
    }

    /// What the degree adverb `distance` words before word `i` adds to its valence.
    fn boost(&self, i: usize, distance: usize, valence: f64) -> f64 {
        let Some(&boost) = BOOSTERS.get(self.lower[i - distance].as_str()) else {
            return 0.0;
        };
        let mut boost = if valence < 0.0 { -boost } else { boost };
        if self.stressed[i - distance] {
            boost += if valence > 0.0 { CAPITALS } else { -CAPITALS };
        }
        boost * [1.0, 0.95, 0.9][distance - 1]
    }

    /// The valence after a possible negation `distance` words before word `i`.
    fn negate(&self, i: usize, distance: usize, valence: f64) -> f64 {
        let so_or_this = |i| self.is(i, "so") || self.is(i, "this");
        let word = self.lower[i - distance].as_str();
        let (intensified, doubtless) = match distance {
            1 => (false, false),
            2 => (
                word == "never" && so_or_this(i - 1),
                word == "without" && self.is(i - 1, "doubt"),
            ),
            _ => (
                (word == "never" && so_or_this(i - 2)) || so_or_this(i - 1),
                word == "without" && (self.is(i - 2, "doubt") || self.is(i - 1, "doubt")),
            ),
        };
        if intensified {
            valence * 1.25
        } else if !doubtless && is_negation(word) {
            valence * NEGATED
        } else {
            valence
        }
    }

    /// The valence after idioms around word `i >= 3`, and after degree adverbs of several words.
    fn idioms(&self, i: usize, mut valence: f64) -> f64 {
        let phrase =
            |from: usize, to: usize| self.lower.get(from..=to).map(|words| words.join(" "));
        let special = |phrase: Option<String>| phrase.as_deref().and_then(idiom);
        let around = [
            (i - 1, i),
            (i - 2, i),
            (i - 2, i - 1),
            (i - 3, i - 1),
            (i - 3, i - 2),
        ];
        if let Some(value) = around
            .into_iter()
            .find_map(|(from, to)| special(phrase(from, to)))
        {
            valence = value;
        }
        for to in [i + 1, i + 2] {
            valence = special(phrase(i, to)).unwrap_or(valence);
        }
        let adverbs = [(i - 3, i - 1), (i - 3, i - 2), (i - 2, i - 1)];
        for (from, to) in adverbs {
            let adverb = phrase(from, to);
            valence += adverb
                .and_then(|it| BOOSTERS.get(it.as_str()).copied())
                .unwrap_or(0.0);
        }
        valence
    }

    /// "least" negates the word after it, but not in "at least" and "very least".
    fn least(&self, i: usize, valence: f64) -> f64 {
        if i == 0 || !self.is(i - 1, "least") || self.in_lexicon(i - 1) {
            return valence;
        }
        let harmless = i > 1 && (self.is(i - 2, "at") || self.is(i - 2, "very"));
        if harmless { valence } else { valence * NEGATED }
    }
}

/// A word without the punctuation around it; what is then two characters or fewer was an emoticon and
/// stays as it is.
fn strip_punctuation(token: &str) -> &str {
    let stripped = token.trim_matches(|c: char| c.is_ascii_punctuation());
    if stripped.chars().count() <= 2 {
        token
    } else {
        stripped
    }
}
