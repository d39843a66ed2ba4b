use std::collections::BTreeSet;

use super::*;
use crate::infill::SPAN_PLACES;

/// A tokenizer with the special tokens of an objective.
fn tokenizer(objective: Objective) -> Tokenizer {
    let tokens: Vec<String> = objective.special_tokens().map(str::to_owned).collect();
    let texts = (0..40).map(|n| format!("the weather was number {n}, thank you for asking"));
    Tokenizer::train_with(texts, 300, &tokens).expect("trained")
}

fn tasks(objective: Objective, seed: u64) -> Tasks {
    Tasks::new(objective, &tokenizer(objective), seed, "test").expect("tasks")
}

/// A text of 200 tokens, of which every tenth is an end of a document.
fn text(number: u64) -> Vec<u32> {
    let token = |i: u64| match i % 10 {
        9 => 0,
        _ => 8 + ((i * i * 7 + i * 31 + number * 13) % 290) as u32,
    };
    (0..200).map(token).collect()
}

const HIDDEN: usize = 27;

/// Undoes [`Blanks::row`]: the text, and the lengths of its spans in the order of part B.
fn filled(row: &LmRow, blanks: Blanks) -> (Vec<u32>, Vec<usize>) {
    let positions = row.positions.as_ref().expect("two positions");
    let mut spans: Vec<(u32, Vec<u32>)> = Vec::new();
    for (column, [position, place]) in positions.iter().copied().enumerate().skip(row.prefix) {
        if place == 1 {
            assert_eq!(row.ids[column], blanks.start);
            spans.push((position, Vec::new()));
        }
        let (of, span) = spans.last_mut().expect("part B begins with a start");
        assert_eq!((position, place as usize), (*of, span.len() + 1));
        let target = row.targets[column].expect("all of part B is predicted");
        let next = row.ids.get(column + 1).filter(|id| **id != blanks.start);
        assert_eq!(target, next.copied().unwrap_or(blanks.end));
        if target != blanks.end {
            span.push(target);
        }
    }
    let mut text = Vec::new();
    for (column, both) in positions.iter().enumerate().take(row.prefix) {
        assert_eq!((*both, row.targets[column]), ([column as u32, 0], None));
        let span = spans.iter().find(|(of, _)| *of == column as u32);
        assert_eq!(row.ids[column] == blanks.mask, span.is_some());
        match span {
            Some((_, hidden)) => text.extend(hidden),
            None => text.push(row.ids[column]),
        }
    }
    (text, spans.iter().map(|(_, span)| span.len()).collect())
}

const BLANKS: Blanks = Blanks {
    mask: 5,
    start: 6,
    end: 7,
};

#[test]
fn a_causal_row_is_the_text() {
    let row = tasks(Objective::Causal, 1).row(text(0), 0);
    assert_eq!(row, LmRow::plain(text(0)));
}

#[test]
fn masked_rows_hide_their_share_of_the_ordinary_tokens_and_predict_them_in_place() {
    let tasks = tasks(Objective::Masked, 1);
    let (mut masked, mut left, mut other) = (0, 0, BTreeSet::new());
    let mut num_other = 0;
    for number in 0..400 {
        let text = text(number);
        let row = tasks.row(text.clone(), number);
        assert_eq!((row.prefix, row.num_targets()), (200, HIDDEN));
        for (column, target) in row.targets.iter().enumerate() {
            let (id, was) = (row.ids[column], text[column]);
            match target {
                None => assert_eq!(id, was),
                Some(target) => assert_eq!((*target, was != 0), (was, true)),
            }
            match target {
                Some(_) if id == BLANKS.mask => masked += 1,
                Some(_) if id == was => left += 1,
                Some(_) => {
                    assert!(id > BLANKS.mask, "{id} is special");
                    other.insert(id);
                    num_other += 1;
                }
                None => {}
            }
        }
    }
    let all = f64::from(400 * HIDDEN as u32);
    let share = |count: i32| f64::from(count) / all;
    assert!((share(masked) - 0.8).abs() < 0.015, "{}", share(masked));
    assert!(
        (share(num_other) - 0.1).abs() < 0.012,
        "{}",
        share(num_other)
    );
    assert!((share(left) - 0.1).abs() < 0.012, "{}", share(left));
    assert!(
        other.len() > 250,
        "{} different tokens stand in",
        other.len()
    );
}

