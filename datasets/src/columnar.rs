//! Rows to Arrow columns and back, by the schemas of the contracts.
//!
//! Reading is lenient where foreign writers differ (large strings, large lists, 64-bit integers,
//! unknown columns) and strict where a schema says something (missing columns, nulls).

use std::path::{Path, PathBuf};

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::{CastOptions, cast, cast_with_options};
use arrow::datatypes::{DataType, Float32Type, Int32Type};
use arrow::error::ArrowError;

use crate::error::DataError;
use crate::rows::Message;

/// Conversion between rows and columns; implemented for the row types of this crate alone.
pub trait Columnar: Sized {
    /// Names of the top-level columns, optional ones included.
    const COLUMNS: &'static [&'static str];

    /// The rows as columns.
    fn encode(rows: &[Self]) -> Result<RecordBatch, ArrowError>;

    /// The columns as rows.
    fn decode(columns: &Columns) -> Result<Vec<Self>, DataError>;
}

/// Named columns of one length, from a file.
pub struct Columns {
    path: PathBuf,
    kind: &'static str,
    /// `messages.` within a nested column.
    prefix: String,
    pub(crate) num_rows: usize,
    arrays: Vec<(String, ArrayRef)>,
}

impl Columns {
    /// The columns of a batch that was read from `path` as rows of `kind`.
    pub fn of(path: &Path, kind: &'static str, batch: &RecordBatch) -> Self {
        let schema = batch.schema();
        let names = schema.fields().iter().map(|field| field.name().clone());
        Self {
            path: path.to_owned(),
            kind,
            prefix: String::new(),
            num_rows: batch.num_rows(),
            arrays: names.zip(batch.columns().iter().cloned()).collect(),
        }
    }

    pub(crate) fn optional(&self, name: &str) -> Option<&ArrayRef> {
        self.arrays
            .iter()
            .find(|(found, _)| found == name)
            .map(|(_, array)| array)
    }

    fn required(&self, name: &str) -> Result<&ArrayRef, DataError> {
        self.optional(name).ok_or_else(|| DataError::Column {
            path: self.path.clone(),
            column: format!("{}{name}", self.prefix),
            kind: self.kind,
            found: self
                .arrays
                .iter()
                .map(|(found, _)| found.as_str())
                .collect::<Vec<_>>()
                .join(", "),
        })
    }

    fn wrong_type(&self, name: &str, expected: &'static str, array: &ArrayRef) -> DataError {
        DataError::ColumnType {
            path: self.path.clone(),
            column: format!("{}{name}", self.prefix),
            expected,
            found: array.data_type().to_string(),
        }
    }

    fn null(&self, name: &str, index: usize) -> DataError {
        DataError::Null {
            path: self.path.clone(),
            column: format!("{}{name}", self.prefix),
            index,
        }
    }

    fn arrow(&self, source: ArrowError) -> DataError {
        DataError::Arrow {
            path: self.path.clone(),
            source,
        }
    }

    fn strings_of(&self, name: &str, array: &ArrayRef) -> Result<Vec<Option<String>>, DataError> {
        let is_text = |kind: &DataType| {
            matches!(
                kind,
                DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null
            )
        };
        let known = match array.data_type() {
            DataType::Dictionary(_, values) => is_text(values),
            other => is_text(other),
        };
        if !known {
            return Err(self.wrong_type(name, "string", array));
        }
        let cast = cast(array, &DataType::Utf8).map_err(|e| self.arrow(e))?;
        Ok(cast
            .as_string::<i32>()
            .iter()
            .map(|value| value.map(str::to_owned))
            .collect())
    }

    /// A string column without nulls.
    pub(crate) fn strings(&self, name: &str) -> Result<Vec<String>, DataError> {
        let values = self.strings_of(name, self.required(name)?)?;
        let filled = values.into_iter().enumerate();
        filled
            .map(|(i, value)| value.ok_or_else(|| self.null(name, i)))
            .collect()
    }

    /// A string column that may be absent or hold nulls.
    pub(crate) fn maybe_strings(&self, name: &str) -> Result<Vec<Option<String>>, DataError> {
        match self.optional(name) {
            Some(array) => self.strings_of(name, array),
            None => Ok(vec![None; self.num_rows]),
        }
    }

