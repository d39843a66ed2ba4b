//! `rlhf model`: the named sizes; folders written again.

use recipe::numbers::grouped;
use recipe::request::ConvertRequest;
use recipe::sizes;

use super::{check_adapter, check_out, is_gguf, model_folder, print, relay};
use crate::cli::{ConvertArgs, MergeArgs};
use crate::failure::Outcome;
use crate::values::DtypeArg;

/// Lists the named sizes.
pub fn list_sizes() {
    // A reader that has seen enough (`| head`) is no failure.
    let _ = print(table().trim_end());
}

/// Checks the arguments of `rlhf model convert` and puts the request to the worker.
///
/// # Errors
/// A model that is not there, a folder that is, no libtorch, or what the worker says.
pub fn convert(args: &ConvertArgs) -> Outcome {
    check_out(&args.out)?;
    let model = if is_gguf(&args.model) {
        args.model.clone()
    } else {
        model_folder(&args.model)?
    };
    let request = ConvertRequest {
        model,
        adapter: None,
        out: args.out.clone(),
        dtype: args.dtype.map(DtypeArg::resolve),
        shard_bytes: args.shard_size,
    };
    relay("convert", &request)
}

/// Checks the arguments of `rlhf model merge` and puts the request to the worker.
///
/// # Errors
/// As [`convert`], and an adapter that is not there.
pub fn merge(args: &MergeArgs) -> Outcome {
    let model = model_folder(&args.model)?;
    check_adapter(Some(&args.adapter))?;
    check_out(&args.out)?;
    let request = ConvertRequest {
        model,
        adapter: Some(args.adapter.clone()),
        out: args.out.clone(),
        dtype: args.dtype.map(DtypeArg::resolve),
        shard_bytes: args.shard_size,
    };
    relay("convert", &request)
}

/// A row for each named size; parameters are those of the language model, tied embeddings counted once.
fn table() -> String {
    let header = [
        "size",
        "family",
        "parameters",
        "layers",
        "width",
        "heads",
        "kv heads",
        "MLP",
        "context",
        "vocabulary",
    ];
    let mut rows = vec![header.map(str::to_owned)];
    for name in sizes::names() {
        let Some(shape) = sizes::named(name) else {
            unreachable!("every name has its size")
        };
        rows.push([
            name.to_owned(),
            shape.family.model_type().to_owned(),
            grouped(shape.num_parameters()),
            shape.layers.to_string(),
            shape.width.to_string(),
            shape.heads.to_string(),
            shape.kv_heads.to_string(),
            shape.mlp_width.to_string(),
            shape.max_positions.to_string(),
            shape.vocab_size.to_string(),
        ]);
    }
    aligned(&rows)
}

/// Columns as wide as their widest cell: words to the left, numbers to the right.
pub(super) fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cell = |column: usize| match column {
            0 | 1 => format!("{:<1$}", row[column], widths[column]),
            _ => format!("{:>1$}", row[column], widths[column]),
        };
        (0..N).map(cell).collect::<Vec<_>>().join("  ") + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_has_a_row_with_its_parameters() {
        let table = table();
        assert_eq!(table.lines().count(), sizes::names().len() + 1);
        let row = table.lines().find(|line| line.starts_with("gpt2-124m "));
        let cells: Vec<&str> = row.unwrap_or_default().split_whitespace().collect();
        let expected = [
            "gpt2-124m",
            "gpt2",
            "124,439,808",
            "12",
            "768",
            "12",
            "12",
            "3072",
            "1024",
            "50257",
        ];
        assert_eq!(cells, expected);
    }
}
