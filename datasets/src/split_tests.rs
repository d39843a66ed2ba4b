use super::*;
use crate::rows::{Demonstration, Prompt};

/// Prompts of 300 conversations; a tenth of all prompts say the same.
fn prompts() -> Vec<Prompt> {
    let prompt = |i: usize| {
        let content = if i.is_multiple_of(10) {
            " Hi  THERE".to_owned()
        } else {
            format!("hi there {i}")
        };
        let messages = vec![Message::new("user", content)];
        Prompt {
            id: format!("conversation-{}/0/{i}", i / 3),
            messages,
        }
    };
    (0..900).map(prompt).collect()
}

#[test]
fn splits_share_no_conversation_and_no_prompt_for_any_seed() {
    for seed in 0..20 {
        let rows = prompts();
        let [train, heldout] = split_rows(rows.clone(), seed, 0.2).expect("split");
        assert_disjoint(&train, &heldout).expect("disjoint");
        assert!((600..840).contains(&train.len()), "{}", train.len());
        assert!((40..300).contains(&heldout.len()), "{}", heldout.len());
        // What is gone from held-out data is in training, up to case and spaces.
        let gone = rows
            .iter()
            .filter(|row| !train.contains(row) && !heldout.contains(row));
        let hi = normalized_prompt(&[Message::new("user", "hi there")]);
        let mut num_gone = 0;
        for row in gone {
            assert_eq!(normalized_prompt(&row.messages), hi);
            num_gone += 1;
        }
        assert!(num_gone > 0);
    }
}

#[test]
fn seeds_hold_out_different_conversations_and_order_does_not_matter() {
    let [first, _] = split_rows(prompts(), 1, 0.2).expect("split");
    let [other, _] = split_rows(prompts(), 2, 0.2).expect("split");
    assert_ne!(first, other);
    let mut reversed = prompts();
    reversed.reverse();
    let [mut again, _] = split_rows(reversed, 1, 0.2).expect("split");
    again.reverse();
    assert_eq!(first, again);
}

#[test]
fn the_disjointness_check_can_fail() {
    let row = |id: &str, content: &str| Prompt {
        id: id.to_owned(),
        messages: vec![Message::new("user", content)],
    };
    let error = assert_disjoint(&[row("a/0", "x")], &[row("a/1", "y")]).expect_err("conversation");
    assert!(
        error.to_string().contains("conversation `a` is in both"),
        "{error}"
    );
    let error =
        assert_disjoint(&[row("a", "So  what")], &[row("b", "so what")]).expect_err("prompt");
    assert!(
        error
            .to_string()
            .contains("prompt `user so what` is in both"),
        "{error}"
    );
    assert_disjoint(&[row("a", "x")], &[row("b", "y")]).expect("disjoint");
}

#[test]
fn a_single_file_is_split_and_a_folder_is_not() {
    let dir = tempfile::tempdir().expect("folder");
    let rows: Vec<Demonstration> = prompts()
        .into_iter()
        .map(|p| Demonstration {
            id: p.id,
            messages: p.messages,
        })
        .collect();
    let file = dir.path().join("mine.parquet");
    crate::write(&file, &rows).expect("written");
    let train = load_split::<Demonstration>(&file, Split::Train).expect("train");
    let heldout = load_split::<Demonstration>(&file, Split::Heldout).expect("heldout");
    assert_eq!(train.len() + heldout.len(), rows.len());
    assert_disjoint(&train, &heldout).expect("disjoint");

    let path = dataset_file(dir.path(), DatasetKind::Demonstrations, Split::Heldout);
    assert_eq!(path, dir.path().join("demonstrations.heldout.parquet"));
    let error = load_split::<Demonstration>(dir.path(), Split::Heldout).expect_err("missing");
    let text = error.to_string();
    assert!(
        text.contains("demonstrations.heldout.parquet: no such file"),
        "{text}"
    );
    assert!(text.contains("the folder holds: mine.parquet"), "{text}");
    crate::write(&path, &rows).expect("written");
    assert_eq!(
        load_split::<Demonstration>(dir.path(), Split::Heldout).expect("all"),
        rows
    );
}

#[test]
fn a_part_without_rows_is_refused() {
    let dir = tempfile::tempdir().expect("folder");
    let file = dir.path().join("one.parquet");
    crate::write(&file, &prompts()[..1]).expect("written");
    let error = load_split::<Prompt>(&file, Split::Heldout)
        .expect_err("empty")
        .to_string();
    assert!(
        error.contains("the held-out split has no prompts (1 rows in all)"),
        "{error}"
    );
}
