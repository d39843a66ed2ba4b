//! Every iteration's rollouts in a Parquet file, a row an episode: enough for a stranger to
//! recompute rewards, advantages and returns.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Float64Array, Float64Builder, Int32Array, Int32Builder, ListBuilder, RecordBatch,
    StringArray, UInt64Array,
};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use recipe::plan::{EosRule, PpoPlan};

use crate::PpoError;
use crate::advantage::Moments;
use crate::rollout::Episode;

/// What holds for a whole file.
pub struct RecordContext<'a> {
    /// The stage's plan.
    pub plan: &'a PpoPlan,
    /// The KL coefficient that made the rewards.
    pub kl_coef: f64,
    /// Moments with which the advantages were whitened for the update.
    pub whitening: &'a Moments,
}

/// Writes the episodes of one iteration.
///
/// # Errors
/// Where the file cannot be written.
pub fn write_rollouts(
    path: &Path,
    episodes: &[Episode],
    context: &RecordContext,
) -> Result<(), PpoError> {
    let batch = to_batch(episodes)?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_key_value_metadata(Some(metadata(context)))
        .build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties))?;
    writer.write(&batch)?;
    writer.close()?;
    runtime::files::write_bytes(path, &bytes)?;
    Ok(())
}

fn metadata(context: &RecordContext) -> Vec<KeyValue> {
    let eos_rule = match context.plan.eos_rule {
        EosRule::Off => "none".to_owned(),
        EosRule::Replace { score } => format!("score of a response without EOS := {score}"),
        EosRule::Subtract { penalty } => format!("score of a response without EOS -= {penalty}"),
    };
    let entries = [
        ("kl_coef", context.kl_coef.to_string()),
        ("gamma", context.plan.gamma.to_string()),
        ("lambda", context.plan.lambda.to_string()),
        ("eos_rule", eos_rule),
        ("whitening_mean", context.whitening.mean.to_string()),
        (
            "whitening_deviation",
            context.whitening.deviation.to_string(),
        ),
        ("whitened", context.plan.whiten_advantages.to_string()),
    ];
    entries
        .into_iter()
        .map(|(key, value)| KeyValue::new(key.to_owned(), value))
        .collect()
}

fn to_batch(episodes: &[Episode]) -> Result<RecordBatch, PpoError> {
    let strings = |f: fn(&Episode) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(episodes.iter().map(f)))
    };
    let numbers = |f: fn(&Episode) -> f64| -> ArrayRef {
        Arc::new(Float64Array::from_iter_values(episodes.iter().map(f)))
    };
    let index = episodes.iter().map(|e| e.score_index as i32);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", strings(|e| &e.id)),
        (
            "episode",
            Arc::new(UInt64Array::from_iter_values(
                episodes.iter().map(|e| e.episode),
            )),
        ),
        ("prompt_ids", token_lists(episodes, |e| &e.prompt_ids)),
        ("response_ids", token_lists(episodes, |e| &e.response_ids)),
        ("prompt_text", strings(|e| &e.prompt_text)),
        ("response_text", strings(|e| &e.response_text)),
        (
            "finish_reason",
            strings(|e| if e.has_eos { "stop" } else { "length" }),
        ),
        ("score_raw", numbers(|e| e.score_raw)),
        ("score", numbers(|e| e.score)),
        ("score_index", Arc::new(Int32Array::from_iter_values(index))),
        ("logprobs", number_lists(episodes, |e| &e.logprobs)),
        (
            "reference_logprobs",
            number_lists(episodes, |e| &e.reference_logprobs),
        ),
        ("values", number_lists(episodes, |e| &e.values)),
        ("rewards", number_lists(episodes, |e| &e.rewards)),
        ("advantages", number_lists(episodes, |e| &e.advantages)),
        ("returns", number_lists(episodes, |e| &e.returns)),
    ];
    Ok(RecordBatch::try_from_iter(columns)?)
}

fn token_lists(episodes: &[Episode], f: fn(&Episode) -> &[u32]) -> ArrayRef {
    let mut builder = ListBuilder::new(Int32Builder::new());
    for episode in episodes {
        builder.append_value(f(episode).iter().map(|id| Some(*id as i32)));
    }
    Arc::new(builder.finish())
}

fn number_lists(episodes: &[Episode], f: fn(&Episode) -> &[f64]) -> ArrayRef {
    let mut builder = ListBuilder::new(Float64Builder::new());
    for episode in episodes {
        builder.append_value(f(episode).iter().map(|x| Some(*x)));
    }
    Arc::new(builder.finish())
}
