"""Makes what `judge` needs of VADER (Hutto and Gilbert 2014) from the original program.

    python3 -m venv venv && venv/bin/pip install vaderSentiment==3.3.2
    venv/bin/python tests/golden/make_vader.py

- tests/golden/vader.jsonl: sentences (made here, seeded) with the compound score of the original;
- stages/core/judge/data/vader_lexicon.tsv, vader_emoji.tsv: the original's two lexicons without the
  columns that the algorithm does not read (deviation, raw ratings; emoji of several code points, which
  its loop over single code points never finds), and LICENSE, their licence.
"""

import importlib.metadata
import json
import pathlib
import random

from vaderSentiment import vaderSentiment
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT / "stages/core/judge/data"

GOOD = "good great happy love nice sweet fun brilliant wonderful handsome smart win thanks beautiful".split()
BAD = "bad sad horrible hate awful terrible boring ugly kill lose fear stupid annoying sorry".split()
NEUTRAL = "table window garden walk paper river tuesday music kitchen number morning train".split()
BOOSTERS = "very really extremely so totally uber friggin absolutely hardly slightly somewhat barely kinda".split()
NEGATIONS = [
    "not", "never", "isn't", "wasn't", "don't", "cannot", "cant", "nor", "without", "rarely", "nothing",
    "ain't", "despite", "uh-uh", "no", "neither", "seldom", "wouldn't", "mightn't've", "won't",
]
EMOTICONS = [":)", ":(", ":D", ":-)", ";)", ":P", "<3", "</3", "xD", ":'(", "(:", ":/", "o.o", ":-p", "=)", "d:"]
EMOJI = ["😀", "😢", "💘", "💋", "😁", "🔥", "👍", "❤", "❤️", "👍🏽", "🙃", "☹", "🎉", "💔", "👨‍👩‍👧"]
IDIOMS = [
    "the shit", "the bomb", "bad ass", "badass", "bus stop", "yeah right", "kiss of death", "to die for",
    "beating heart", "kind of", "sort of", "just enough", "at least", "very least", "least", "without doubt",
    "without a doubt", "never so", "never this", "no or", "hand to mouth", "upper hand",
]
PUNCTUATION = ["", ".", "!", "!!", "!!!", "!!!!", "!!!!!!", "?", "??", "???", "????", "?!", "...", ",", "!?!?", ";"]
GLUE = "the a is was it this that and or we i you my in at so of but however yet only just too with".split()

FIXED = [
    "", " ", "\t\n", ".", "!", "?!", "a", "no", "No", "NO", "no no no", "but", "but but", "BUT", "good", "GOOD", "Good",
    "good.", "(good)", "'good'", "\"good\"", "***good***", "good!!", "goodbad", "good-bad", "good/bad", "good,bad",
    "no good", "no good at all", "no fun no problem", "no luck or joy", "no luck nor joy", "there is no happy end",
    "not good", "NOT good", "not GOOD", "not very good", "not very very good", "never so good", "never this bad",
    "never was so good", "without doubt good", "without a doubt good", "without any doubt a good one",
    "least good", "the least good", "at least good", "very least good", "at the least good", "LEAST good day",
    "kind of good", "kind good", "a kind person", "Kind of a sad story", "KIND OF sad", "sort of sad", "just enough fun",
    "that is the shit", "that is the bomb today", "a bad ass car", "a truly badass car", "the bus stop is far away",
    "yeah right that is great", "oh yeah right", "it felt like the kiss of death to me", "a cake to die for",
    "it is a beating heart full of love", "the weather is not the shit", "wait at the bus stop happy",
    "I like it but I hate it", "I hate it but I like it", "good but bad but good", "good good but good good",
    "bad but but bad", "BUT good", "fine, but", "but fine", "great however bad", "but good good bad bad good",
    "WOW", "WOW great", "wow GREAT", "WOW GREAT", "wow GREAT day", "I am SO happy", "I am so HAPPY", "I AM SO HAPPY",
    "SO sad really SAD day", "HARDLY good at all", "it was HARDLY a SUCCESS", "very", "VERY", "really really",
    ":)", ":(", ":) :(", "good:)", ":)good", "ok :)", "ok:)", "OK", ":D:D", "hi :d", "lol", "LOL", "lol!", "LMAO ok", "rofl :-)",
    "\u00a0good\u00a0bad\u00a0", "good\u2003bad", "good\x1cbad", "good\x1fbad", "good\x85bad", "\x1d good \x1e",
    "GOOD ÄÖÜ day", "ÄÖÜ good", "good ǅ", "GOOD ǅ", "ΣΑΣ GOOD", "GOOD day ΑΣ", "İ GOOD", "straße GOOD ẞ", "good ℌ", "Ⓐ good", "ª GOOD",
    "good 123", "GOOD 123", "123", "GOOD 1A", "1a GOOD", "good\u200bbad", "good\u3000bad", "¡good!", "“good”", "good…", "‘sad’", "—good—",
    "😀", "😀😀", "x😀y", "😀 good", "good😀", "not 😀", "😀!", "good 😢 bad", "I ❤️ it", "❤", "💔💔 no", "👍🏽 ok", "\n😀\n", "\t😀",
    "e.g. good", "mr. good", "so, so good", "so so good", "SO so good", "too good!?", "good????", "bad????", "bad!!!!!!!!", "meh!!!",
    "isn't it good", "it isn't good", "it isnt that good", "mightn't've been good", "can't stop smiling", "can't hate it",
    "i do not feel bad", "i do not really feel very bad", "nobody is not happy with no problem", "not not good",
    "nothing but good", "nothing good but love", "hate nothing", "none of it was great", "good? bad? ugly?", "I'm fine",
    "$: %) &-: :3 :b", "8-) 8) >:( >:) }:(", "good\\bad", "[sad] {sad} <sad>", "_good_ -bad- ~ugly~ `fun`", "+good=", "@good #bad",
]


