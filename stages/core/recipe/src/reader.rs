//! Typed access to one table: value, bound, and where the value was said.

use std::borrow::Cow;
use std::fmt;

use crate::defaults;
use crate::error::Problem;
use crate::nearest;
use crate::presets::Constant;
use crate::schema;
use crate::tree::{Node, Origin, Value};

/// A result whose error is one mistake.
pub(crate) type Outcome<T> = Result<T, Problem>;

/// Bounds of a number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Range {
    low: f64,
    low_included: bool,
    high: f64,
    high_included: bool,
}

impl Range {
    /// Above 0.
    pub const POSITIVE: Self = Self::new(0.0, false, f64::INFINITY, false);
    /// 1 or more.
    pub const FROM_ONE: Self = Self::new(1.0, true, f64::INFINITY, false);
    /// 0 or more.
    pub const NOT_NEGATIVE: Self = Self::new(0.0, true, f64::INFINITY, false);
    /// Between 0 and 1, neither included.
    pub const SHARE: Self = Self::new(0.0, false, 1.0, false);
    /// From 0 and below 1.
    pub const RATE: Self = Self::new(0.0, true, 1.0, false);
    /// From 0 to 1, both included.
    pub const UNIT: Self = Self::new(0.0, true, 1.0, true);
    /// Any finite number.
    pub const FINITE: Self = Self::new(f64::NEG_INFINITY, false, f64::INFINITY, false);

    const fn new(low: f64, low_included: bool, high: f64, high_included: bool) -> Self {
        Self {
            low,
            low_included,
            high,
            high_included,
        }
    }

    fn contains(&self, number: f64) -> bool {
        let above = number > self.low || (self.low_included && number >= self.low);
        let below = number < self.high || (self.high_included && number <= self.high);
        above && below && number.is_finite()
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { low, high, .. } = self;
        let from = if self.low_included {
            "at least"
        } else {
            "above"
        };
        let to = if self.high_included {
            "at most"
        } else {
            "below"
        };
        match (low.is_finite(), high.is_finite()) {
            (true, true) => write!(f, "a number {from} {low} and {to} {high}"),
            (true, false) => write!(f, "a number {from} {low}"),
            (false, true) => write!(f, "a number {to} {high}"),
            (false, false) => write!(f, "a finite number"),
        }
    }
}

/// A value found for a key: written, of the preset, or our default.
type Found<'a> = Cow<'a, Value>;

/// One table of the file, with the constants that stand in for what it does not say.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    /// The file's name in messages.
    pub file: &'a str,
    /// The table.
    pub table: &'a Node,
    /// Its place in the file, such as `stages.ppo` or `stages.ppo.reward[0]`.
    pub path: String,
    /// Its place in the schema: empty, or `reward[].`.
    pub prefix: &'static str,
    /// The kind whose keys it has.
    pub kind: &'static str,
    /// The preset's constants; empty without a preset.
    pub preset: &'static [Constant],
    /// Where the table begins.
    pub origin: Origin,
}

