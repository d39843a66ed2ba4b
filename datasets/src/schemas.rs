//! The columns of each kind of row.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, Float32Array, Int32Array, ListArray, RecordBatch, StringArray, StructArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use arrow::error::ArrowError;

use crate::columnar::{Columnar, Columns};
use crate::error::DataError;
use crate::rows::{Comparison, Demonstration, Message, Pair, Prompt, Response, Text};

/// A column to be written.
struct Column {
    field: Field,
    array: ArrayRef,
}

fn strings<'a>(name: &str, values: impl Iterator<Item = &'a str>) -> Column {
    let array = StringArray::from_iter_values(values);
    Column {
        field: Field::new(name, DataType::Utf8, false),
        array: Arc::new(array),
    }
}

fn maybe_strings<'a>(name: &str, values: impl Iterator<Item = Option<&'a str>>) -> Column {
    let array: StringArray = values.collect();
    Column {
        field: Field::new(name, DataType::Utf8, true),
        array: Arc::new(array),
    }
}

/// A column of lists of structs; `None` is a null list, its items are not in `columns`.
fn nested(
    name: &str,
    lengths: &[Option<usize>],
    columns: Vec<Column>,
) -> Result<Column, ArrowError> {
    let (fields, arrays): (Vec<Field>, Vec<ArrayRef>) = columns
        .into_iter()
        .map(|column| (column.field, column.array))
        .unzip();
    let structs = StructArray::try_new(Fields::from(fields), arrays, None)?;
    let item = Arc::new(Field::new("item", structs.data_type().clone(), false));
    let offsets = OffsetBuffer::from_lengths(lengths.iter().map(|length| length.unwrap_or(0)));
    let nullable = lengths.iter().any(Option::is_none);
    let nulls = nullable.then(|| lengths.iter().map(Option::is_some).collect::<NullBuffer>());
    let list = ListArray::try_new(item, offsets, Arc::new(structs), nulls)?;
    let field = Field::new(name, list.data_type().clone(), true);
    Ok(Column {
        field,
        array: Arc::new(list),
    })
}

fn batch(columns: Vec<Column>) -> Result<RecordBatch, ArrowError> {
    let (fields, arrays): (Vec<Field>, Vec<ArrayRef>) = columns
        .into_iter()
        .map(|column| (column.field, column.array))
        .unzip();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)
}

fn messages<'a>(
    name: &str,
    lists: impl Iterator<Item = &'a [Message]> + Clone,
) -> Result<Column, ArrowError> {
    let lengths: Vec<_> = lists.clone().map(|list| Some(list.len())).collect();
    let roles = strings("role", lists.clone().flatten().map(|m| m.role.as_str()));
    let contents = strings("content", lists.flatten().map(|m| m.content.as_str()));
    nested(name, &lengths, vec![roles, contents])
}

impl Columnar for Text {
    const COLUMNS: &'static [&'static str] = &["id", "text", "source"];

    fn encode(rows: &[Self]) -> Result<RecordBatch, ArrowError> {
        batch(vec![
            strings("id", rows.iter().map(|row| row.id.as_str())),
            strings("text", rows.iter().map(|row| row.text.as_str())),
            strings("source", rows.iter().map(|row| row.source.as_str())),
        ])
    }

    fn decode(columns: &Columns) -> Result<Vec<Self>, DataError> {
        let texts = columns.strings("text")?;
        let sources = columns.strings("source")?;
        let rows = columns.strings("id")?.into_iter().zip(texts).zip(sources);
        Ok(rows
            .map(|((id, text), source)| Self { id, text, source })
            .collect())
    }
}

impl Columnar for Demonstration {
    const COLUMNS: &'static [&'static str] = &["id", "messages"];

    fn encode(rows: &[Self]) -> Result<RecordBatch, ArrowError> {
        batch(vec![
            strings("id", rows.iter().map(|row| row.id.as_str())),
            messages("messages", rows.iter().map(|row| row.messages.as_slice()))?,
        ])
    }

    fn decode(columns: &Columns) -> Result<Vec<Self>, DataError> {
        let dialogues = columns.messages("messages")?;
        let rows = columns.strings("id")?.into_iter().zip(dialogues);
        Ok(rows.map(|(id, messages)| Self { id, messages }).collect())
    }
}