def pick_word(rng):
    pool = rng.choice([GOOD, BAD, NEUTRAL, BOOSTERS, NEGATIONS, GLUE, GLUE, EMOTICONS, EMOJI, IDIOMS])
    word = rng.choice(pool)
    style = rng.random()
    if style < 0.12:
        word = word.upper()
    elif style < 0.2:
        word = word.capitalize()
    if rng.random() < 0.12:
        word += rng.choice(PUNCTUATION)
    if rng.random() < 0.03:
        word = rng.choice("\"'(*[") + word
    return word


def clause(rng):
    tone = rng.choice([GOOD, BAD])
    parts = [rng.choice(["the", "my", "this", "our"]), rng.choice(NEUTRAL), rng.choice(["is", "was", "seems", "feels"])]
    if rng.random() < 0.4:
        parts.append(rng.choice(NEGATIONS))
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        parts.append(rng.choice(BOOSTERS))
    parts.append(rng.choice(tone))
    if rng.random() < 0.15:
        position = rng.randrange(len(parts))
        parts[position] = parts[position].upper()
    return " ".join(parts)


def sentences():
    rng = random.Random(20140601)
    yield from FIXED
    for _ in range(250):  # sentences with a shape
        text = clause(rng)
        if rng.random() < 0.45:
            text += rng.choice([" but ", ", but ", " BUT ", " and ", ". But ", " although "]) + clause(rng)
        text += rng.choice(PUNCTUATION)
        if rng.random() < 0.3:
            text += " " + rng.choice(EMOTICONS + EMOJI + IDIOMS)
        yield text
    for _ in range(350):  # words without order, for the paths that grammar does not reach
        yield rng.choice([" ", " ", " ", "  "]).join(pick_word(rng) for _ in range(rng.randrange(1, 14)))
    lexicon = [line.split("\t")[0] for line in original("vader_lexicon.txt") if line]
    for _ in range(150):  # the lexicon's own entries, among glue
        words = [rng.choice(lexicon) if rng.random() < 0.5 else rng.choice(GLUE + BOOSTERS) for _ in range(8)]
        yield " ".join(words)


def original(name):
    path = pathlib.Path(vaderSentiment.__file__).parent / name
    return path.read_text(encoding="utf-8").rstrip("\n").split("\n")


def write_lexicons():
    DATA.mkdir(parents=True, exist_ok=True)
    valence = {}
    for line in original("vader_lexicon.txt"):
        if line:
            word, measure = line.strip().split("\t")[0:2]
            valence[word] = float(measure)
    emoji = {}
    for line in original("emoji_utf8_lexicon.txt"):
        key, description = line.strip().split("\t")[0:2]
        if len(key) == 1:
            emoji[key] = description
    for name, table in [("vader_lexicon.tsv", valence), ("vader_emoji.tsv", emoji)]:
        with open(DATA / name, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{key}\t{value}\n" for key, value in table.items())
    files = importlib.metadata.files("vaderSentiment")
    licence = next(file for file in files if file.name.upper().startswith("LICENSE"))
    (DATA / "LICENSE").write_text(
        "vader_lexicon.tsv and vader_emoji.tsv are the lexicons of vaderSentiment 3.3.2, columns removed.\n"
        "https://github.com/cjhutto/vaderSentiment\n\n" + licence.read_text().strip() + "\n"
    )


def main():
    write_lexicons()
    analyzer = SentimentIntensityAnalyzer()
    with open(ROOT / "tests/golden/vader.jsonl", "w", encoding="utf-8", newline="\n") as file:
        for text in sentences():
            compound = analyzer.polarity_scores(text)["compound"]
            file.write(json.dumps({"text": text, "compound": compound}, ensure_ascii=True) + "\n")


if __name__ == "__main__":
    main()
