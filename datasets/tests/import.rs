//! Imports: what comes out, that it is the same every time, and that splits are disjoint.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use datasets::{
    Comparison, DataError, DatasetKind, Demonstration, ImportFormat, ImportOptions, ImportReport,
    Message, Prompt, Split, Text, Tokenizer, assert_disjoint, dataset_file, import, load_split,
};

fn options(format: &str, path: Option<PathBuf>) -> ImportOptions {
    ImportOptions {
        format: ImportFormat::parse(format).expect("a format"),
        path,
        heldout: 0.2,
        seed: 1,
        prompt_turns: 3,
        conversations: 200,
        sentences: 20,
    }
}

fn bytes_of(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(dir)
        .expect("folder")
        .map(|entry| entry.expect("entry").path());
    entries
        .map(|path| {
            (
                path.file_name().expect("name").into(),
                fs::read(&path).expect("file"),
            )
        })
        .collect()
}

#[test]
fn synthetic_data_is_complete_disjoint_and_the_same_every_time() {
    let dirs: Vec<_> = (0..3)
        .map(|_| tempfile::tempdir().expect("folder"))
        .collect();
    let options = options("synthetic", None);
    let report = import(&options, dirs[0].path()).expect("imported");
    assert_eq!((report.read, report.files.len()), (200, 6));
    import(&options, dirs[1].path()).expect("imported");
    assert_eq!(bytes_of(dirs[0].path()), bytes_of(dirs[1].path()));
    import(&ImportOptions { seed: 2, ..options }, dirs[2].path()).expect("imported");
    assert_ne!(bytes_of(dirs[0].path()), bytes_of(dirs[2].path()));

    let dir = dirs[0].path();
    let texts: Vec<Text> = load_split(dir, Split::Train).expect("texts");
    let heldout: Vec<Text> = load_split(dir, Split::Heldout).expect("texts");
    assert_disjoint(&texts, &heldout).expect("disjoint");
    assert_eq!(texts.len() + heldout.len(), 200);
    let demos: Vec<Demonstration> = load_split(dir, Split::Train).expect("demonstrations");
    let said = |messages: &[Message]| messages.iter().filter(|m| m.is_assistant()).count();
    let num_replies: usize = demos.iter().map(|demo| said(&demo.messages)).sum();
    let num_turns: usize = texts
        .iter()
        .map(|row| row.text.matches("<|endoftext|>").count())
        .sum();
    assert_eq!(
        num_replies,
        num_turns - texts.len(),
        "every turn but the first is learned once"
    );
    let prompts: Vec<Prompt> = load_split(dir, Split::Train).expect("prompts");
    let held_prompts: Vec<Prompt> = load_split(dir, Split::Heldout).expect("prompts");
    assert_disjoint(&prompts, &held_prompts).expect("disjoint");

    // Enough different words for the vocabulary of a test's model.
    let tokenizer = Tokenizer::train(texts.into_iter().map(|row| row.text), 512).expect("trained");
    assert_eq!(tokenizer.vocab_size(), 512);
}

fn import_chitchat(json: &str, dir: &Path) -> Result<ImportReport, DataError> {
    let path = dir.join("dataset.json");
    fs::write(&path, json).expect("written");
    import(&options("chitchat", Some(path)), &dir.join("out"))
}

