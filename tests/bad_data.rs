//! Data that cannot be used is refused before anything starts, with exit code 2 and an error that
//! names file, row or column, and remedy.

use std::fs::{self, File};
use std::path::Path;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use datasets::{Comparison, Demonstration, Message, Response, Row};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::properties::WriterProperties;
use serde_json::json;

use crate::bad_input::Case;
use crate::support::Outcome;

/// A valid comparison per number.
fn comparisons(num: usize) -> Vec<Comparison> {
    let response = |content: &str, rank| Response {
        content: content.to_owned(),
        rank: Some(rank),
        rating: None,
        model: None,
    };
    let comparison = |i| Comparison {
        id: format!("c{i}/0"),
        prompt: vec![Message::new("user", format!("question {i}"))],
        responses: vec![response("good", 1), response("bad", 2)],
        labeler: None,
        pairs: None,
    };
    (0..num).map(comparison).collect()
}

fn demonstrations(num: usize) -> Vec<Demonstration> {
    let messages = |i| {
        vec![
            Message::new("user", format!("{i}?")),
            Message::new("assistant", "!"),
        ]
    };
    (0..num)
        .map(|i| Demonstration {
            id: format!("d{i}/0"),
            messages: messages(i),
        })
        .collect()
}

/// Rewrites a Parquet file with other rows or columns, under the same file metadata.
fn rewrite(path: &Path, change: impl Fn(&RecordBatch) -> Outcome<RecordBatch>) -> Outcome {
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path)?)?;
    let entries = builder
        .metadata()
        .file_metadata()
        .key_value_metadata()
        .cloned();
    let entries = entries.map(|all| {
        all.into_iter()
            .filter(|e| e.key != "ARROW:schema")
            .collect()
    });
    let schema = builder.schema().clone();
    let batches = builder.build()?.collect::<Result<Vec<_>, _>>()?;
    let changed = change(&concat_batches(&schema, &batches)?)?;
    let properties = WriterProperties::builder()
        .set_key_value_metadata(entries)
        .build();
    let mut writer = ArrowWriter::try_new(File::create(path)?, changed.schema(), Some(properties))?;
    writer.write(&changed)?;
    writer.close()?;
    Ok(())
}

fn without_column(batch: &RecordBatch, name: &str) -> Outcome<RecordBatch> {
    let gone = batch.schema().index_of(name)?;
    let kept: Vec<usize> = (0..batch.num_columns()).filter(|i| *i != gone).collect();
    Ok(batch.project(&kept)?)
}

/// The tiny pipeline with data from a Parquet file that is damaged somehow.
fn refuse_parquet<R: Row>(
    (stage, line): (&str, &str),
    rows: &[R],
    damage: impl Fn(&Path) -> Outcome,
    words: &[&str],
) -> Outcome {
    let mut case = Case::tiny()?;
    case.replace(stage, line, r#"data = "path:data.parquet""#);
    let path = case.path("data.parquet");
    datasets::write(&path, rows)?;
    damage(&path)?;
    let said = case.is_refused(&[&format!("stages.{stage}.data"), &path.to_string_lossy()]);
    said.names(words);
    Ok(())
}

const SFT: (&str, &str) = ("sft", r#"data = "stage:corpus""#);
const REWARD: (&str, &str) = ("reward", r#"data = "stage:comparisons""#);

#[test]
fn a_parquet_file_without_a_column() -> Outcome {
    let drop_column =
        |name: &'static str| move |path: &Path| rewrite(path, |rows| without_column(rows, name));
    let words = |column: &'static str| [column, "is missing"];
    refuse_parquet(
        SFT,
        &demonstrations(200),
        drop_column("messages"),
        &words("`messages`"),
    )?;
    refuse_parquet(
        REWARD,
        &comparisons(200),
        drop_column("prompt"),
        &words("`prompt`"),
    )?;
    refuse_parquet(
        REWARD,
        &comparisons(200),
        drop_column("responses"),
        &words("`responses`"),
    )
}

#[test]
fn a_parquet_file_without_rows() -> Outcome {
    let empty = |path: &Path| rewrite(path, |rows| Ok(rows.slice(0, 0)));
    refuse_parquet(SFT, &demonstrations(200), empty, &["has no rows"])?;
    let no_bytes = |path: &Path| Ok(fs::write(path, [])?);
    refuse_parquet(
        SFT,
        &demonstrations(200),
        no_bytes,
        &["not a readable Parquet file"],
    )
}

#[test]
fn a_parquet_file_that_is_truncated() -> Outcome {
    for share in [0.3, 0.95] {
        let cut = move |path: &Path| {
            let bytes = fs::read(path)?;
            Ok(fs::write(
                path,
                &bytes[..(bytes.len() as f64 * share) as usize],
            )?)
        };
        let words = ["not a readable Parquet file", "truncated"];
        refuse_parquet(REWARD, &comparisons(200), cut, &words)?;
    }
    Ok(())
}

#[test]
fn a_comparison_with_one_response() -> Outcome {
    let mut case = Case::tiny()?;
    case.replace(
        "reward",
        r#"data = "stage:comparisons""#,
        r#"data = "path:data.jsonl""#,
    );
    let row = |i: usize, responses: &[&str]| {
        let rank = |(rank, content): (usize, &&str)| json!({"content": content, "rank": rank + 1});
        let responses: Vec<_> = responses.iter().enumerate().map(rank).collect();
        let prompt = [json!({"role": "user", "content": "hi"})];
        json!({"id": format!("c{i}"), "prompt": prompt, "responses": responses}).to_string()
    };
    let mut lines: Vec<String> = (0..100).map(|i| row(i, &["good", "bad"])).collect();
    lines[41] = row(41, &["alone"]);
    fs::write(case.path("data.jsonl"), lines.join("\n"))?;
    let path = case.path("data.jsonl");
    case.is_refused(&[&path.to_string_lossy(), "row 42", "`c41`", "response"]);

    lines[41] = row(41, &["good", "bad"]).replace("\"rank\"", "\"rnak\"");
    lines[17] = "{\"id\": \"c17\", \"prompt\": []".to_owned();
    fs::write(case.path("data.jsonl"), lines.join("\n"))?;
    case.is_refused(&[&format!("{}:18:", path.display())]);
    Ok(())
}
