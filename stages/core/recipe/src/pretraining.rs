//! Reads what mixes pretraining text into later stages: `ptx` of ppo, `pretrain_share` of sft.

use datasets::DatasetKind;

use crate::model_table::fits;
use crate::plan::{MixPlan, PtxPlan};
use crate::reader::{Outcome, Range, Reader};
use crate::references::{Resolver, Wanted};
use crate::shape::ModelShape;

pub(crate) fn ptx(
    reader: &Reader<'_>,
    resolver: &Resolver<'_>,
    shape: &ModelShape,
) -> Outcome<Option<PtxPlan>> {
    let wanted = Wanted::Data(DatasetKind::Text);
    let Some(data) = resolver.source_opt(reader, "pretrain_data", wanted)? else {
        for key in ["ptx.coef", "ptx.sequences_per_episode", "ptx.context"] {
            let hint = "add pretrain_data = \"stage:NAME\", or leave ptx out";
            reader.refuse(key, "has no meaning without pretrain_data", hint)?;
        }
        return Ok(None);
    };
    let context = reader
        .count_opt("ptx.context", 2)?
        .unwrap_or(shape.max_positions);
    fits(reader, "ptx.context", context, shape)?;
    Ok(Some(PtxPlan {
        data,
        coef: reader.number("ptx.coef", Range::POSITIVE)?,
        sequences_per_episode: reader.count("ptx.sequences_per_episode", 1)?,
        context,
    }))
}

/// The share of pretraining text in sft's batches of `batch` rows.
pub(crate) fn mix(
    reader: &Reader<'_>,
    resolver: &Resolver<'_>,
    batch: usize,
) -> Outcome<Option<MixPlan>> {
    let wanted = Wanted::Data(DatasetKind::Text);
    let Some(data) = resolver.source_opt(reader, "pretrain_data", wanted)? else {
        let hint = "add pretrain_data = \"stage:NAME\", or leave pretrain_share out";
        reader.refuse(
            "pretrain_share",
            "has no meaning without pretrain_data",
            hint,
        )?;
        return Ok(None);
    };
    let share = reader.number("pretrain_share", Range::SHARE)?;
    let rows = (share * batch as f64).round() as usize;
    if rows == 0 || rows == batch {
        let what = if rows == 0 { "no text" } else { "nothing else" };
        let message =
            format!("must leave both kinds of rows in a batch of {batch}, {share} leaves {what}");
        return Err(reader.problem(
            "pretrain_share",
            message,
            "choose a larger batch or another share",
        ));
    }
    Ok(Some(MixPlan { data, share, rows }))
}
