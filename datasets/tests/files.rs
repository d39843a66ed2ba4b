//! Datasets on disk: they come back as they were, and each kind of damage is named.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, LargeStringArray, RecordBatch, StringArray};
use datasets::{
    Comparison, Demonstration, Message, Pair, Prompt, Response, Row, Text, read, write,
};
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;

fn messages() -> Vec<Message> {
    vec![
        Message::new("system", "be kind"),
        Message::new("user", "naïve \"quotes\"\n🎉"),
        Message::new("assistant", ""),
    ]
}

fn comparisons() -> Vec<Comparison> {
    let response = |content: &str, rank, rating, model: Option<&str>| Response {
        content: content.to_owned(),
        rank,
        rating,
        model: model.map(str::to_owned),
    };
    let prompt = messages()[..2].to_vec();
    let pair = Pair {
        better: 1,
        worse: 0,
        grade: Some("slightly".to_owned()),
    };
    vec![
        Comparison {
            id: "a/0".to_owned(),
            prompt: prompt.clone(),
            responses: vec![
                response("yes", Some(1), None, Some("sft")),
                response("no", Some(2), None, None),
            ],
            labeler: Some("me".to_owned()),
            pairs: None,
        },
        Comparison {
            id: "b/0".to_owned(),
            prompt: prompt.clone(),
            responses: vec![
                response("yes", None, None, None),
                response("no", None, None, None),
                response("", None, None, None),
            ],
            labeler: None,
            pairs: Some(vec![pair]),
        },
        Comparison {
            id: "c/0".to_owned(),
            prompt,
            responses: vec![
                response("1", None, Some(0.5), None),
                response("2", None, Some(-1.25), None),
            ],
            labeler: None,
            pairs: None,
        },
    ]
}

fn round_trip<R: Row + PartialEq + std::fmt::Debug>(rows: &[R]) {
    let dir = tempfile::tempdir().expect("folder");
    let parquet = dir.path().join("rows.parquet");
    write(&parquet, rows).expect("written");
    assert_eq!(read::<R>(&parquet).expect("read"), rows);
    let first = fs::read(&parquet).expect("bytes");
    write(&parquet, rows).expect("written again");
    assert_eq!(
        fs::read(&parquet).expect("bytes"),
        first,
        "the same rows give the same bytes"
    );

    let lines = dir.path().join("rows.jsonl");
    let text: Vec<String> = rows
        .iter()
        .map(|row| serde_json::to_string(row).expect("json"))
        .collect();
    fs::write(&lines, text.join("\n") + "\n\n").expect("written");
    assert_eq!(read::<R>(&lines).expect("read"), rows);
}

#[test]
fn every_kind_of_row_comes_back() {
    // More rows than are decoded at once.
    let text = |i| Text {
        id: format!("t{i}"),
        text: format!("text {i}"),
        source: "s".to_owned(),
    };
    round_trip(&(0..2500).map(text).collect::<Vec<_>>());
    let demo = |i: usize| Demonstration {
        id: format!("d{i}"),
        messages: messages()[..=(i % 3)].to_vec(),
    };
    round_trip(&(0..2500).map(demo).collect::<Vec<_>>());
    round_trip(&[Prompt {
        id: "p".to_owned(),
        messages: messages()[..2].to_vec(),
    }]);
    round_trip(&comparisons());
}

fn error_of<R: Row + std::fmt::Debug>(path: &Path) -> String {
    read::<R>(path).expect_err("refused").to_string()
}

fn write_columns(path: &Path, columns: Vec<(&str, ArrayRef)>, metadata: &[(&str, &str)]) {
    let batch = RecordBatch::try_from_iter(columns).expect("columns");
    let entries = metadata
        .iter()
        .map(|(key, value)| KeyValue::new((*key).to_owned(), (*value).to_owned()));
    let properties = WriterProperties::builder()
        .set_key_value_metadata(Some(entries.collect()))
        .build();
    let file = fs::File::create(path).expect("file");
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).expect("writer");
    writer.write(&batch).expect("rows");
    writer.close().expect("closed");
}

fn column(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

#[test]
fn foreign_parquet_is_read_leniently_where_writers_differ() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("foreign.parquet");
    let large: ArrayRef = Arc::new(LargeStringArray::from(vec!["one", "two"]));
    let extra: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
    let columns = vec![
        ("extra", extra),
        ("text", large),
        ("source", column(&["s", "s"])),
        ("id", column(&["a", "b"])),
    ];
    write_columns(&path, columns, &[]);
    let rows = read::<Text>(&path).expect("read");
    assert_eq!(
        rows[1],
        Text {
            id: "b".into(),
            text: "two".into(),
            source: "s".into()
        }
    );
}

#[test]
fn a_missing_column_is_named_with_its_file() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("bad.parquet");
    write_columns(
        &path,
        vec![("id", column(&["a"])), ("body", column(&["x"]))],
        &[],
    );
    let error = error_of::<Text>(&path);
    assert!(
        error.contains("bad.parquet: column `text` is missing"),
        "{error}"
    );
    assert!(error.contains("columns here: id, body"), "{error}");
}