impl<'a> Reader<'a> {
    /// The node written at a dotted key.
    pub fn written(&self, key: &str) -> Option<&'a Node> {
        assert!(
            schema::keys(self.kind).contains(&format!("{}{key}", self.prefix).as_str()),
            "{key} is not in the schema of {}",
            self.kind
        );
        self.table.at(key)
    }

    /// The preset's constant for a key.
    pub fn preset_constant(&self, key: &str) -> Option<&'static Constant> {
        let key = format!("{}{key}", self.prefix);
        self.preset
            .iter()
            .find(|constant| constant.kind == self.kind && constant.key == key)
    }

    fn find(&self, key: &str) -> Option<Found<'a>> {
        if let Some(node) = self.written(key) {
            return Some(Cow::Borrowed(&node.value));
        }
        let (constant, _) = self.constant(key)?;
        Some(Cow::Owned(constant.value.value()))
    }

    /// What stands in for a key that is not written, and whose word it is.
    fn constant(&self, key: &str) -> Option<(Constant, &'static str)> {
        match self.preset_constant(key) {
            Some(constant) => Some((*constant, "the preset's")),
            None => Some((
                defaults::default(self.kind, &format!("{}{key}", self.prefix))?,
                "the default",
            )),
        }
    }

    /// A mistake at `key` (empty: the table): where it was said if it was, else where the table
    /// begins.
    pub fn problem(
        &self,
        key: &str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Problem {
        let mut message = message.into();
        let origin = match (self.table.at(key), self.constant(key)) {
            (Some(node), _) => &node.origin,
            (None, Some((constant, whose))) => {
                message = format!("{message} ({whose}: {})", constant.source);
                &self.origin
            }
            (None, None) => &self.origin,
        };
        Problem {
            location: location(self.file, origin),
            key: if key.is_empty() {
                self.path.clone()
            } else {
                schema::join(&self.path, key)
            },
            message,
            hint: hint.into(),
        }
    }

    /// The error of a key that must be written and is not.
    pub fn missing(&self, key: &str, hint: impl Into<String>) -> Problem {
        self.problem(key, "missing key", hint)
    }

    fn wrong(&self, key: &str, bound: &str, found: &Found<'_>) -> Problem {
        let message = format!("must be {bound}, is {}", found.written());
        self.problem(key, message, advice(bound, found))
    }

    /// A number within a range, if there is one.
    pub fn number_opt(&self, key: &str, range: Range) -> Outcome<Option<f64>> {
        let Some(found) = self.find(key) else {
            return Ok(None);
        };
        let number = match *found {
            Value::Integer(number) => number as f64,
            Value::Number(number) => number,
            _ => return Err(self.wrong(key, &range.to_string(), &found)),
        };
        if range.contains(number) {
            Ok(Some(number))
        } else {
            Err(self.wrong(key, &range.to_string(), &found))
        }
    }

    /// A number within a range.
    pub fn number(&self, key: &str, range: Range) -> Outcome<f64> {
        self.number_opt(key, range)?
            .ok_or_else(|| self.missing(key, format!("write {key} = {range}")))
    }

    /// A number within a range, or `false` for none.
    pub fn switch(&self, key: &str, range: Range) -> Outcome<Option<f64>> {
        match self.find(key) {
            None => Ok(None),
            Some(found) => match *found {
                Value::Flag(false) => Ok(None),
                Value::Integer(_) | Value::Number(_) => self.number_opt(key, range),
                _ => Err(self.wrong(key, &format!("{range}, or false to turn it off"), &found)),
            },
        }
    }

    /// A whole number of at least `least`, if there is one.
    pub fn count_opt(&self, key: &str, least: u64) -> Outcome<Option<usize>> {
        let Some(found) = self.find(key) else {
            return Ok(None);
        };
        match *found {
            Value::Integer(number) if u64::try_from(number).is_ok_and(|n| n >= least) => {
                Ok(Some(number as usize))
            }
            _ => Err(self.wrong(key, &format!("a whole number of at least {least}"), &found)),
        }
    }

    /// A whole number of at least `least`.
    pub fn count(&self, key: &str, least: u64) -> Outcome<usize> {
        let hint = || format!("write {key} = a whole number of at least {least}");
        self.count_opt(key, least)?
            .ok_or_else(|| self.missing(key, hint()))
    }

    /// Two numbers within a range, if they are there.
    pub fn pair_opt(&self, key: &str, range: Range) -> Outcome<Option<[f64; 2]>> {
        let Some(found) = self.find(key) else {
            return Ok(None);
        };
        let number = |node: &Node| match node.value {
            Value::Integer(number) => Some(number as f64),
            Value::Number(number) => Some(number),
            _ => None,
        };
        if let Value::List(items) = found.as_ref()
            && let [first, second] = items.as_slice()
            && let (Some(first), Some(second)) = (number(first), number(second))
            && range.contains(first)
            && range.contains(second)
        {
            return Ok(Some([first, second]));
        }
        Err(self.wrong(key, &format!("two numbers, each {range}"), &found))
    }

    /// A flag, if there is one.
    pub fn flag_opt(&self, key: &str) -> Outcome<Option<bool>> {
        let Some(found) = self.find(key) else {
            return Ok(None);
        };
        match *found {
            Value::Flag(flag) => Ok(Some(flag)),
            _ => Err(self.wrong(key, "true or false", &found)),
        }
    }

    /// A flag.
    pub fn flag(&self, key: &str) -> Outcome<bool> {
        self.flag_opt(key)?
            .ok_or_else(|| self.missing(key, format!("write {key} = true or false")))
    }

    /// A text, if there is one.
    pub fn text_opt(&self, key: &str) -> Outcome<Option<String>> {
        let Some(found) = self.find(key) else {
            return Ok(None);
        };
        match found.as_ref() {
            Value::Text(text) if !text.is_empty() => Ok(Some(text.clone())),
            _ => Err(self.wrong(key, "a text", &found)),
        }
    }

    /// A list of words, or `all` alone.
    pub fn words(&self, key: &str, all: &str) -> Outcome<Vec<String>> {
        let bound = format!("{all:?} or a list of names");
        let Some(found) = self.find(key) else {
            return Err(self.missing(key, format!("write {key} = {bound}")));
        };
        let word = |node: &Node| match &node.value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        };
        let words = match found.as_ref() {
            Value::Text(text) if text == all => Some(vec![text.clone()]),
            Value::List(items) if !items.is_empty() => items.iter().map(word).collect(),
            _ => None,
        };
        words.ok_or_else(|| self.wrong(key, &bound, &found))
    }

    /// One of several words, if there is one.
    pub fn choice_opt<T: Copy>(&self, key: &str, choices: &[(&str, T)]) -> Outcome<Option<T>> {
        let Some(found) = self.find(key) else {
            return Ok(None);
        };
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let Value::Text(text) = found.as_ref() else {
            return Err(self.wrong(key, &format!("one of {}", quoted(&words)), &found));
        };
        let choice = choices
            .iter()
            .find(|(word, _)| word == text)
            .ok_or_else(|| {
                let message = format!("must be one of {}, is {text:?}", quoted(&words));
                self.problem(key, message, nearest::hint(text, &words, "words here"))
            })?;
        Ok(Some(choice.1))
    }

    /// One of several words.
    pub fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)]) -> Outcome<T> {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let hint = || format!("write {key} = one of {}", quoted(&words));
        self.choice_opt(key, choices)?
            .ok_or_else(|| self.missing(key, hint()))
    }

    /// A word, or `false` for none.
    pub fn choice_or_off<T: Copy>(&self, key: &str, choices: &[(&str, T)]) -> Outcome<Option<T>> {
        match self.find(key) {
            Some(found) if matches!(*found, Value::Flag(false)) => Ok(None),
            _ => self.choice_opt(key, choices),
        }
    }

    /// Refuses a key that something else makes meaningless.
    pub fn refuse(&self, key: &str, why: &str, hint: &str) -> Outcome<()> {
        match self.written(key) {
            None => Ok(()),
            Some(_) => Err(self.problem(key, why, hint)),
        }
    }
}

/// Where an origin is, as a message says it.
pub(crate) fn location(file: &str, origin: &Origin) -> String {
    match origin {
        Origin::File { line, column } => format!("{file}:{line}:{column}"),
        Origin::Set { text } => text.clone(),
        Origin::Constant => file.to_owned(),
    }
}

fn quoted(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    words.join(", ")
}

fn advice(bound: &str, value: &Value) -> String {
    match value {
        Value::Text(text) if text.parse::<f64>().is_ok() && bound.contains("number") => {
            format!("write {text} without quotes")
        }
        Value::Number(number) if bound.starts_with("a whole number") && number.fract() == 0.0 => {
            format!("write {number} without a fraction")
        }
        _ => format!("give {bound}"),
    }
}
