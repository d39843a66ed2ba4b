//! Rendering agrees with transformers (`tests/golden/make_templates.py` made the expectations).

use super::*;
use crate::tokenizer::Tokenizer;

#[derive(serde::Deserialize)]
struct Golden {
    bos_token: String,
    eos_token: String,
    tokenizer: serde_json::Value,
    dialogues: BTreeMap<String, Vec<Message>>,
    templates: BTreeMap<String, BTreeMap<String, Case>>,
}

/// What becomes of one dialogue in one template.
#[derive(serde::Deserialize)]
struct Case {
    plain: Expected,
    prompted: Expected,
    masked: Option<Masked>,
}

#[derive(serde::Deserialize)]
struct Expected {
    text: Option<String>,
    error: Option<String>,
}

/// Ids and the mask of the assistant's tokens, 0 or 1.
#[derive(serde::Deserialize)]
struct Masked {
    ids: Vec<u32>,
    mask: Vec<u8>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../../tests/golden/templates.json")).expect("golden file")
}

fn source(name: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/templates");
    std::fs::read_to_string(format!("{folder}/{name}.jinja")).expect("a template")
}

fn compile(golden: &Golden, template: &str) -> ChatTemplate {
    let specials = [
        ("bos_token", &golden.bos_token),
        ("eos_token", &golden.eos_token),
    ];
    let specials = specials.map(|(key, token)| (key.to_owned(), token.clone()));
    ChatTemplate::new(template, specials.into_iter().collect()).expect("it compiles")
}

/// Today's date, as the templates that ask for it write it.
fn today() -> String {
    let mut environment = Environment::new();
    add_functions(&mut environment);
    let template = "{{ strftime_now('%d %b %Y') }}";
    environment.render_str(template, ()).expect("a date")
}

#[test]
fn the_families_templates_render_as_transformers_renders_them() {
    let golden = golden();
    assert_eq!(golden.templates.len(), 18);
    let mut num_refused = 0;
    for (name, cases) in &golden.templates {
        let template = compile(&golden, &source(name));
        assert_eq!(cases.len(), golden.dialogues.len(), "{name}");
        for (dialogue, case) in cases {
            for (expected, prompt) in [(&case.plain, false), (&case.prompted, true)] {
                let place = format!("{name}, {dialogue}, prompt: {prompt}");
                let rendered = template.render(&golden.dialogues[dialogue], prompt);
                if let Some(text) = &expected.text {
                    let found = rendered.expect(&place).text.replace(&today(), "TODAY");
                    assert_eq!(&found, text, "{place}");
                    continue;
                }
                let error = rendered.expect_err(&place).to_string();
                num_refused += 1;
                // What Jinja itself refuses, it says in words of its own.
                let reason = expected.error.as_deref().unwrap_or_default();
                let own = reason.starts_with("No first item");
                assert!(own || error.contains(reason), "{place}: {error}");
            }
        }
    }
    assert!(num_refused > 10, "{num_refused} dialogues were refused");
}

#[test]
fn generation_tags_give_the_mask_that_transformers_gives() {
    let golden = golden();
    let json = golden.tokenizer.to_string();
    let mut num_masked = 0;
    for name in ["generation-chatml", "generation-spaces"] {
        let config = serde_json::json!({
            "bos_token": golden.bos_token, "eos_token": golden.eos_token, "pad_token": "<pad>",
            "chat_template": source(name),
        });
        let config = config.as_object().cloned().unwrap_or_default();
        let tokenizer = Tokenizer::of(
            std::path::Path::new("tokenizer_config.json"),
            json.clone(),
            config,
            &crate::specials::GenerationIds::default(),
        );
        let tokenizer = tokenizer.expect("a tokenizer");
        for (dialogue, case) in &golden.templates[name] {
            let expected = case.masked.as_ref().expect("a mask");
            let found = tokenizer.encode_dialogue(&golden.dialogues[dialogue]);
            let found = found.expect(dialogue);
            assert_eq!(found.ids, expected.ids, "{name}, {dialogue}");
            let mask: Vec<u8> = found.loss.iter().map(|is_said| (*is_said).into()).collect();
            assert_eq!(mask, expected.mask, "{name}, {dialogue}");
            num_masked += found.loss.iter().filter(|is_said| **is_said).count();
        }
    }
    assert!(num_masked > 100, "{num_masked} tokens were masked");
}

/// As Jinja 3.1.6 prints it.
#[test]
fn none_is_not_iterable() {
    let values = ["none", "x", "'a'", "3", "{}", "[]", "true"];
    let template: String = values
        .map(|value| format!("{{{{ {value} is iterable }}}} "))
        .concat();
    let rendered = compile(&golden(), &template).render(&[], false);
    let text = rendered.expect("rendered").text;
    assert_eq!(text, "False True True False True True False ");
}

