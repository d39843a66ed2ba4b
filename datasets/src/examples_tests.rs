use super::*;
use crate::rows::{Response, Row};

fn tokenizer() -> Tokenizer {
    let texts = (0..50).map(|i| format!("one two three four five {i}"));
    Tokenizer::train(texts, 275).expect("trained")
}

fn dialogue(turns: &[&str]) -> Vec<Message> {
    let roles = ["user", "assistant"].into_iter().cycle();
    turns
        .iter()
        .zip(roles)
        .map(|(turn, role)| Message::new(role, *turn))
        .collect()
}

fn demonstration(turns: &[&str]) -> Demonstration {
    Demonstration {
        id: "demo/0".to_owned(),
        messages: dialogue(turns),
    }
}

fn prompt(turns: &[&str]) -> Prompt {
    Prompt {
        id: "p/0/1".to_owned(),
        messages: dialogue(turns),
    }
}

#[test]
fn a_prompt_over_the_limit_is_named_with_its_length_and_the_remedy() {
    let tokenizer = tokenizer();
    let row = prompt(&["one two three four five"]);
    let tokens = tokenizer
        .encode_prompt(&row.messages)
        .expect("encoded")
        .len();
    let error = prompt_examples(&[row], &tokenizer, tokens - 1, Overlong::Error).expect_err("long");
    let text = error.to_string();
    assert!(
        text.contains(&format!(
            "`p/0/1` has {tokens} tokens, the limit is {}",
            tokens - 1
        )),
        "{text}"
    );
    assert!(text.contains("hint: raise `max_prompt_tokens`"), "{text}");
}

#[test]
fn dropped_and_truncated_prompts_are_counted() {
    let tokenizer = tokenizer();
    let rows = [
        prompt(&["one"]),
        prompt(&["one two three four five", "ok", "two"]),
    ];
    let (kept, count) = prompt_examples(&rows, &tokenizer, 8, Overlong::Drop).expect("dropped");
    assert_eq!(
        (kept.len(), count),
        (
            1,
            OverlongCount {
                dropped: 1,
                truncated: 0
            }
        )
    );
    let (kept, count) = prompt_examples(&rows, &tokenizer, 8, Overlong::Left).expect("truncated");
    assert_eq!(
        (kept.len(), count),
        (
            2,
            OverlongCount {
                dropped: 0,
                truncated: 1
            }
        )
    );
    assert_eq!(
        kept[1].messages,
        dialogue(&["two"]),
        "the oldest messages go first"
    );
    assert_eq!(
        kept[1].ids,
        tokenizer.encode_prompt(&kept[1].messages).expect("encoded")
    );
}

#[test]
fn a_message_too_long_by_itself_loses_its_beginning_and_keeps_the_markup() {
    let tokenizer = tokenizer();
    let mut row = prompt(&["one two three four five"]);
    row.messages.insert(0, Message::new("system", "one"));
    let whole = tokenizer
        .encode_prompt(&row.messages)
        .expect("encoded")
        .len();
    for limit in (7..whole).rev() {
        let (kept, _) = prompt_examples(
            std::slice::from_ref(&row),
            &tokenizer,
            limit,
            Overlong::Left,
        )
        .expect("short");
        let example = &kept[0];
        assert!(
            example.ids.len() <= limit,
            "{} > {limit}",
            example.ids.len()
        );
        assert_eq!(
            example.ids.last(),
            tokenizer.encode("<|assistant|>").expect("id").last()
        );
        assert_eq!(
            example.messages[0], row.messages[0],
            "the system message stays"
        );
        assert!(
            row.messages[1]
                .content
                .ends_with(&example.messages[1].content)
        );
    }
    let error = prompt_examples(&[row], &tokenizer, 3, Overlong::Left).expect_err("nothing fits");
    assert!(
        error
            .to_string()
            .contains("none of 1 prompts fits into 3 tokens"),
        "{error}"
    );
}