impl Columnar for Prompt {
    const COLUMNS: &'static [&'static str] = &["id", "messages"];

    fn encode(rows: &[Self]) -> Result<RecordBatch, ArrowError> {
        batch(vec![
            strings("id", rows.iter().map(|row| row.id.as_str())),
            messages("messages", rows.iter().map(|row| row.messages.as_slice()))?,
        ])
    }

    fn decode(columns: &Columns) -> Result<Vec<Self>, DataError> {
        let dialogues = columns.messages("messages")?;
        let rows = columns.strings("id")?.into_iter().zip(dialogues);
        Ok(rows.map(|(id, messages)| Self { id, messages }).collect())
    }
}

impl Columnar for Comparison {
    const COLUMNS: &'static [&'static str] = &["id", "prompt", "responses", "labeler", "pairs"];

    fn encode(rows: &[Self]) -> Result<RecordBatch, ArrowError> {
        batch(vec![
            strings("id", rows.iter().map(|row| row.id.as_str())),
            messages("prompt", rows.iter().map(|row| row.prompt.as_slice()))?,
            encode_responses(rows)?,
            maybe_strings("labeler", rows.iter().map(|row| row.labeler.as_deref())),
            encode_pairs(rows)?,
        ])
    }

    fn decode(columns: &Columns) -> Result<Vec<Self>, DataError> {
        let mut prompts = columns.messages("prompt")?.into_iter();
        let mut responses = columns.lists("responses", decode_responses)?.into_iter();
        let mut labelers = columns.maybe_strings("labeler")?.into_iter();
        let mut pairs = match columns.optional("pairs") {
            Some(array) if *array.data_type() != DataType::Null => {
                columns.maybe_lists("pairs", decode_pairs)?
            }
            _ => vec![None; columns.num_rows],
        }
        .into_iter();
        let ids = columns.strings("id")?.into_iter();
        let row = |id| {
            Some(Self {
                id,
                prompt: prompts.next()?,
                responses: responses.next()?,
                labeler: labelers.next()?,
                pairs: pairs.next()?,
            })
        };
        Ok(ids.map_while(row).collect())
    }
}

fn encode_responses(rows: &[Comparison]) -> Result<Column, ArrowError> {
    let lengths: Vec<_> = rows.iter().map(|row| Some(row.responses.len())).collect();
    let all = || rows.iter().flat_map(|row| &row.responses);
    let ranks: Int32Array = all().map(|r| r.rank).collect();
    let ratings: Float32Array = all().map(|r| r.rating).collect();
    let columns = vec![
        strings("content", all().map(|r| r.content.as_str())),
        Column {
            field: Field::new("rank", DataType::Int32, true),
            array: Arc::new(ranks),
        },
        Column {
            field: Field::new("rating", DataType::Float32, true),
            array: Arc::new(ratings),
        },
        maybe_strings("model", all().map(|r| r.model.as_deref())),
    ];
    nested("responses", &lengths, columns)
}

fn decode_responses(columns: &Columns) -> Result<Vec<Response>, DataError> {
    let mut ranks = columns.maybe_integers("rank")?.into_iter();
    let mut ratings = columns.maybe_floats("rating")?.into_iter();
    let mut models = columns.maybe_strings("model")?.into_iter();
    let response = |content| {
        let (rank, rating, model) = (ranks.next()?, ratings.next()?, models.next()?);
        Some(Response {
            content,
            rank,
            rating,
            model,
        })
    };
    Ok(columns
        .strings("content")?
        .into_iter()
        .map_while(response)
        .collect())
}

fn encode_pairs(rows: &[Comparison]) -> Result<Column, ArrowError> {
    let lengths: Vec<_> = rows
        .iter()
        .map(|row| row.pairs.as_ref().map(Vec::len))
        .collect();
    let all = || rows.iter().filter_map(|row| row.pairs.as_ref()).flatten();
    let better: Int32Array = all().map(|pair| Some(pair.better)).collect();
    let worse: Int32Array = all().map(|pair| Some(pair.worse)).collect();
    let columns = vec![
        Column {
            field: Field::new("better", DataType::Int32, false),
            array: Arc::new(better),
        },
        Column {
            field: Field::new("worse", DataType::Int32, false),
            array: Arc::new(worse),
        },
        maybe_strings("grade", all().map(|pair| pair.grade.as_deref())),
    ];
    nested("pairs", &lengths, columns)
}

fn decode_pairs(columns: &Columns) -> Result<Vec<Pair>, DataError> {
    let worse = columns.integers("worse")?;
    let grades = columns.maybe_strings("grade")?;
    let pairs = columns
        .integers("better")?
        .into_iter()
        .zip(worse)
        .zip(grades);
    Ok(pairs
        .map(|((better, worse), grade)| Pair {
            better,
            worse,
            grade,
        })
        .collect())
}