#[test]
fn wrong_types_and_nulls_are_named() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("bad.parquet");
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    write_columns(
        &path,
        vec![
            ("id", column(&["a"])),
            ("text", numbers),
            ("source", column(&["s"])),
        ],
        &[],
    );
    let error = error_of::<Text>(&path);
    assert!(
        error.contains("column `text` has type Int64, not string"),
        "{error}"
    );
    write_columns(
        &path,
        vec![("id", column(&["a"])), ("messages", column(&["s"]))],
        &[],
    );
    let error = error_of::<Prompt>(&path);
    assert!(
        error.contains("column `messages` has type Utf8, not list of structs"),
        "{error}"
    );
    let nulls: ArrayRef = Arc::new(StringArray::from(vec![Some("x"), None]));
    let columns = vec![
        ("id", column(&["a", "b"])),
        ("text", nulls),
        ("source", column(&["s", "s"])),
    ];
    write_columns(&path, columns, &[]);
    let error = error_of::<Text>(&path);
    assert!(
        error.contains("value 1 of column `text` is null"),
        "{error}"
    );
}

#[test]
fn another_kind_or_a_later_version_is_refused() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("rows.parquet");
    write(&path, &comparisons()).expect("written");
    let error = error_of::<Prompt>(&path);
    assert!(
        error.contains("rows.parquet: holds comparisons, not prompts"),
        "{error}"
    );
    let columns = || {
        vec![
            ("id", column(&["a"])),
            ("text", column(&["x"])),
            ("source", column(&["s"])),
        ]
    };
    write_columns(
        &path,
        columns(),
        &[("rlhf.schema_version", "2"), ("rlhf.kind", "text")],
    );
    let error = error_of::<Text>(&path);
    assert!(
        error.contains("schema version 2 is not supported (at most 1)"),
        "{error}"
    );
}

#[test]
fn empty_truncated_and_foreign_files_are_refused() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("rows.parquet");
    let rows: Vec<Text> = (0..5000)
        .map(|i| Text {
            id: format!("t{i}"),
            text: format!("{i} {}", i * 7919),
            source: "s".to_owned(),
        })
        .collect();
    write(&path, &rows).expect("written");
    let bytes = fs::read(&path).expect("bytes");
    for length in [0, 3, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&path, &bytes[..length]).expect("cut");
        let error = error_of::<Text>(&path);
        assert!(
            error.contains("rows.parquet: not a readable Parquet file"),
            "{length}: {error}"
        );
        assert!(error.contains("hint: the file may be truncated"), "{error}");
    }
    let empty: Vec<&str> = Vec::new();
    let columns = vec![
        ("id", column(&empty)),
        ("text", column(&empty)),
        ("source", column(&empty)),
    ];
    write_columns(&path, columns, &[]);
    assert!(error_of::<Text>(&path).contains("rows.parquet: has no rows"));
    assert!(write::<Text>(&path, &[]).is_err());

    let lines = dir.path().join("rows.jsonl");
    fs::write(&lines, "\n \n").expect("written");
    assert!(error_of::<Text>(&lines).contains("rows.jsonl: has no rows"));
    assert!(error_of::<Text>(&dir.path().join("no.parquet")).contains("no.parquet: no such file"));
    let csv = error_of::<Text>(&dir.path().join("rows.csv"));
    assert!(csv.contains("unknown extension `csv`"), "{csv}");
}

#[test]
fn a_damaged_page_is_refused() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("rows.parquet");
    let row = Text {
        id: "a".to_owned(),
        text: "some text ".repeat(50),
        source: "s".to_owned(),
    };
    write(&path, &vec![row; 100]).expect("written");
    let mut bytes = fs::read(&path).expect("bytes");
    for byte in &mut bytes[4..200] {
        *byte ^= 0xff;
    }
    fs::write(&path, bytes).expect("damaged");
    let error = error_of::<Text>(&path);
    assert!(error.contains("rows.parquet: "), "{error}");
}

#[test]
fn a_bad_line_is_named_with_file_line_and_field() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("rows.jsonl");
    let good = r#"{"id":"a","messages":[{"role":"user","content":"x"}],"extra":1}"#;
    let cases = [
        (r#"{"id":"b"}"#, ":3:10: missing field `messages`"),
        (
            r#"{"id":"b","messages":[{"role":"user"}]}"#,
            "missing field `content`",
        ),
        (
            r#"{"id":"b","messages":"x"}"#,
            "invalid type: string \"x\", expected a sequence",
        ),
        (r#"{"id":"b","mess"#, "EOF while parsing"),
        (
            r#"{"id":"b","messages":[]}"#,
            "row 3 (id `b`): `messages` is empty",
        ),
        (
            r#"{"id":"b","messages":[{"role":"bot","content":"x"}]}"#,
            "`messages.role` is `bot`",
        ),
    ];
    for (bad, expected) in cases {
        fs::write(&path, format!("{good}\n\n{bad}\n")).expect("written");
        let error = error_of::<Prompt>(&path);
        assert!(error.contains(expected), "{error}");
        assert!(error.contains("rows.jsonl"), "{error}");
    }
}

#[test]
fn a_comparison_with_one_response_is_refused_by_its_id() {
    let dir = tempfile::tempdir().expect("folder");
    let mut rows = comparisons();
    rows[1].responses.truncate(1);
    let error = write(&dir.path().join("c.parquet"), &rows)
        .expect_err("refused")
        .to_string();
    assert!(
        error.contains("row 2 (id `b/0`): `responses` has 1 entry"),
        "{error}"
    );
    let path = dir.path().join("c.jsonl");
    fs::write(&path, serde_json::to_string(&rows[1]).expect("json")).expect("written");
    assert!(error_of::<Comparison>(&path).contains("a comparison needs 2 at least"));
}