#[test]
fn a_template_too_deep_for_the_parser_is_refused() {
    for operator in ["not ", "not\n", "-", "- "] {
        let template = |count: usize| format!("{{{{ {}1 }}}}", operator.repeat(count));
        compile(&golden(), &template(490));
        let error = ChatTemplate::new(&template(100_000), BTreeMap::new());
        let text = error.expect_err("refused").to_string();
        assert!(text.contains("more than 500 of"), "{text}");
    }
}

#[test]
fn a_template_that_does_not_end_is_stopped_and_says_so() {
    let messages = [Message::new("user", "hello")];
    let loops =
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ a * b }}{% endfor %}{% endfor %}";
    let silent = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    for source in [loops, silent] {
        let error = compile(&golden(), source).render(&messages, true);
        let text = error.expect_err("stopped").to_string();
        assert!(text.contains("does not come to an end"), "{text}");
        assert!(text.contains("2000000 instructions"), "{text}");
    }
    let recursive = "{% macro again(n) %}{{ again(n + 1) }}{% endmacro %}{{ again(0) }}";
    let error = compile(&golden(), recursive).render(&messages, true);
    let text = error.expect_err("stopped").to_string();
    assert!(text.contains("recursion limit exceeded"), "{text}");
}

#[test]
fn a_template_that_does_not_parse_is_refused_with_its_line() {
    for (source, line) in [
        ("{% for message in messages %}", "line 1"),
        ("\n{{ message.content", "line 2"),
        ("{% endfor %}", "line 1"),
        ("{{ messages | nonsense }", "line 1"),
    ] {
        let error = ChatTemplate::new(source, BTreeMap::new()).expect_err(source);
        let text = error.to_string();
        assert!(
            text.contains("syntax error") && text.contains("chat_template:"),
            "{text}"
        );
        assert!(
            text.contains(&line.replace("line ", "chat_template:")),
            "{text}"
        );
    }
}

#[test]
fn an_exception_of_the_template_reaches_the_user() {
    let messages = [Message::new("assistant", "I begin")];
    let error = compile(&golden(), &source("llama-2"))
        .render(&messages, false)
        .expect_err("refused");
    let text = error.to_string();
    assert!(text.contains("Conversation roles must alternate"), "{text}");
    assert!(text.contains("a dialogue of assistant"), "{text}");
}

#[test]
fn a_malformed_template_is_refused_at_once() {
    let error = ChatTemplate::new("{% for x in %}", BTreeMap::new()).expect_err("no Jinja");
    assert!(
        error.to_string().contains("hint: it must be Jinja"),
        "{error}"
    );
}

#[test]
fn generation_tags_keep_their_whitespace_control() {
    let source =
        "a {%- generation -%} b {% endgeneration %} {%+endgeneration+%} {% if generation %}";
    let (rewritten, has_tags) = with_marking_filters(source);
    let expected = "a {%- with -%}{%- filter mark_generation -%} b {% endfilter -%}{%- endwith %} \
                    {%+ endfilter -%}{%- endwith +%} {% if generation %}";
    assert!(has_tags);
    assert_eq!(rewritten, expected);
    let plain = "{% generations %}{{ '{%' }}{% set generation = 1 %}{%";
    assert_eq!(with_marking_filters(plain), (plain.to_owned(), false));
}

#[test]
fn what_is_marked_is_what_the_tags_enclose() {
    let template = "{% for m in messages %}({{ m.content }}{% if m.role == 'assistant' %}{% generation %}\
         [{{ m.content }}{% generation %}!{% endgeneration %}]{% endgeneration %}{% endif %}){% endfor %}";
    let golden = golden();
    let render = |content: &str| {
        let messages = [
            Message::new("user", "é("),
            Message::new("assistant", content),
        ];
        let rendered = compile(&golden, template).render(&messages, false);
        let Rendered { text, generated } = rendered.expect("rendered");
        let generated = generated.expect("tags").into_iter();
        let pieces: Vec<String> = generated.map(|bytes| text[bytes].to_owned()).collect();
        (text, pieces)
    };
    // A message that looks like a mark is a message.
    for content in [
        "x",
        "",
        "\u{fdd0}0\u{fdd1}(",
        "\u{fdd0}0\u{fdd1}\u{fdd0}1\u{fdd1})",
    ] {
        let (text, pieces) = render(content);
        assert_eq!(text, format!("(é()({content}[{content}!])"));
        assert_eq!(pieces, [format!("[{content}!]"), "!".to_owned()]);
    }
    let plain = compile(&golden, OUR_TEMPLATE).render(&[Message::new("user", "x")], true);
    assert_eq!(plain.expect("rendered").generated, None);
}

#[test]
fn our_template_is_what_conversations_are_written_with() {
    let template = ChatTemplate::new(OUR_TEMPLATE, BTreeMap::new()).expect("ours");
    let messages = [
        Message::new("user", "hi\n"),
        Message::new("assistant", " <b>yes</b>"),
    ];
    assert_eq!(
        template.render(&messages, true).expect("rendered").text,
        "<|user|>hi\n<|endoftext|><|assistant|> <b>yes</b><|endoftext|><|assistant|>"
    );
}
