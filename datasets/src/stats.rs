//! Statistics and joins over whole datasets, by polars.

use polars::prelude::{
    Column, DataFrame, DataFrameJoinOps, JoinArgs, JoinType, NamedFrom, PolarsResult,
    QuantileMethod, Series, UInt32Chunked,
};
use serde::{Deserialize, Serialize};

use crate::error::DataError;

/// Distribution of the lengths in a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Lengths {
    /// Examples.
    pub count: u64,
    /// Sum of the lengths.
    pub total: u64,
    /// Mean length.
    pub mean: f64,
    /// Median.
    pub p50: u64,
    /// 90 % are at most this long.
    pub p90: u64,
    /// 99 % are at most this long.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

impl Lengths {
    /// The distribution of `lengths`, in whatever unit they are; all zero for none.
    ///
    /// # Errors
    /// When polars fails.
    pub fn of(lengths: &[usize]) -> Result<Self, DataError> {
        let values: Vec<u64> = lengths.iter().map(|&length| length as u64).collect();
        let series = Series::new("length".into(), values);
        let quantile = |q: f64| -> PolarsResult<u64> {
            let value = series.quantile_reduce(q, QuantileMethod::Higher)?;
            Ok(value.value().extract::<f64>().unwrap_or_default() as u64)
        };
        Ok(Self {
            count: lengths.len() as u64,
            total: series.sum()?,
            mean: series.mean().unwrap_or_default(),
            p50: quantile(0.5)?,
            p90: quantile(0.9)?,
            p99: quantile(0.99)?,
            max: series.max()?.unwrap_or_default(),
        })
    }
}

/// Indices of the `left` keys that do not occur in `right`, ascending (an anti-join).
///
/// # Errors
/// When polars fails.
pub(crate) fn absent_from(left: &[String], right: &[String]) -> Result<Vec<usize>, DataError> {
    let rows = Series::new("row".into(), (0..left.len() as u32).collect::<Vec<_>>());
    let keys = Series::new("key".into(), left);
    let left = DataFrame::new(left.len(), vec![Column::from(keys), Column::from(rows)])?;
    let keys = Series::new("key".into(), right);
    let right = DataFrame::new(right.len(), vec![Column::from(keys)])?;
    let kept = left.join(
        &right,
        ["key"],
        ["key"],
        JoinArgs::new(JoinType::Anti),
        None,
    )?;
    let rows: &UInt32Chunked = kept.column("row")?.as_materialized_series().u32()?;
    let mut rows: Vec<usize> = rows.into_no_null_iter().map(|row| row as usize).collect();
    rows.sort_unstable();
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_counted() {
        let lengths = Lengths::of(&(1..=100).rev().collect::<Vec<_>>()).expect("statistics");
        assert_eq!(
            (lengths.count, lengths.total, lengths.max),
            (100, 5050, 100)
        );
        assert_eq!((lengths.p50, lengths.p90, lengths.p99), (51, 91, 100));
        assert!((lengths.mean - 50.5).abs() < 1e-12);
        let none = Lengths::of(&[]).expect("statistics");
        assert_eq!((none.count, none.total, none.max, none.p99), (0, 0, 0, 0));
    }

    #[test]
    fn the_anti_join_keeps_what_the_other_side_lacks_in_order() {
        let keys = |words: &[&str]| words.iter().map(|&w| w.to_owned()).collect::<Vec<_>>();
        let left = keys(&["d", "a", "b", "d", "c", ""]);
        assert_eq!(
            absent_from(&left, &keys(&["a", "c", "x"])).expect("join"),
            [0, 2, 3, 5]
        );
        assert_eq!(absent_from(&left, &[]).expect("join"), [0, 1, 2, 3, 4, 5]);
        assert!(absent_from(&[], &left).expect("join").is_empty());
    }
}
