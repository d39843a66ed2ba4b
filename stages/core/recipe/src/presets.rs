//! Named presets: constants of published systems as data, each with its source.
//!
//! A preset speaks where the configuration is silent, and the defaults of [`crate::defaults`]
//! where both are. Presets share no default: their KL coefficients alone span 0.01 to 0.05.
//! Sources: Ouyang et al. 2022 (`InstructGPT`, arXiv 2203.02155), Stiennon et al. 2020 (arXiv
//! 2009.01325), Huang et al. 2024 (the N+ implementation details, and their code), Touvron et al.
//! 2023 (Llama 2, arXiv 2307.09288), and the code of Ziegler et al. 2019 (lm-human-preferences).

mod instructgpt;
mod llama2_chat;
mod nplus;
mod stiennon2020;

use std::fmt;

use crate::tree::{Node, Origin, Value};

/// A value that a configuration could hold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Setting {
    /// A whole number.
    Integer(i64),
    /// A number.
    Number(f64),
    /// Two numbers.
    Pair(f64, f64),
    /// A flag; `false` also turns off what a number turns on.
    Flag(bool),
    /// A word.
    Text(&'static str),
}

impl Setting {
    pub(crate) fn value(self) -> Value {
        match self {
            Self::Integer(number) => Value::Integer(number),
            Self::Number(number) => Value::Number(number),
            Self::Pair(first, second) => Value::List(vec![number(first), number(second)]),
            Self::Flag(flag) => Value::Flag(flag),
            Self::Text(text) => Value::Text(text.to_owned()),
        }
    }
}

fn number(value: f64) -> Node {
    Node {
        value: Value::Number(value),
        origin: Origin::Constant,
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.value().written())
    }
}

/// One constant: what a key of one kind of stage is, and who says so.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Constant {
    /// Kind of the stage.
    pub kind: &'static str,
    /// Key below the stage's table.
    pub key: &'static str,
    /// Its value.
    pub value: Setting,
    /// Paper and section, or the code; says so where it is our choice.
    pub source: &'static str,
}

const fn constant(
    kind: &'static str,
    key: &'static str,
    value: Setting,
    source: &'static str,
) -> Constant {
    Constant {
        kind,
        key,
        value,
        source,
    }
}

/// Every preset's name.
pub const NAMES: &[&str] = &["instructgpt", "stiennon2020", "nplus", "llama2-chat"];

/// The constants of a preset; `None` if there is no such preset.
pub fn explain(preset: &str) -> Option<Vec<Constant>> {
    constants(preset).map(<[Constant]>::to_vec)
}

/// The constants of a preset, as they lie here.
pub(crate) fn constants(preset: &str) -> Option<&'static [Constant]> {
    match preset {
        "instructgpt" => Some(instructgpt::CONSTANTS),
        "stiennon2020" => Some(stiennon2020::CONSTANTS),
        "nplus" => Some(nplus::CONSTANTS),
        "llama2-chat" => Some(llama2_chat::CONSTANTS),
        _ => None,
    }
}
