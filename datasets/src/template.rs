//! Chat templates in the Hugging Face format: Jinja, configured as transformers configures it.

use std::collections::BTreeMap;
use std::ops::Range;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use crate::error::TokenizerError;
use crate::rows::Message;
use crate::template_functions::{add_functions, python_text};

/// The template of tokenizers trained here: each message between its role's token and EOS.
pub const OUR_TEMPLATE: &str = "{% for message in messages %}<|{{ message.role }}|>\
     {{ message.content }}<|endoftext|>{% endfor %}\
     {% if add_generation_prompt %}<|assistant|>{% endif %}";

/// Where a tokenizer has no template: contents joined; what the assistant said ends with EOS.
pub const RAW_TEMPLATE: &str = "{% for message in messages %}{{ message.content }}\
     {% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}";

const NAME: &str = "chat_template";

/// Instructions that a rendering may take, with room to spare: a long dialogue takes some ten thousands.
/// Text counts as one for 64 bytes, so a rendering takes about 128 MB of memory at most,
/// but for lists: minijinja charges nothing for `list + list`, and for a printed list when it is written.
const FUEL: u64 = 2_000_000;

/// Operators before one operand.
const MAX_DEPTH: usize = 500;

/// The filter that `{% generation %}` becomes, and the variable that holds its [`Marks`]' number.
const MARK: &str = "mark_generation";

/// A compiled template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    special_tokens: BTreeMap<String, String>,
    /// The template itself says what the assistant's words are.
    has_generation_tags: bool,
}

/// A dialogue as a template writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The whole text.
    pub text: String,
    /// What the template puts between `{% generation %}` and `{% endgeneration %}` (bytes of `text`, in
    /// order); `None` for a template without these tags.
    pub generated: Option<Vec<Range<usize>>>,
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
        check_depth(source).map_err(compile_error)?;
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
            ValueKind::Bool | ValueKind::None => Ok(out.write_str(&python_text(value))?),
            _ => minijinja::escape_formatter(out, state, value),
        });
        add_functions(&mut environment);
        environment.add_filter(MARK, mark_generation);
        let (runnable, has_generation_tags) = with_marking_filters(source);
        environment
            .add_template_owned(NAME, runnable)
            .map_err(compile_error)?;
        Ok(Self {
            environment,
            source: source.to_owned(),
            special_tokens,
            has_generation_tags,
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
    ) -> Result<Rendered, TokenizerError> {
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
        let marks = Marks::absent_from(messages);
        let mut context: Vec<(&str, Value)> = self
            .special_tokens
            .iter()
            .map(|(k, v)| (k.as_str(), Value::from(v)))
            .collect();
        context.push(("messages", messages.iter().map(message).collect()));
        context.push(("add_generation_prompt", Value::from(add_generation_prompt)));
        // transformers passes them always.
        context.push(("tools", Value::from(())));
        context.push(("documents", Value::from(())));
        context.push((MARK, Value::from(marks.number)));
        let template = self.environment.get_template(NAME).map_err(render_error)?;
        let marked = template
            .render(Value::from_pairs(context))
            .map_err(render_error)?;
        let (text, generated) = marks.cut_out(&marked);
        Ok(Rendered {
            text,
            generated: self.has_generation_tags.then_some(generated),
        })
    }
}

/// What stands in a rendering on both sides of the assistant's words, until it is cut out again: a
/// number between two noncharacters, then a bracket that opens or closes.
#[derive(Debug, Clone, Copy)]
struct Marks {
    number: u64,
}

impl Marks {
    /// Marks that no message holds.
    fn absent_from(messages: &[Message]) -> Self {
        let holds = |mark: &str| messages.iter().any(|m| m.content.contains(mark));
        let mut number = 0;
        while holds(&Self { number }.text()) {
            number += 1;
        }
        Self { number }
    }

    fn text(self) -> String {
        format!("\u{fdd0}{}\u{fdd1}", self.number)
    }

    /// The text without marks, and what stood between them.
    fn cut_out(self, marked: &str) -> (String, Vec<Range<usize>>) {
        let mut text = String::with_capacity(marked.len());
        let mut open = Vec::new();
        let mut generated = Vec::new();
        let mark = self.text();
        let mut pieces = marked.split(&mark);
        text.push_str(pieces.next().unwrap_or_default());
        for piece in pieces {
            if let Some(inside) = piece.strip_prefix('(') {
                open.push(text.len());
                text.push_str(inside);
            } else if let Some(outside) = piece.strip_prefix(')').filter(|_| !open.is_empty()) {
                generated.extend(open.pop().map(|start| start..text.len()));
                text.push_str(outside);
            } else {
                text.push_str(piece);
            }
        }
        generated.sort_by_key(|range| range.start);
        (text, generated)
    }
}

fn mark_generation(state: &State, text: &str) -> String {
    let number = state
        .lookup(MARK)
        .and_then(|number| u64::try_from(number).ok());
    let mark = Marks {
        number: number.unwrap_or_default(),
    };
    let mark = mark.text();
    format!("{mark}({text}{mark})")
}

/// The template with each `{% generation %}` (transformers' tag around what the assistant says) as a
/// scope within a filter that marks what is rendered there; and whether there is any. White space
/// control stays as it was: `{%- generation +%}` becomes `{%- with -%}{%- filter mark_generation +%}`.
fn with_marking_filters(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut has_tags = false;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        out.push_str(before);
        rest = tag;
        if let Some((left, name, right, after)) = generation_tag(tag) {
            let tags = if name == "generation" {
                format!("{left} with -%}}{{%- filter {MARK} {right}%}}")
            } else {
                format!("{left} endfilter -%}}{{%- endwith {right}%}}")
            };
            out.push_str(&tags);
            rest = after;
            has_tags = true;
        }
    }
    out.push_str(rest);
    (out, has_tags)
}

/// Refuses a row of operators before one operand that is longer than the parser's stack allows: minijinja bounds all
/// other depths itself.
fn check_depth(source: &str) -> Result<(), Error> {
    let mut depth = 0;
    let mut rest = source.trim_start();
    while let Some(first) = rest.chars().next() {
        let operator = rest.strip_prefix("not").or_else(|| rest.strip_prefix('-'));
        depth = if operator.is_some() { depth + 1 } else { 0 };
        if depth > MAX_DEPTH {
            let message = format!("more than {MAX_DEPTH} of `not` or `-` in a row");
            return Err(Error::new(ErrorKind::SyntaxError, message));
        }
        rest = operator.unwrap_or(&rest[first.len_utf8()..]).trim_start();
    }
    Ok(())
}

/// Takes a tag apart, from behind its `{%` on: white space control, name, white space control, and what
/// follows it. `None` for other tags.
fn generation_tag(tag: &str) -> Option<(&str, &str, &str, &str)> {
    let control = |text: &str| usize::from(text.starts_with(['-', '+']));
    let (left, inside) = tag.split_at(control(tag));
    let inside = inside.trim_start();
    let name = ["generation", "endgeneration"]
        .into_iter()
        .find(|name| inside.starts_with(name))?;
    let (name, inside) = inside.split_at(name.len());
    let inside = inside.trim_start();
    let (right, inside) = inside.split_at(control(inside));
    Some((left, name, right, inside.strip_prefix("%}")?))
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
