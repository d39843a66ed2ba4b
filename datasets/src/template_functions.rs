//! What chat templates may call: the functions and filters that transformers adds to Jinja's own.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};

/// Adds them all.
pub(crate) fn add_functions(environment: &mut Environment<'static>) {
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", tojson);
    environment.add_filter("string", python_string);
    environment.add_test("iterable", is_iterable);
}

/// Python's notion of it: `None` is not iterable, an undefined value is.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// Python's `str(value)`, as far as templates print values.
pub(crate) fn python_text(value: &Value) -> String {
    match value.kind() {
        ValueKind::Bool if value.is_true() => "True".to_owned(),
        ValueKind::Bool => "False".to_owned(),
        ValueKind::None => "None".to_owned(),
        _ => value.to_string(),
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the form that minijinja calls filters in"
)]
fn python_string(value: Value) -> String {
    python_text(&value)
}

fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(refusal(message.to_owned()))
}

/// Python's `json.dumps`, with the defaults of transformers' filter.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the form that minijinja calls filters in"
)]
fn tojson(state: &State, value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<(String, String)> = match options.get::<Option<Value>>("separators")? {
        None => None,
        Some(pair) => Some((
            text_of(&pair.get_item_by_index(0)?)?,
            text_of(&pair.get_item_by_index(1)?)?,
        )),
    };
    let comma = if indent.is_some() { "," } else { ", " };
    let (comma, colon) = separators.unwrap_or_else(|| (comma.to_owned(), ": ".to_owned()));
    let json = Json {
        state,
        indent: indent.map(|width| width.min(MAX_INDENT)),
        comma,
        colon,
        ensure_ascii: options
            .get::<Option<bool>>("ensure_ascii")?
            .unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let mut out = String::new();
    json.write(&mut out, value, 0)?;
    Ok(Value::from_safe_string(out))
}

fn text_of(value: &Value) -> Result<String, Error> {
    let text = value.as_str().map(str::to_owned);
    text.ok_or_else(|| refusal(format!("tojson needs texts for separators, not {value}")))
}

fn refusal(reason: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

/// Deeper values and wider indents are nothing that a template writes for a model to read.
const MAX_DEPTH: usize = 64;
const MAX_INDENT: usize = 64;
/// What minijinja charges for text.
const BYTES_PER_FUEL: u64 = 64;

/// How values are written.
struct Json<'a> {
    /// Pays for what is written while it is: a list within lists may be a billion items.
    state: &'a State<'a, 'a>,
    indent: Option<usize>,
    comma: String,
    colon: String,
    ensure_ascii: bool,
    sort_keys: bool,
}

impl Json<'_> {
    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(refusal(format!(
                "tojson: values within values beyond {MAX_DEPTH}"
            )));
        }
        self.state.consume_fuel(1)?;
        match value.kind() {
            ValueKind::Undefined | ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&value.to_string()),
            ValueKind::String => self.push_text(out, value)?,
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.write_items(out, ('[', ']'), &items, depth, |out, item| {
                    self.write(out, item, depth + 1)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.write_items(out, ('{', '}'), &keys, depth, |out, key| {
                    self.push_text(out, key)?;
                    out.push_str(&self.colon);
                    self.write(out, &value.get_item(key)?, depth + 1)
                })?;
            }
            other => {
                return Err(refusal(format!(
                    "tojson cannot write a value of type {other}"
                )));
            }
        }
        Ok(())
    }

    /// A JSON string; keys that are no strings become strings, as in Python.
    fn push_text(&self, out: &mut String, value: &Value) -> Result<(), Error> {
        let text = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        self.state
            .consume_fuel(text.len() as u64 / BYTES_PER_FUEL)?;
        let quoted = serde_json::Value::String(text).to_string();
        if !self.ensure_ascii {
            out.push_str(&quoted);
            return Ok(());
        }
        for unit in quoted.encode_utf16() {
            match u8::try_from(unit) {
                Ok(byte) if byte.is_ascii() => out.push(byte.into()),
                _ => write!(out, "\\u{unit:04x}")?,
            }
        }
        Ok(())
    }

    /// Items between brackets, separated as Python's `json.dumps` does.
    fn write_items(
        &self,
        out: &mut String,
        (open, close): (char, char),
        items: &[Value],
        depth: usize,
        mut write: impl FnMut(&mut String, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let new_line = |out: &mut String, depth: usize| {
            if let Some(width) = self.indent {
                let spaces = width * depth;
                self.state.consume_fuel(spaces as u64 / BYTES_PER_FUEL)?;
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', spaces));
            }
            Ok::<(), Error>(())
        };
        out.push(open);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                out.push_str(&self.comma);
            }
            new_line(out, depth + 1)?;
            write(out, item)?;
        }
        if !items.is_empty() {
            new_line(out, depth)?;
        }
        out.push(close);
        Ok(())
    }
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
                return Err(refusal(format!(
                    "strftime_now does not know the code %{code}"
                )));
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
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        // date -u -d @951782400; date -u -d @1721999999
        assert_eq!(
            strftime("%a %d %b %Y", 951_782_400).expect("date"),
            "Tue 29 Feb 2000"
        );
        let full = strftime("%A %d %B %y %H:%M:%S %m%%", 1_721_999_999).expect("date");
        assert_eq!(full, "Friday 26 July 24 13:19:59 07%");
        assert!(strftime("%Q", 0).is_err());
    }
}
