//! Rendering agrees with Jinja2 (`tests/golden/make_templates.py` made the expectations).

use super::*;

#[derive(serde::Deserialize)]
struct Golden {
    messages: Vec<Message>,
    bos_token: String,
    eos_token: String,
    templates: Vec<GoldenTemplate>,
}

#[derive(serde::Deserialize)]
struct GoldenTemplate {
    name: String,
    template: String,
    rendered: String,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../../tests/golden/templates.json")).expect("golden file")
}

fn compile(golden: &Golden, template: &str) -> ChatTemplate {
    let specials = [
        ("bos_token", &golden.bos_token),
        ("eos_token", &golden.eos_token),
    ];
    let specials = specials.map(|(key, token)| (key.to_owned(), token.clone()));
    ChatTemplate::new(template, specials.into_iter().collect()).expect("it compiles")
}

#[test]
fn known_templates_render_as_jinja2_renders_them() {
    let golden = golden();
    assert_eq!(golden.templates.len(), 4);
    for case in &golden.templates {
        let rendered = compile(&golden, &case.template).render(&golden.messages, true);
        assert_eq!(rendered.expect(&case.name), case.rendered, "{}", case.name);
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
        assert!(text.contains("10000000 instructions"), "{text}");
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
    let golden = golden();
    let case = golden
        .templates
        .iter()
        .find(|case| case.name == "llama-2")
        .expect("llama-2");
    let messages = [Message::new("assistant", "I begin")];
    let error = compile(&golden, &case.template)
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
    let source = "a {%- generation -%} b {% endgeneration %} {% if x %}";
    let expected = "a {%- if true -%} b {% endif %} {% if x %}";
    let collapsed = without_generation_tags(source)
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    assert_eq!(collapsed, expected);
}

#[test]
fn our_template_is_what_conversations_are_written_with() {
    let template = ChatTemplate::new(OUR_TEMPLATE, BTreeMap::new()).expect("ours");
    let messages = [
        Message::new("user", "hi\n"),
        Message::new("assistant", " <b>yes</b>"),
    ];
    assert_eq!(
        template.render(&messages, true).expect("rendered"),
        "<|user|>hi\n<|endoftext|><|assistant|> <b>yes</b><|endoftext|><|assistant|>"
    );
}

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