#[test]
fn demonstrations_carry_loss_and_eos_and_fit() {
    let tokenizer = tokenizer();
    let row = demonstration(&["one two", "three four five", "two", "one"]);
    let (whole, count) =
        sft_examples(std::slice::from_ref(&row), &tokenizer, 100, Overlong::Error).expect("whole");
    assert_eq!(count, OverlongCount::default());
    let eos_with_loss = whole[0]
        .ids
        .iter()
        .zip(&whole[0].loss)
        .filter(|&(&id, &l)| id == tokenizer.eos_id() && l);
    assert_eq!(eos_with_loss.count(), 2);

    let length = whole[0].ids.len();
    let (short, count) = sft_examples(
        std::slice::from_ref(&row),
        &tokenizer,
        length - 1,
        Overlong::Left,
    )
    .expect("short");
    assert_eq!(count.truncated, 1);
    let tail = tokenizer.encode_dialogue(&row.messages[2..]).expect("tail");
    assert_eq!((&short[0].ids, &short[0].loss), (&tail.ids, &tail.loss));

    // Not even the last pair of turns fits: tokens go.
    let (cut, _) = sft_examples(
        std::slice::from_ref(&row),
        &tokenizer,
        tail.ids.len() - 2,
        Overlong::Left,
    )
    .expect("cut");
    assert_eq!(cut[0].ids, tail.ids[2..]);
    assert_eq!(cut[0].loss, tail.loss[2..]);
}

#[test]
fn a_demonstration_without_the_assistant_is_refused() {
    let error = sft_examples(
        &[demonstration(&["one"])],
        &tokenizer(),
        100,
        Overlong::Drop,
    );
    let error = error.expect_err("nothing to learn").to_string();
    assert!(
        error.contains("demonstration `demo/0` has no assistant message"),
        "{error}"
    );
}

fn comparison(prompt: &[&str], responses: &[(&str, i32)]) -> Comparison {
    let response = |&(content, rank): &(&str, i32)| Response {
        content: content.to_owned(),
        rank: Some(rank),
        rating: None,
        model: None,
    };
    let responses = responses.iter().map(response).collect();
    Comparison {
        id: "c/0/1".to_owned(),
        prompt: dialogue(prompt),
        responses,
        labeler: None,
        pairs: None,
    }
}

#[test]
fn responses_share_their_prompt_and_end_with_eos() {
    let tokenizer = tokenizer();
    let row = comparison(&["one two"], &[("three", 2), (" four five", 1), ("", 2)]);
    row.check().expect("valid");
    let (examples, count, ties) =
        comparison_examples(std::slice::from_ref(&row), &tokenizer, 100, Overlong::Error)
            .expect("examples");
    let example = &examples[0];
    assert_eq!(
        (count, ties, example.ties),
        (OverlongCount::default(), 1, 1)
    );
    assert_eq!(example.pairs, [(1, 0), (1, 2)]);
    let prompt = tokenizer.encode_prompt(&row.prompt).expect("prompt");
    assert_eq!(example.prompt_len, prompt.len());
    for (ids, response) in example.responses.iter().zip(&row.responses) {
        assert_eq!(ids[..prompt.len()], prompt);
        assert_eq!(ids.last(), Some(&tokenizer.eos_id()));
        let said = tokenizer.decode(&ids[prompt.len()..]).expect("decoded");
        assert_eq!(said, response.content);
    }
}

#[test]
fn a_long_comparison_loses_history_not_responses() {
    let tokenizer = tokenizer();
    let row = comparison(
        &["one two three", "four", "five"],
        &[("one", 1), ("two three", 2)],
    );
    let whole = comparison_examples(std::slice::from_ref(&row), &tokenizer, 100, Overlong::Error);
    let whole = whole.expect("whole").0.remove(0);
    let longest = whole.responses.iter().map(Vec::len).max().expect("two");
    let (short, count, _) = comparison_examples(
        std::slice::from_ref(&row),
        &tokenizer,
        longest - 1,
        Overlong::Left,
    )
    .expect("short");
    assert_eq!(count.truncated, 1);
    for (long, short_ids) in whole.responses.iter().zip(&short[0].responses) {
        assert_eq!(long[whole.prompt_len..], short_ids[short[0].prompt_len..]);
        assert!(short_ids.len() < longest);
    }
    let error = comparison_examples(&[row], &tokenizer, 3, Overlong::Drop).expect_err("none");
    assert!(
        error.to_string().contains("none of 1 comparisons fits"),
        "{error}"
    );
}
