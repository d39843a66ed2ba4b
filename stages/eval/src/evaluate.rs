//! What is measured of a model.

use datasets::Tokenizer;
use datasets::collate::PromptExample;
use generation::{Finish, Request, Sample, SamplingOptions};
use judge::{GoldRule, response_logprobs, text};
use model::Model;
use recipe::request::ModelReport;
use runtime::statistics::{mean, standard_error};
use trainer::{LmRow, Ranks, lm_evaluate};

use crate::EvalError;

/// Other prompts that each reply is tried with.
const OTHER_PROMPTS: usize = 4;

/// What every model is evaluated on, and against.
pub struct Evaluation<'a> {
    /// The tokenizer of all models.
    pub tokenizer: &'a Tokenizer,
    /// Prompts; one sample each.
    pub prompts: &'a [PromptExample],
    /// Rows of held-out pretraining text.
    pub heldout_text: &'a [LmRow],
    /// Judges fluency: the base model.
    pub base: &'a Model,
    /// KL is measured to this one: the SFT model.
    pub reference: &'a Model,
    /// The gold rule.
    pub gold: Option<GoldRule>,
    /// How replies are sampled.
    pub options: &'a SamplingOptions,
}

/// A model's replies.
pub struct Sampled {
    samples: Vec<Sample>,
    /// Their texts, in the order of the prompts.
    pub texts: Vec<String>,
}

/// Samples a reply to each prompt.
///
/// # Errors
/// Where sampling or decoding fails.
pub fn sample(evaluation: &Evaluation, model: &Model) -> Result<Sampled, EvalError> {
    let requests: Vec<Request> = evaluation
        .prompts
        .iter()
        .zip(0..)
        .map(|(prompt, episode)| Request {
            prompt_ids: prompt.ids.clone(),
            episode,
        })
        .collect();
    let samples = generation::generate(model, &requests, evaluation.options)?;
    let texts = samples
        .iter()
        .map(|s| evaluation.tokenizer.decode(&s.output_ids));
    let texts = texts.collect::<Result<_, _>>()?;
    Ok(Sampled { samples, texts })
}

/// Measures a model by its replies.
///
/// # Errors
/// Where a forward pass fails.
pub fn evaluate(
    evaluation: &Evaluation,
    model: &Model,
    sampled: &Sampled,
) -> Result<ModelReport, EvalError> {
    let samples = &sampled.samples;
    let count = samples.len() as f64;
    let tokens: usize = samples.iter().map(|s| s.output_ids.len()).sum();
    let stopped = samples.iter().filter(|s| s.finish == Finish::Stop).count();
    let gold = evaluation
        .gold
        .map(|rule| gold_scores(rule, &sampled.texts));
    let own: Vec<(&[u32], &[u32])> = pairs(evaluation, samples, 0);
    let sums = |model: &Model, pairs: &[(&[u32], &[u32])]| -> Vec<f64> {
        let batch = evaluation.options.max_batch;
        let temperature = evaluation.options.temperature;
        let rows = response_logprobs(
            model,
            pairs,
            evaluation.tokenizer.pad_id(),
            temperature,
            batch,
        );
        rows.iter().map(|row| row.iter().sum()).collect()
    };
    let reference = sums(evaluation.reference, &own);
    let base_own = sums(evaluation.base, &own);
    let kl = samples
        .iter()
        .zip(&reference)
        .map(|(s, r)| s.logprobs.iter().sum::<f64>() - r);
    let preferred = |shift: usize| {
        let base_other = sums(evaluation.base, &pairs(evaluation, samples, shift));
        let both = base_own.iter().zip(&base_other);
        both.filter(|(own, other)| own > other).count()
    };
    let preferred: usize = (1..=OTHER_PROMPTS).map(preferred).sum();
    let (pad_id, batch) = (evaluation.tokenizer.pad_id(), evaluation.options.max_batch);
    let pretraining_loss = match evaluation.heldout_text {
        [] => None,
        rows => Some(lm_evaluate(model, rows, pad_id, batch, &Ranks::alone())?.mean()),
    };
    Ok(ModelReport {
        samples: samples.len(),
        gold: gold.as_deref().map(mean),
        gold_se: gold.as_deref().map(standard_error),
        kl: kl.sum::<f64>() / count,
        eos_rate: stopped as f64 / count,
        length: tokens as f64 / count,
        distinct_2: text::distinct_2(&sampled.texts),
        repeated_trigrams: text::repeated_trigrams(&sampled.texts),
        most_frequent_share: text::most_frequent_share(&sampled.texts),
        base_perplexity: (-base_own.iter().sum::<f64>() / tokens as f64).exp(),
        true_prompt_preferred: preferred as f64 / (count * OTHER_PROMPTS as f64),
        pretraining_loss,
    })
}

/// Each reply with its own prompt (`shift` 0) or with that of the reply `shift` places on.
fn pairs<'a>(
    evaluation: &'a Evaluation,
    samples: &'a [Sample],
    shift: usize,
) -> Vec<(&'a [u32], &'a [u32])> {
    let prompts = evaluation.prompts.iter().cycle().skip(shift);
    let replies = samples.iter().map(|sample| &sample.output_ids[..]);
    prompts.map(|prompt| &prompt.ids[..]).zip(replies).collect()
}

fn gold_scores(rule: GoldRule, texts: &[String]) -> Vec<f64> {
    texts.iter().map(|text| rule.score(text)).collect()
}
