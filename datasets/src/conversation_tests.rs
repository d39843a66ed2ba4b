use super::*;
use crate::template::{ChatTemplate, OUR_TEMPLATE};

fn conversation(turns: &[&str]) -> Conversation {
    let turns = turns.iter().map(|&turn| turn.to_owned()).collect();
    Conversation {
        id: "c".to_owned(),
        source: "test",
        turns,
    }
}

#[test]
fn the_document_is_the_rendered_dialogue() {
    let conversation = conversation(&["a", "b", "c"]);
    let template =
        ChatTemplate::new(OUR_TEMPLATE, std::collections::BTreeMap::new()).expect("ours");
    let rendered = template
        .render(&conversation.messages(0), false)
        .expect("rendered");
    assert_eq!(conversation.text().text, rendered.text);
}

#[test]
fn both_speakers_are_imitated_in_pieces() {
    let shown: Vec<String> = conversation(&["a", "b", "c", "d", "e", "f", "g"])
        .demonstrations()
        .iter()
        .map(|demonstration| {
            let said = demonstration
                .messages
                .iter()
                .map(|m| format!("{}:{}", m.role, m.content));
            format!(
                "{} {}",
                demonstration.id,
                said.collect::<Vec<_>>().join(" ")
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            "c/0/0 user:a assistant:b user:c assistant:d",
            "c/0/1 user:e assistant:f",
            "c/1/0 user:b assistant:c user:d assistant:e",
            "c/1/1 user:f assistant:g",
        ]
    );
}

#[test]
fn every_turn_but_the_first_has_a_prompt_that_ends_before_it() {
    let prompts = conversation(&["a", "b", "c", "d"]).prompts(3);
    let shown: Vec<(String, Vec<(String, String)>)> = prompts
        .into_iter()
        .map(|p| {
            (
                p.id,
                p.messages
                    .into_iter()
                    .map(|m| (m.role, m.content))
                    .collect(),
            )
        })
        .collect();
    let said = |role: &str, content: &str| (role.to_owned(), content.to_owned());
    assert_eq!(
        shown,
        [
            ("c/0/1".to_owned(), vec![said("user", "a")]),
            ("c/1/2".to_owned(), vec![said("user", "b")]),
            (
                "c/0/3".to_owned(),
                vec![said("user", "a"), said("assistant", "b"), said("user", "c")]
            ),
        ]
    );
    let short = conversation(&["a", "b", "c", "d"]).prompts(1);
    assert!(
        short
            .iter()
            .all(|p| p.messages.len() == 1 && p.messages[0].role == "user")
    );
}

#[test]
fn flawed_conversations_are_named() {
    assert_eq!(
        conversation(&["a", "b", "c"]).flaw(),
        Some("fewer than 4 turns")
    );
    assert_eq!(
        conversation(&["a", "b", "c", "<|user|>"]).flaw(),
        Some("contains a special token")
    );
    assert_eq!(conversation(&["a", "b", "c", "d"]).flaw(), None);
}
