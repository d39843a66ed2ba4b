//! Rows of any schema, as JSON objects: what `score --data` and `generate --data` read.

use std::io::BufRead;
use std::path::Path;

use arrow::json::LineDelimitedWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Map, Value};

use crate::error::DataError;
use crate::files::open;

/// Every row of a `.jsonl` or `.parquet` file.
///
/// # Errors
/// A file that is missing, malformed or empty, or of another extension.
pub fn json_rows(path: &Path) -> Result<Vec<Map<String, Value>>, DataError> {
    let lines = match path.extension().and_then(|extension| extension.to_str()) {
        Some("parquet") => parquet_lines(path)?,
        Some("jsonl") => {
            let io = |source| DataError::Io {
                path: path.to_owned(),
                source,
            };
            std::io::read_to_string(open(path)?)
                .map_err(io)?
                .into_bytes()
        }
        other => {
            let extension = other.unwrap_or_default().to_owned();
            return Err(DataError::Extension {
                path: path.to_owned(),
                extension,
            });
        }
    };
    let mut rows = Vec::new();
    for (index, line) in lines.lines().map_while(Result::ok).enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        rows.push(
            serde_json::from_str(&line).map_err(|error| DataError::Line {
                path: path.to_owned(),
                line: index + 1,
                column: error.column(),
                reason: error.to_string(),
                fields: "`input_ids`, `text`, `prompt` (and `completion`) or `messages`",
            })?,
        );
    }
    if rows.is_empty() {
        return Err(DataError::Empty {
            path: path.to_owned(),
        });
    }
    Ok(rows)
}

fn parquet_lines(path: &Path) -> Result<Vec<u8>, DataError> {
    let broken = |source| DataError::Parquet {
        path: path.to_owned(),
        source,
    };
    let arrow = |source| DataError::Arrow {
        path: path.to_owned(),
        source,
    };
    let builder = ParquetRecordBatchReaderBuilder::try_new(open(path)?).map_err(broken)?;
    let mut writer = LineDelimitedWriter::new(Vec::new());
    for batch in builder.build().map_err(broken)? {
        writer.write(&batch.map_err(arrow)?).map_err(arrow)?;
    }
    writer.finish().map_err(arrow)?;
    Ok(writer.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Message, Prompt, write};

    #[test]
    fn both_formats_give_the_same_objects() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let messages = vec![Message::new("user", "hi")];
        let parquet = folder.path().join("prompts.parquet");
        write(
            &parquet,
            &[Prompt {
                id: "a".to_owned(),
                messages,
            }],
        )?;
        let lines = folder.path().join("prompts.jsonl");
        std::fs::write(
            &lines,
            r#"{"id":"a","messages":[{"role":"user","content":"hi"}]}"#,
        )?;
        assert_eq!(json_rows(&parquet)?, json_rows(&lines)?);
        Ok(())
    }

    #[test]
    fn a_torn_line_is_named() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("x.jsonl");
        std::fs::write(&path, "{\"text\":\"a\"}\n{\"text\":")?;
        let message = json_rows(&path).expect_err("torn").to_string();
        assert!(message.contains("x.jsonl:2:"), "{message}");
        Ok(())
    }
}