#[test]
fn blanks_hide_their_share_and_give_the_text_back() {
    let tasks = tasks(Objective::Infill, 1);
    let (mut lengths, mut ordered, mut num_rows) = (Vec::new(), 0, 0);
    for number in 0..400 {
        let text = text(number);
        let row = tasks.row(text.clone(), number);
        let (back, of_row) = filled(&row, BLANKS);
        assert_eq!(back, text);
        let hidden: usize = of_row.iter().sum();
        let longest = of_row.iter().max().expect("a span");
        assert!(
            hidden >= HIDDEN && hidden < HIDDEN + longest,
            "{hidden} hidden"
        );
        assert!(row.ids.len() <= Objective::Infill.longest_row(200));
        let in_b = &row.ids[row.prefix..];
        assert!(!in_b.contains(&0), "an end of a document is hidden");
        assert!(
            row.ids.windows(2).all(|pair| pair != [BLANKS.mask; 2]),
            "two spans touch"
        );
        let positions = row.positions.as_ref().expect("two positions");
        let order: Vec<u32> = positions[row.prefix..].iter().map(|both| both[0]).collect();
        ordered += usize::from(order.is_sorted());
        num_rows += 1;
        lengths.extend(of_row);
    }
    assert!(
        ordered * 20 < num_rows,
        "{ordered} of {num_rows} rows are in order"
    );
    // Documents of nine tokens let none of the longest in, which are one in 860.
    let share = |length: usize| {
        lengths.iter().filter(|found| **found == length).count() as f64 / lengths.len() as f64
    };
    let normal = 1.0 - (-3.0_f64).exp();
    for (length, expected) in [(1, 3.0), (2, 4.5), (3, 4.5), (4, 3.375), (5, 2.025)] {
        let expected = expected * (-3.0_f64).exp() / normal;
        assert!(
            (share(length) - expected).abs() < 0.03,
            "length {length}: {} of the spans, not {expected}",
            share(length)
        );
    }
}

#[test]
fn what_is_hidden_depends_on_seed_purpose_and_number_alone() {
    for objective in [Objective::Masked, Objective::Infill] {
        let first = tasks(objective, 1);
        let walked: Vec<LmRow> = (0..20).map(|number| first.row(text(0), number)).collect();
        for number in (0..20).rev() {
            assert_eq!(
                tasks(objective, 1).row(text(0), number),
                walked[number as usize]
            );
        }
        let different: BTreeSet<&Vec<u32>> = walked.iter().map(|row| &row.ids).collect();
        assert_eq!(different.len(), 20, "every number hides something else");
        assert_ne!(tasks(objective, 2).row(text(0), 0), walked[0]);
        let other = Tasks::new(objective, &tokenizer(objective), 1, "other").expect("tasks");
        assert_ne!(other.row(text(0), 0), walked[0]);
    }
}

#[test]
fn texts_that_leave_no_room_are_hidden_as_far_as_they_can() {
    // No ordinary token; one; and none with an ordinary neighbour.
    for objective in [Objective::Masked, Objective::Infill] {
        let tasks = tasks(objective, 1);
        assert_eq!(tasks.row(vec![0; 8], 0).num_targets(), 0);
        assert!(tasks.row(vec![0, 9, 0], 0).num_targets() > 0);
    }
    let tasks = tasks(Objective::Infill, 1);
    let comb: Vec<u32> = (0..100).map(|i| if i % 2 == 0 { 9 } else { 0 }).collect();
    let row = tasks.row(comb.clone(), 0);
    let (back, lengths) = filled(&row, BLANKS);
    assert_eq!((back, lengths), (comb, vec![1; 8]));
    let dense = vec![9; 7];
    for number in 0..50 {
        let (back, lengths) = filled(&tasks.row(dense.clone(), number), BLANKS);
        assert_eq!(back, dense);
        assert!(lengths.iter().sum::<usize>() >= 2);
    }
    assert_eq!(SPAN_PLACES, 40, "a change makes other models");
}

#[test]
fn a_tokenizer_brings_the_tokens_or_is_refused_by_name() {
    let with = |tokens: &[&str]| {
        let texts = (0..40).map(|n| format!("text number {n} to learn from"));
        let tokens: Vec<String> = tokens.iter().map(|token| (*token).to_owned()).collect();
        Tokenizer::train_with(texts, 275, &tokens).expect("trained")
    };
    let ids = |objective: Objective, tokenizer: &Tokenizer| objective.token_ids(tokenizer).ok();
    assert_eq!(ids(Objective::Causal, &with(&[])), Some(vec![]));
    assert_eq!(ids(Objective::Masked, &with(&["<|mask|>"])), Some(vec![5]));
    let glm = with(&["<sop>", "<eop>", "[MASK]"]);
    assert_eq!(ids(Objective::Infill, &glm), Some(vec![7, 5, 6]));
    assert_eq!(glm.declared("mask_token"), None);
    let ours = with(&["<|mask|>", "<|startofpiece|>", "<|endofpiece|>"]);
    assert_eq!(
        ours.declared("mask_token").as_deref(),
        Some("<|mask|>"),
        "as transformers looks it up"
    );
    let error = Objective::Infill
        .check(&with(&["<|mask|>"]))
        .expect_err("refused");
    assert_eq!(
        error.to_string(),
        "objective = \"infill\" needs a special token for the start of a span (<|startofpiece|>, \
         <sop>), which the tokenizer does not have\n  hint: a tokenizer that is trained gets it \
         ([tokenizer] kind = \"bpe\"); in another one's tokenizer.json it stands among added_tokens with \
         \"special\": true"
    );
    assert!(Objective::Masked.check(&with(&[])).is_err());
}
