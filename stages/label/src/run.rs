//! The loop over parts of the prompts.

use std::path::PathBuf;

use datasets::collate::{PromptExample, prompt_examples};
use datasets::loader::Order;
use datasets::{Comparison, DatasetKind, Prompt, Response, Split, Tokenizer, dataset_file};
use generation::{Finish, Request, Sample, SamplingOptions};
use judge::GoldRule;
use model::{Checkpoint, Model};
use recipe::plan::{LabelPlan, Labeler};
use runtime::files::WholeFolder;
use runtime::metrics::Metrics;
use trainer::{Outcome, Progress, StageContext};

use crate::{LabelError, ranks};

/// Prompts per part: what a kill can cost.
const PART: usize = 256;

/// Samples and ranks; see the crate's documentation.
///
/// # Errors
/// [`LabelError`] says what failed.
pub fn run(ctx: &StageContext, plan: &LabelPlan) -> Result<Outcome, LabelError> {
    let Checkpoint {
        model, tokenizer, ..
    } = ctx.load_frozen(&plan.model, plan.quantize)?;
    let labelling = Labelling {
        ctx,
        plan,
        model,
        tokenizer,
    };
    let splits = [
        (Split::Train, "train", "num_prompts", plan.num_prompts),
        (Split::Heldout, "held-out", "num_heldout", plan.num_heldout),
    ];
    let total = (plan.num_prompts + plan.num_heldout) as u64;
    let mut log = Progress::open(ctx, (0, total))?;
    let mut done = 0;
    let mut outputs = Vec::new();
    for (split, name, key, wanted) in splits {
        let prompts = labelling.prompts(split, name, key, wanted)?;
        let mut comparisons = Vec::with_capacity(wanted);
        for (index, part) in prompts.chunks(PART).enumerate() {
            if ctx.asked_to_stop()? {
                return Ok(Outcome::Interrupted);
            }
            let first = (split_offset(split) + index * PART) as u64;
            let (rows, metrics) = labelling.part(name, index, first, part)?;
            comparisons.extend(rows);
            done += part.len() as u64;
            log.step(done, metrics)?;
        }
        outputs.push((split, comparisons));
    }
    if ctx.ranks.is_first() {
        write(ctx, outputs, total)?;
    }
    ctx.ranks.barrier()?;
    Ok(Outcome::Finished)
}

/// `final/`, of both splits' comparisons.
fn write(
    ctx: &StageContext,
    outputs: Vec<(Split, Vec<Comparison>)>,
    total: u64,
) -> Result<(), LabelError> {
    let folder = WholeFolder::create(&ctx.stage.final_dir())?;
    for (split, comparisons) in outputs {
        if !comparisons.is_empty() {
            let path = dataset_file(folder.path(), DatasetKind::Comparisons, split);
            datasets::write(&path, &comparisons)?;
        }
    }
    Ok(ctx.seal(folder, "dataset", total)?)
}

/// Held-out prompts draw their randomness from keys of their own.
fn split_offset(split: Split) -> usize {
    match split {
        Split::Train => 0,
        Split::Heldout => 1 << 40,
    }
}

struct Labelling<'a> {
    ctx: &'a StageContext,
    plan: &'a LabelPlan,
    model: Model,
    tokenizer: Tokenizer,
}

