//! Loss, accuracy and calibration on held-out prompts.

use datasets::collate::ComparisonExample;
use model::Model;
use runtime::metrics::Metrics;
use tch::{Tensor, no_grad};
use trainer::{Ranks, TrainerError};

use crate::loss::{PairIndex, accuracy, expected_calibration_error, kwise_loss, margins};
use crate::run::{last_token_scores, longest};

/// Scores all held-out prompts, each rank its share; reports under `loss/heldout`, `accuracy/heldout`, `calibration/ece`.
pub(crate) fn evaluate(
    model: &Model,
    examples: &[ComparisonExample],
    (pad_id, micro_batch): (u32, usize),
    ranks: &Ranks,
    metrics: &mut Metrics,
) -> Result<f64, TrainerError> {
    let (mut loss, mut all_margins) = ([0.0], Vec::new());
    let mut examples: Vec<&ComparisonExample> = examples.iter().collect();
    examples.sort_by_key(|example| longest(example));
    let _whole = model.whole()?;
    for micro in ranks.share(&examples).chunks(micro_batch) {
        let pairs = PairIndex::new(micro.iter().map(|e| (e.responses.len(), &e.pairs[..])));
        no_grad(|| -> Result<(), TrainerError> {
            let hidden = |input: &_| Ok(model.hidden(input));
            let scores_n = last_token_scores(model, micro, pad_id, hidden)?;
            loss[0] += kwise_loss(&scores_n, &pairs).double_value(&[]);
            all_margins.extend(to_vec(&margins(&scores_n, &pairs)));
            Ok(())
        })?;
    }
    ranks.sum(&mut loss)?;
    let loss = loss[0] / examples.len() as f64;
    let all_margins = ranks.exchange(all_margins)?.concat();
    metrics.insert("loss/heldout", loss);
    metrics.insert("accuracy/heldout", accuracy(&all_margins));
    metrics.insert("calibration/ece", expected_calibration_error(&all_margins));
    Ok(loss)
}

/// The numbers of a one-dimensional tensor.
pub(crate) fn to_vec(x_n: &Tensor) -> Vec<f64> {
    let x_n = x_n
        .detach()
        .to_kind(tch::Kind::Double)
        .to_device(tch::Device::Cpu);
    Vec::try_from(x_n).unwrap_or_default()
}