    fn integers_of(&self, name: &str, array: &ArrayRef) -> Result<Vec<Option<i32>>, DataError> {
        if !array.data_type().is_integer() && *array.data_type() != DataType::Null {
            return Err(self.wrong_type(name, "int32", array));
        }
        let strict = CastOptions {
            safe: false,
            ..CastOptions::default()
        };
        let cast =
            cast_with_options(array, &DataType::Int32, &strict).map_err(|e| self.arrow(e))?;
        Ok(cast.as_primitive::<Int32Type>().iter().collect())
    }

    /// A column of 32-bit integers without nulls.
    pub(crate) fn integers(&self, name: &str) -> Result<Vec<i32>, DataError> {
        let values = self.integers_of(name, self.required(name)?)?;
        let filled = values.into_iter().enumerate();
        filled
            .map(|(i, value)| value.ok_or_else(|| self.null(name, i)))
            .collect()
    }

    /// A column of 32-bit integers that may be absent or hold nulls.
    pub(crate) fn maybe_integers(&self, name: &str) -> Result<Vec<Option<i32>>, DataError> {
        match self.optional(name) {
            Some(array) => self.integers_of(name, array),
            None => Ok(vec![None; self.num_rows]),
        }
    }

    /// A column of 32-bit floats that may be absent or hold nulls.
    pub(crate) fn maybe_floats(&self, name: &str) -> Result<Vec<Option<f32>>, DataError> {
        let Some(array) = self.optional(name) else {
            return Ok(vec![None; self.num_rows]);
        };
        if !array.data_type().is_numeric() && *array.data_type() != DataType::Null {
            return Err(self.wrong_type(name, "float", array));
        }
        let cast = cast(array, &DataType::Float32).map_err(|e| self.arrow(e))?;
        Ok(cast.as_primitive::<Float32Type>().iter().collect())
    }

    /// A column of lists of structs: the structs' columns, and each row's number of them.
    fn nested(&self, name: &str) -> Result<(Columns, Vec<Option<usize>>), DataError> {
        let array = self.required(name)?;
        let expected = "list of structs";
        let (DataType::List(field)
        | DataType::LargeList(field)
        | DataType::FixedSizeList(field, _)) = array.data_type()
        else {
            return Err(self.wrong_type(name, expected, array));
        };
        let lists = cast(array, &DataType::List(field.clone())).map_err(|e| self.arrow(e))?;
        let lists = lists.as_list::<i32>();
        // Only the part of the values that this batch's lists span.
        let offsets = lists.value_offsets();
        let (start, end) = (offsets[0] as usize, offsets[offsets.len() - 1] as usize);
        let values = lists.values().slice(start, end - start);
        let Some(structs) = values.as_struct_opt() else {
            return Err(self.wrong_type(name, expected, array));
        };
        if let Some(index) = (0..structs.len()).find(|&i| structs.is_null(i)) {
            return Err(self.null(name, index));
        }
        let lengths = (0..lists.len())
            .map(|i| (!lists.is_null(i)).then(|| lists.value_length(i) as usize))
            .collect();
        let names = structs.fields().iter().map(|field| field.name().clone());
        let inner = Columns {
            path: self.path.clone(),
            kind: self.kind,
            prefix: format!("{}{name}.", self.prefix),
            num_rows: structs.len(),
            arrays: names.zip(structs.columns().iter().cloned()).collect(),
        };
        Ok((inner, lengths))
    }

    /// A column of lists, none of them null, whose flattened items `decode` makes.
    pub(crate) fn lists<T>(
        &self,
        name: &str,
        decode: impl FnOnce(&Columns) -> Result<Vec<T>, DataError>,
    ) -> Result<Vec<Vec<T>>, DataError> {
        let lists = self.maybe_lists(name, decode)?.into_iter().enumerate();
        lists
            .map(|(i, list)| list.ok_or_else(|| self.null(name, i)))
            .collect()
    }

    pub(crate) fn maybe_lists<T>(
        &self,
        name: &str,
        decode: impl FnOnce(&Columns) -> Result<Vec<T>, DataError>,
    ) -> Result<Vec<Option<Vec<T>>>, DataError> {
        let (inner, lengths) = self.nested(name)?;
        let mut items = decode(&inner)?.into_iter();
        let take = |length: Option<usize>| length.map(|n| items.by_ref().take(n).collect());
        Ok(lengths.into_iter().map(take).collect())
    }

    pub(crate) fn messages(&self, name: &str) -> Result<Vec<Vec<Message>>, DataError> {
        self.lists(name, |inner| {
            let contents = inner.strings("content")?;
            let pairs = inner.strings("role")?.into_iter().zip(contents);
            Ok(pairs
                .map(|(role, content)| Message { role, content })
                .collect())
        })
    }
}