#[test]
fn chitchat_turns_are_joined_and_short_conversations_counted() {
    let dir = tempfile::tempdir().expect("folder");
    let said = |text: &str, sender: &str| {
        format!(r#"{{"text":"{text}","sender":"{sender}","timestamp":""}}"#)
    };
    let long = |i: usize| {
        format!(
            r#""c{i}":{{"messages":[[{},{}],[{}],[{}],[{}],[{}]],"start":""}}"#,
            said(" Hello ", "x"),
            said(&format!("number {i}"), "x"),
            said("hi", "y"),
            said("  ", "x"),
            said("are you there?", "y"),
            said("yes", "x"),
        )
    };
    // A blank turn of x leaves two of y, which are one turn: three turns in all.
    let report = import_chitchat(&format!("{{{}}}", long(0)), dir.path());
    assert!(
        matches!(report, Err(DataError::EmptySplit { .. })),
        "{report:?}"
    );

    let longer = |i: usize| long(i).replace("]],", &format!("],[{}]],", said("good", "y")));
    let rows: Vec<String> = (0..40)
        .map(|i| if i < 30 { longer(i) } else { long(i) })
        .collect();
    let report = import_chitchat(&format!("{{{}}}", rows.join(",")), dir.path()).expect("imported");
    assert_eq!(report.read, 40);
    assert_eq!(
        report.dropped,
        BTreeMap::from([("fewer than 4 turns".to_owned(), 10)])
    );
    let texts: Vec<Text> = load_split(&dir.path().join("out"), Split::Train).expect("texts");
    let row = texts
        .iter()
        .find(|row| row.id == "c3")
        .or_else(|| texts.first())
        .expect("a row");
    let number = row.id.trim_start_matches('c');
    assert_eq!(
        row.text,
        format!(
            "<|user|>Hello number {number}<|endoftext|><|assistant|>hi are you there?<|endoftext|>\
             <|user|>yes<|endoftext|><|assistant|>good<|endoftext|>"
        )
    );
    assert_eq!(row.source, "chitchat");
}

#[test]
fn what_is_no_chitchat_is_refused() {
    let dir = tempfile::tempdir().expect("folder");
    let error = import_chitchat(r#"{"a": {"messages": [[{"text": "x"}]]}}"#, dir.path());
    let text = error.expect_err("no sender").to_string();
    assert!(
        text.contains("dataset.json: missing field `sender` at line 1"),
        "{text}"
    );
    let missing = options("chitchat", Some(dir.path().join("nothing.json")));
    let text = import(&missing, dir.path())
        .expect_err("missing")
        .to_string();
    assert!(text.contains("nothing.json: no such file"), "{text}");
}

#[test]
fn rows_with_our_fields_are_imported_and_split() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("mine.jsonl");
    let line = |i: usize| {
        format!(
            r#"{{"id":"q{}/{i}","prompt":[{{"role":"user","content":"question {i}"}}],"responses":[{{"content":"a","rank":1}},{{"content":"b","rank":2}}]}}"#,
            i / 2
        )
    };
    fs::write(&path, (0..100).map(line).collect::<Vec<_>>().join("\n")).expect("written");
    let out = dir.path().join("out");
    let report = import(&options("comparisons", Some(path)), &out).expect("imported");
    assert_eq!(report.read, 100);
    let train: Vec<Comparison> = load_split(&out, Split::Train).expect("train");
    let heldout: Vec<Comparison> = load_split(&out, Split::Heldout).expect("heldout");
    assert_eq!(train.len() + heldout.len(), 100);
    assert_disjoint(&train, &heldout).expect("disjoint");
    assert!(!dataset_file(&out, DatasetKind::Prompts, Split::Train).exists());
}

#[test]
fn plain_text_becomes_documents() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("book.txt");
    let paragraph = "a sentence of some length. ".repeat(20);
    fs::write(&path, vec![paragraph.trim(); 200].join("\n\n")).expect("written");
    let out = dir.path().join("out");
    import(&options("plain-text", Some(path)), &out).expect("imported");
    let mut rows: Vec<Text> = load_split(&out, Split::Train).expect("train");
    rows.extend(load_split::<Text>(&out, Split::Heldout).expect("heldout"));
    let text: usize = rows
        .iter()
        .map(|row| row.text.matches("a sentence").count())
        .sum();
    assert_eq!(text, 200 * 20);
    assert!(
        rows.len() > 30 && rows.iter().all(|row| row.text.len() < 4000),
        "{}",
        rows.len()
    );
}

#[test]
fn impossible_options_are_refused() {
    let dir = tempfile::tempdir().expect("folder");
    let refused = |options: ImportOptions| {
        import(&options, dir.path())
            .expect_err("refused")
            .to_string()
    };
    let good = options("synthetic", None);
    let text = refused(ImportOptions {
        heldout: 1.0,
        ..good.clone()
    });
    assert!(
        text.contains("heldout = 1: must be above 0 and below 1"),
        "{text}"
    );
    let text = refused(ImportOptions {
        prompt_turns: 0,
        ..good.clone()
    });
    assert!(text.contains("prompt_turns = 0"), "{text}");
    let text = refused(ImportOptions {
        conversations: 0,
        ..good
    });
    assert!(text.contains("conversations = 0"), "{text}");
    let text = refused(options("chitchat", None));
    assert!(
        text.contains("path = (none): this format reads a file"),
        "{text}"
    );
    let text = ImportFormat::parse("csv").expect_err("unknown").to_string();
    assert!(
        text.contains("unknown import format `csv`") && text.contains("plain-text"),
        "{text}"
    );
}

#[test]
fn passkey_texts_are_texts_alone_that_ask_for_their_number() {
    let dir = tempfile::tempdir().expect("folder");
    let options = options("passkey", None);
    let report = import(&options, dir.path()).expect("imported");
    assert_eq!((report.read, report.files.len()), (200, 2));
    let texts: Vec<Text> = load_split(dir.path(), Split::Train).expect("texts");
    assert!(texts.len() > 100);
    for row in &texts {
        assert!(row.text.contains("What is the pass key? The pass key is "));
    }
    let none = ImportOptions {
        sentences: 0,
        ..options
    };
    let text = import(&none, dir.path()).expect_err("refused").to_string();
    assert!(
        text.contains("sentences") && text.contains("hint: "),
        "{text}"
    );
}
