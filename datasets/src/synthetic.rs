//! Small talk from templates: enough language for tests to learn, in replies whose sentiment
//! varies, so that there is something to prefer.

use runtime::seeds::key;

use crate::conversation::Conversation;

const TOPICS: [&str; 32] = [
    "weather",
    "film",
    "dinner",
    "concert",
    "garden",
    "holiday",
    "book",
    "train",
    "house",
    "weekend",
    "lesson",
    "market",
    "game",
    "song",
    "museum",
    "beach",
    "party",
    "coffee",
    "exam",
    "office",
    "bicycle",
    "restaurant",
    "mountain",
    "picture",
    "morning",
    "wedding",
    "festival",
    "journey",
    "kitchen",
    "library",
    "picnic",
    "theatre",
];
const PEOPLE: [&str; 16] = [
    "my sister",
    "my brother",
    "my teacher",
    "the doctor",
    "our neighbour",
    "my friend",
    "my boss",
    "the driver",
    "my cousin",
    "the waiter",
    "my uncle",
    "the children",
    "my grandmother",
    "the captain",
    "our guide",
    "my partner",
];
const TIMES: [&str; 12] = [
    "today",
    "yesterday",
    "last week",
    "on monday",
    "in the evening",
    "this summer",
    "on friday",
    "in april",
    "last night",
    "this morning",
    "on sunday",
    "in winter",
];
const GOOD: [&str; 20] = [
    "great",
    "wonderful",
    "lovely",
    "awesome",
    "excellent",
    "amazing",
    "fantastic",
    "brilliant",
    "beautiful",
    "delightful",
    "perfect",
    "charming",
    "happy",
    "superb",
    "fun",
    "nice",
    "good",
    "glorious",
    "pleasant",
    "magnificent",
];
const BAD: [&str; 20] = [
    "terrible",
    "awful",
    "horrible",
    "bad",
    "sad",
    "boring",
    "disappointing",
    "ugly",
    "dreadful",
    "miserable",
    "annoying",
    "painful",
    "nasty",
    "disgusting",
    "poor",
    "lousy",
    "worthless",
    "depressing",
    "stupid",
    "tragic",
];
const PLAIN: [&str; 20] = [
    "long", "short", "usual", "quiet", "local", "early", "late", "small", "large", "green", "old",
    "new", "round", "open", "closed", "wooden", "distant", "brief", "ordinary", "foreign",
];
const GOOD_VERBS: [&str; 6] = [
    "loved",
    "enjoyed",
    "liked",
    "admired",
    "celebrated",
    "adored",
];
const BAD_VERBS: [&str; 6] = [
    "hated",
    "disliked",
    "regretted",
    "ruined",
    "feared",
    "despised",
];
const PLAIN_VERBS: [&str; 6] = ["saw", "visited", "found", "left", "noticed", "described"];

/// Draws of one conversation, numbered.
pub(crate) struct Draws {
    pub(crate) seed: u64,
    pub(crate) purpose: &'static str,
    pub(crate) conversation: u64,
    pub(crate) count: u64,
}

impl Draws {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.count += 1;
        (key(self.seed, self.purpose, self.conversation, self.count) % bound as u64) as usize
    }

    fn of(&mut self, words: &[&'static str]) -> &'static str {
        words[self.below(words.len())]
    }
}

/// `count` conversations; the same ones for the same seed.
pub(crate) fn generate(seed: u64, count: usize) -> Vec<Conversation> {
    (0..count as u64)
        .map(|index| conversation(seed, index))
        .collect()
}

fn conversation(seed: u64, index: u64) -> Conversation {
    let mut draws = Draws {
        seed,
        purpose: "synthetic",
        conversation: index,
        count: 0,
    };
    let topic = draws.of(&TOPICS);
    let num_turns = 4 + draws.below(4);
    let turns = (0..num_turns)
        .map(|turn| {
            if turn % 2 == 0 {
                question(&mut draws, topic)
            } else {
                reply(&mut draws, topic)
            }
        })
        .collect();
    Conversation {
        id: format!("synthetic-{index:06}"),
        source: "synthetic",
        turns,
    }
}

fn question(draws: &mut Draws, topic: &str) -> String {
    let (person, time) = (draws.of(&PEOPLE), draws.of(&TIMES));
    match draws.below(5) {
        0 => format!("how was the {topic} {time}?"),
        1 => format!("did {person} like the {topic}?"),
        2 => format!("tell me about the {topic} {time}."),
        3 => format!("what did {person} say about the {topic}?"),
        _ => format!("and what do you think of the {topic}?"),
    }
}

/// A third of the replies each is glad, sorry, and neither.
fn reply(draws: &mut Draws, topic: &str) -> String {
    let (adjectives, verbs) = match draws.below(3) {
        0 => (&GOOD, &GOOD_VERBS),
        1 => (&BAD, &BAD_VERBS),
        _ => (&PLAIN, &PLAIN_VERBS),
    };
    let (first, second) = (draws.of(adjectives), draws.of(adjectives));
    let (verb, person, time) = (draws.of(verbs), draws.of(&PEOPLE), draws.of(&TIMES));
    match draws.below(5) {
        0 => format!("it was {first} and {second}."),
        1 => format!("{person} {verb} the {topic} {time}."),
        2 => format!("the {topic} was {first}, and {person} {verb} it."),
        3 => format!("i {verb} it, it was a {first} {topic}."),
        _ => format!("{time} it was {first}. {person} {verb} it."),
    }
}
