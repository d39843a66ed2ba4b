use super::*;
use crate::rows::Text;

fn tokenizer() -> Tokenizer {
    let texts = (0..50).map(|i| format!("some words and others {i}"));
    Tokenizer::train(texts, 270).expect("trained")
}

fn texts(count: usize) -> Vec<Text> {
    let text = |i: usize| match i % 3 {
        0 => format!("some words {i} naïve 🎉"),
        1 => format!("<|user|>others {i}<|endoftext|>"),
        _ => format!("and some {i} others  "),
    };
    let row = |i| Text {
        id: format!("d{i}"),
        text: text(i),
        source: "test".to_owned(),
    };
    (0..count).map(row).collect()
}

/// A folder whose training texts are `rows`.
fn dataset(rows: &[Text]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("folder");
    crate::write(&dir.path().join("text.parquet"), rows).expect("written");
    dir
}

#[test]
fn rows_are_the_stream_of_documents_with_one_eos_each() {
    let (rows, tokenizer) = (texts(2500), tokenizer());
    let dir = dataset(&rows);
    let context = 8;
    let packed = TokenRows::build(
        dir.path(),
        Split::Train,
        &tokenizer,
        context,
        &dir.path().join("cache"),
    );
    let packed = packed.expect("packed");
    let mut stream = Vec::new();
    for row in &rows {
        stream.extend(tokenizer.encode(&row.text).expect("encoded"));
        if stream.last() != Some(&tokenizer.eos_id()) {
            stream.push(tokenizer.eos_id());
        }
    }
    let expected: Vec<Vec<u32>> = stream.chunks_exact(context).map(<[u32]>::to_vec).collect();
    assert!(
        expected.len() > 2 * 1024,
        "several row groups: {}",
        expected.len()
    );
    assert_eq!(packed.num_rows(), expected.len());
    assert_eq!(packed.num_dropped(), stream.len() % context);
    assert_eq!(packed.window(), 1024);
    let all: Vec<usize> = (0..expected.len()).collect();
    assert_eq!(packed.rows(&all).expect("rows"), expected);
    let scattered = [expected.len() - 1, 0, 1500, 3, 1023, 1024];
    for (index, row) in scattered.iter().zip(packed.rows(&scattered).expect("rows")) {
        assert_eq!(row, expected[*index]);
    }
    assert_eq!(packed.bytes_of(&all).expect("bytes"), packed.num_bytes());
}

#[test]
fn bytes_are_those_of_the_text_behind_predicted_tokens() {
    let tokenizer = tokenizer();
    let text = "<|user|>naïve 🎉 words<|endoftext|>";
    let row = Text {
        id: "a".to_owned(),
        text: text.to_owned(),
        source: "test".to_owned(),
    };
    let dir = dataset(&[row]);
    let ids = tokenizer.encode(text).expect("encoded");
    let packed = TokenRows::build(
        dir.path(),
        Split::Train,
        &tokenizer,
        ids.len(),
        &dir.path().join("cache"),
    );
    // The first token, <|user|>, is never predicted, and special tokens have no text anyway.
    assert_eq!(
        packed.expect("packed").num_bytes(),
        "naïve 🎉 words".len() as u64
    );
}

#[test]
fn a_cache_is_used_again_and_another_text_gets_another() {
    let tokenizer = tokenizer();
    let dir = dataset(&texts(100));
    let cache = dir.path().join("cache");
    let files = || std::fs::read_dir(&cache).expect("folder").count();
    let build = |context| {
        TokenRows::build(dir.path(), Split::Train, &tokenizer, context, &cache).expect("packed")
    };
    let first = build(16);
    let modified = std::fs::metadata(&first.path)
        .and_then(|m| m.modified())
        .expect("time");
    let second = build(16);
    assert_eq!(
        std::fs::metadata(&second.path)
            .and_then(|m| m.modified())
            .expect("time"),
        modified
    );
    assert_eq!(files(), 1);
    build(17);
    assert_eq!(files(), 2);
    crate::write(&dir.path().join("text.parquet"), &texts(101)).expect("written");
    build(16);
    assert_eq!(files(), 3);
}

#[test]
fn texts_that_fill_no_row_are_refused_and_leave_no_cache() {
    let dir = dataset(&texts(2));
    let cache = dir.path().join("cache");
    let error = TokenRows::build(dir.path(), Split::Train, &tokenizer(), 500, &cache)
        .expect_err("too short")
        .to_string();
    assert!(
        error.contains("training texts do not fill one row of 500 tokens"),
        "{error}"
    );
    assert_eq!(std::fs::read_dir(&cache).expect("folder").count(), 0);
}

#[test]
fn a_truncated_cache_is_refused() {
    let dir = dataset(&texts(100));
    let cache = dir.path().join("cache");
    let build = || TokenRows::build(dir.path(), Split::Train, &tokenizer(), 16, &cache);
    let path = build().expect("packed").path.clone();
    let bytes = std::fs::read(&path).expect("read");
    std::fs::write(&path, &bytes[..bytes.len() / 2]).expect("cut");
    let error = build().expect_err("truncated").to_string();
    assert!(error.contains("not a readable Parquet file"), "{error}");
}