impl Labelling<'_> {
    fn prompts(
        &self,
        split: Split,
        name: &'static str,
        key: &'static str,
        wanted: usize,
    ) -> Result<Vec<PromptExample>, LabelError> {
        if wanted == 0 {
            return Ok(Vec::new());
        }
        let rows: Vec<Prompt> = datasets::load_split(&self.ctx.path(&self.plan.prompts), split)?;
        let sampling = &self.plan.sampling;
        let (examples, counts) = prompt_examples(
            &rows,
            &self.tokenizer,
            sampling.max_prompt_tokens,
            sampling.overlong,
        )?;
        tracing::info!(split = name, prompts = examples.len(), ?counts, "prompts");
        if examples.len() < wanted {
            let found = examples.len();
            return Err(LabelError::TooFewPrompts {
                split: name,
                found,
                wanted,
                key,
            });
        }
        let order = Order::new(
            self.ctx.seed,
            "label prompts",
            examples.len(),
            examples.len(),
        );
        Ok(order
            .batch(0, wanted)
            .into_iter()
            .map(|i| examples[i].clone())
            .collect())
    }

    /// One part: read where a killed run had finished it, else made and written.
    fn part(
        &self,
        split: &str,
        index: usize,
        first_prompt: u64,
        prompts: &[PromptExample],
    ) -> Result<(Vec<Comparison>, Metrics), LabelError> {
        let path = self.part_path(split, index);
        let started = std::time::Instant::now();
        let mut metrics = Metrics::new();
        let ranks = &self.ctx.ranks;
        if ranks.any(!path.exists())? {
            let (rows, means) = self.label(first_prompt, prompts)?;
            if ranks.is_first() {
                datasets::write(&path, &rows)?;
            }
            metrics = means;
            metrics.insert("time/sample", started.elapsed().as_secs_f64());
        }
        ranks.barrier()?;
        Ok((datasets::read(&path)?, metrics))
    }

    fn part_path(&self, split: &str, index: usize) -> PathBuf {
        self.ctx
            .stage
            .root()
            .join(format!("parts/{split}-{index:05}.parquet"))
    }

    fn label(
        &self,
        first_prompt: u64,
        prompts: &[PromptExample],
    ) -> Result<(Vec<Comparison>, Metrics), LabelError> {
        let k = self.plan.responses as u64;
        let ranks = &self.ctx.ranks;
        let numbered: Vec<_> = prompts.iter().zip(first_prompt..).collect();
        let own = ranks.share(&numbered);
        let requests: Vec<Request> = own
            .iter()
            .flat_map(|(prompt, p)| {
                let (prompt, p) = (*prompt, *p);
                (0..k).map(move |j| Request {
                    prompt_ids: prompt.ids.clone(),
                    episode: p * k + j,
                })
            })
            .collect();
        let samples = generation::generate(&self.model, &requests, &self.options())?;
        let mut rows = Vec::with_capacity(own.len());
        let mut gold_sum = 0.0;
        for ((prompt, _), samples) in own.iter().zip(samples.chunks(k as usize)) {
            let (row, gold) = self.compare(prompt, samples)?;
            rows.push(row);
            gold_sum += gold;
        }
        let stopped = samples.iter().filter(|s| s.finish == Finish::Stop).count();
        let tokens: usize = samples.iter().map(|s| s.output_ids.len()).sum();
        let count = (prompts.len() * k as usize) as f64;
        let mut sums = [gold_sum, stopped as f64, tokens as f64];
        ranks.sum(&mut sums)?;
        let metrics = Metrics::from([
            ("objective/gold", sums[0] / count),
            ("objective/eos_rate", sums[1] / count),
            ("objective/length", sums[2] / count),
        ]);
        Ok((ranks.gather(rows)?, metrics))
    }

    fn options(&self) -> SamplingOptions {
        let sampling = &self.plan.sampling;
        SamplingOptions {
            max_new_tokens: sampling.max_new_tokens,
            temperature: sampling.temperature,
            seed: self.ctx.seed,
            purpose: "label",
            eos_ids: self.tokenizer.stop_ids().to_vec(),
            max_batch: self.ctx.plan.execution.sample_batch,
            ..SamplingOptions::default()
        }
    }

    fn compare(
        &self,
        prompt: &PromptExample,
        samples: &[Sample],
    ) -> Result<(Comparison, f64), LabelError> {
        let Labeler::Gold { rule } = self.plan.labeler;
        let texts = samples.iter().map(|s| self.tokenizer.decode(&s.output_ids));
        let texts = texts.collect::<Result<Vec<String>, _>>()?;
        let scores: Vec<f64> = texts
            .iter()
            .map(|text| GoldRule::from(rule).score(text))
            .collect();
        let gold = scores.iter().sum();
        let ranked = texts.into_iter().zip(ranks(&scores)).zip(&scores);
        let responses = ranked
            .map(|((content, rank), score)| Response {
                content,
                rank: Some(rank),
                rating: Some(*score as f32),
                model: None,
            })
            .collect();
        let comparison = Comparison {
            id: prompt.id.clone(),
            prompt: prompt.messages.clone(),
            responses,
            labeler: Some(format!("gold:{rule:?}").to_lowercase()),
            pairs: None,
        };
        Ok((comparison, gold))
    }
}
