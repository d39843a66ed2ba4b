//! Chat templates in the Hugging Face format: Jinja, configured as transformers configures it.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use crate::error::TokenizerError;
use crate::rows::Message;

/// The template of tokenizers trained here: each message between its role's token and EOS.
pub const OUR_TEMPLATE: &str = "{% for message in messages %}<|{{ message.role }}|>\
     {{ message.content }}<|endoftext|>{% endfor %}\
     {% if add_generation_prompt %}<|assistant|>{% endif %}";

/// Where a tokenizer has no template: contents joined; what the assistant said ends with EOS.
pub const RAW_TEMPLATE: &str = "{% for message in messages %}{{ message.content }}\
     {% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}";

const NAME: &str = "chat_template";

/// Instructions that a rendering may take, with room to spare: a long dialogue takes some ten thousands,
/// and the bound is reached in about a second.
const FUEL: u64 = 10_000_000;

/// A compiled template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    special_tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// Compiles `source`; `special_tokens` (`bos_token`, `eos_token`, ...) are its variables.
    ///
    /// # Errors
    /// When the template is no valid Jinja.
    pub fn new(
        source: &str,
        special_tokens: BTreeMap<String, String>,
    ) -> Result<Self, TokenizerError> {
        let compile_error = |source| TokenizerError::Template {
            source: Box::new(source),
        };
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.map_err(compile_error)?);
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.set_formatter(|out, state, value| match value.kind() {
            ValueKind::Bool if value.is_true() => Ok(out.write_str("True")?),
            ValueKind::Bool => Ok(out.write_str("False")?),
            ValueKind::None => Ok(out.write_str("None")?),
            _ => minijinja::escape_formatter(out, state, value),
        });
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", tojson);
        let runnable = without_generation_tags(source);
        environment
            .add_template_owned(NAME, runnable)
            .map_err(compile_error)?;
        Ok(Self {
            environment,
            source: source.to_owned(),
            special_tokens,
        })
    }

    /// The template as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The dialogue as one text, ready for the assistant's next turn if so asked.
    ///
    /// # Errors
    /// When the template raises an exception, for example about an order of roles, or does not come to
    /// an end.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, TokenizerError> {
        let render_error = |source: Error| {
            if source.kind() == ErrorKind::OutOfFuel {
                return TokenizerError::Endless { steps: FUEL };
            }
            let roles = messages.iter().map(|m| m.role.as_str());
            TokenizerError::Render {
                roles: roles.collect::<Vec<_>>().join(", "),
                source: Box::new(source),
            }
        };
        let message = |m: &Message| {
            Value::from_pairs([("role", m.role.as_str()), ("content", m.content.as_str())])
        };
        let mut context: Vec<(&str, Value)> = self
            .special_tokens
            .iter()
            .map(|(k, v)| (k.as_str(), Value::from(v)))
            .collect();
        context.push(("messages", messages.iter().map(message).collect()));
        context.push(("add_generation_prompt", Value::from(add_generation_prompt)));
        let template = self.environment.get_template(NAME).map_err(render_error)?;
        template
            .render(Value::from_pairs(context))
            .map_err(render_error)
    }
}

/// `{% generation %}` marks what the assistant says for transformers' own loss mask, which is not
/// used here. It becomes an `if` that is always true, so that whitespace control stays as it was.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else {
            break;
        };
        let (before, tag) = (&rest[..start], &rest[start + 2..start + length]);
        let name = tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        out.push_str(before);
        out.push_str("{%");
        match name {
            "generation" => out.push_str(&tag.replace(name, " if true ")),
            "endgeneration" => out.push_str(&tag.replace(name, " endif ")),
            _ => out.push_str(tag),
        }
        out.push_str("%}");
        rest = &rest[start + length + 2..];
    }
    out.push_str(rest);
    out
}

fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

/// Python's `json.dumps(value, ensure_ascii=False)`, which is what transformers' filter is.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the form that minijinja calls filters in"
)]
fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    if ensure_ascii == Some(true) {
        let reason = "tojson(ensure_ascii=true) is not supported";
        return Err(Error::new(ErrorKind::InvalidOperation, reason));
    }
    let mut out = String::new();
    write_json(&mut out, value, indent, 0)?;
    Ok(Value::from_safe_string(out))
}

fn write_json(
    out: &mut String,
    value: &Value,
    indent: Option<usize>,
    depth: usize,
) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&value.to_string()),
        ValueKind::String => out.push_str(&quoted(value)),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            write_items(out, ('[', ']'), &items, indent, depth, |out, item| {
                write_json(out, item, indent, depth + 1)
            })?;
        }
        ValueKind::Map => {
            let keys: Vec<Value> = value.try_iter()?.collect();
            write_items(out, ('{', '}'), &keys, indent, depth, |out, key| {
                out.push_str(&quoted(key));
                out.push_str(": ");
                write_json(out, &value.get_item(key)?, indent, depth + 1)
            })?;
        }
        other => {
            let reason = format!("tojson cannot write a value of type {other}");
            return Err(Error::new(ErrorKind::InvalidOperation, reason));
        }
    }
    Ok(())
}

/// A JSON string; keys that are no strings become strings, as in Python.
fn quoted(value: &Value) -> String {
    let text = value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned);
    serde_json::Value::String(text).to_string()
}

/// Items between brackets, separated as Python's `json.dumps` does.
fn write_items(
    out: &mut String,
    (open, close): (char, char),
    items: &[Value],
    indent: Option<usize>,
    depth: usize,
    mut write: impl FnMut(&mut String, &Value) -> Result<(), Error>,
) -> Result<(), Error> {
    let new_line = |out: &mut String, depth: usize| {
        if let Some(width) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', width * depth));
        }
    };
    out.push(open);
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push_str(if indent.is_some() { "," } else { ", " });
        }
        new_line(out, depth + 1);
        write(out, item)?;
    }
    if !items.is_empty() {
        new_line(out, depth);
    }
    out.push(close);
    Ok(())
}

/// The present UTC time by a `strftime` format. A template that calls it renders differently on
/// another day, so runs with such a template are reproducible within a day only.
fn strftime_now(format: &str) -> Result<String, Error> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs());
    strftime(format, now)
}

fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = [
        "Thursday",
        "Friday",
        "Saturday",
        "Sunday",
        "Monday",
        "Tuesday",
        "Wednesday",
    ];
    let days = seconds / 86_400;
    let (year, month, day) = civil_date(days);
    let (month_name, day_name) = (MONTHS[month - 1], DAYS[(days % 7) as usize]);
    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        match letters.next() {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&two_digits(year % 100)),
            Some('m') => out.push_str(&two_digits(month as u64)),
            Some('d') => out.push_str(&two_digits(day)),
            Some('B') => out.push_str(month_name),
            Some('b') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..3]),
            Some('H') => out.push_str(&two_digits(seconds / 3600 % 24)),
            Some('M') => out.push_str(&two_digits(seconds / 60 % 60)),
            Some('S') => out.push_str(&two_digits(seconds % 60)),
            Some('%') => out.push('%'),
            other => {
                let code = other.map(String::from).unwrap_or_default();
                let reason = format!("strftime_now does not know the code %{code}");
                return Err(Error::new(ErrorKind::InvalidOperation, reason));
            }
        }
    }
    Ok(out)
}

fn two_digits(number: u64) -> String {
    format!("{number:02}")
}

/// Year, month and day of a day counted from 1970-01-01 (Howard Hinnant, `civil_from_days`).
fn civil_date(days: u64) -> (u64, usize, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (
        year_of_era + era * 400 + u64::from(month <= 2),
        month as usize,
        day,
    )
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
