//! VADER's tables of words, from `vaderSentiment.py` 3.3.2 (MIT, see `data/LICENSE`).

use std::collections::HashMap;
use std::sync::LazyLock;

/// Mean change of a rating by a degree adverb.
const BOOST: f64 = 0.293;

const BOOSTERS_UP: &[&str] = &[
    "absolutely",
    "amazingly",
    "awfully",
    "completely",
    "considerable",
    "considerably",
    "decidedly",
    "deeply",
    "effing",
    "enormous",
    "enormously",
    "entirely",
    "especially",
    "exceptional",
    "exceptionally",
    "extreme",
    "extremely",
    "fabulously",
    "flipping",
    "flippin",
    "frackin",
    "fracking",
    "fricking",
    "frickin",
    "frigging",
    "friggin",
    "fully",
    "fuckin",
    "fucking",
    "fuggin",
    "fugging",
    "greatly",
    "hella",
    "highly",
    "hugely",
    "incredible",
    "incredibly",
    "intensely",
    "major",
    "majorly",
    "more",
    "most",
    "particularly",
    "purely",
    "quite",
    "really",
    "remarkably",
    "so",
    "substantially",
    "thoroughly",
    "total",
    "totally",
    "tremendous",
    "tremendously",
    "uber",
    "unbelievably",
    "unusually",
    "utter",
    "utterly",
    "very",
];

const BOOSTERS_DOWN: &[&str] = &[
    "almost",
    "barely",
    "hardly",
    "just enough",
    "kind of",
    "kinda",
    "kindof",
    "kind-of",
    "less",
    "little",
    "marginal",
    "marginally",
    "occasional",
    "occasionally",
    "partly",
    "scarce",
    "scarcely",
    "slight",
    "slightly",
    "somewhat",
    "sort of",
    "sorta",
    "sortof",
    "sort-of",
];

const NEGATIONS: &[&str] = &[
    "aint", "arent", "cannot", "cant", "couldnt", "darent", "didnt", "doesnt", "dont", "hadnt",
    "hasnt", "havent", "isnt", "mightnt", "mustnt", "neither", "neednt", "never", "none", "nope",
    "nor", "not", "nothing", "nowhere", "oughtnt", "shant", "shouldnt", "uhuh", "wasnt", "werent",
    "uh-uh", "without", "wont", "wouldnt", "rarely", "seldom", "despite",
];

/// The lexicon: a word's or emoticon's mean valence, -4 to 4.
pub(super) static LEXICON: LazyLock<HashMap<&'static str, f64>> = LazyLock::new(|| {
    lines(include_str!("../../data/vader_lexicon.tsv"))
        .map(|(word, valence)| match valence.parse() {
            Ok(valence) => (word, valence),
            Err(error) => unreachable!("data/vader_lexicon.tsv: {word}: {valence}: {error}"),
        })
        .collect()
});

/// Emoji and the words that stand for them.
pub(super) static EMOJI: LazyLock<HashMap<char, &'static str>> = LazyLock::new(|| {
    lines(include_str!("../../data/vader_emoji.tsv"))
        .flat_map(|(emoji, words)| emoji.chars().map(move |emoji| (emoji, words)))
        .collect()
});

/// Degree adverbs, and what each adds to the size of the valence that follows.
pub(super) static BOOSTERS: LazyLock<HashMap<&'static str, f64>> = LazyLock::new(|| {
    let up = BOOSTERS_UP.iter().map(|&word| (word, BOOST));
    let down = BOOSTERS_DOWN.iter().map(|&word| (word, -BOOST));
    up.chain(down).collect()
});

fn lines(table: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    table.lines().filter_map(|line| line.split_once('\t'))
}

/// Whether a lower-case word negates what follows it.
pub(super) fn is_negation(word: &str) -> bool {
    word.contains("n't") || NEGATIONS.contains(&word)
}

/// The valence of a phrase that is not the sum of its words.
pub(super) fn idiom(phrase: &str) -> Option<f64> {
    match phrase {
        "the shit" | "the bomb" | "to die for" => Some(3.0),
        "bad ass" | "badass" => Some(1.5),
        "bus stop" => Some(0.0),
        "yeah right" => Some(-2.0),
        "kiss of death" => Some(-1.5),
        "beating heart" => Some(3.5),
        _ => None,
    }
}
