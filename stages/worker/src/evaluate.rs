//! `rlhf eval`: base, SFT and PPO on the same held-out prompts, with the same random numbers.

use anyhow::{Result, bail};
use datasets::collate::{PromptExample, prompt_examples};
use datasets::loader::Order;
use datasets::pack::TokenRows;
use datasets::{Prompt, Split, Tokenizer};
use eval::Evaluation;
use generation::SamplingOptions;
use judge::GoldRule;
use model::Model;
use recipe::request::{Conversation, EvalModels, EvalReport, EvalRequest, ModelReport};
use runtime::events::{Event, emit};
use trainer::LmRow;

use crate::compute;

/// Held-out text rows that the pretraining loss is measured on, and their length.
const TEXT_ROWS: usize = 128;
const TEXT_CONTEXT: usize = 128;

/// Prints one JSON object: a report per model, and some conversations.
pub fn run(request: &EvalRequest) -> Result<()> {
    let tokenizer = Tokenizer::load(&request.policy)?;
    tokenizer.require_eos()?;
    let load = |folder| compute::load(folder, None, &request.compute);
    let base = load(&request.base)?;
    let reference = load(&request.reference)?;
    let policy = load(&request.policy)?;
    let prompts = prompts(request, &tokenizer)?;
    let options = options(request, &tokenizer);
    let evaluation = Evaluation {
        tokenizer: &tokenizer,
        prompts: &prompts,
        heldout_text: &text(request, &tokenizer, &base)?,
        base: &base,
        reference: &reference,
        gold: request.gold.map(GoldRule::from),
        options: &options,
    };
    let measure = |name: &str, model: &Model| -> Result<(ModelReport, Vec<String>)> {
        emit(&Event::Note {
            text: format!("sampling {} replies of {name}", prompts.len()),
        });
        let sampled = eval::sample(&evaluation, model)?;
        let report = eval::evaluate(&evaluation, model, &sampled)?;
        Ok((report, sampled.texts))
    };
    let (base_report, _) = measure("base", &base)?;
    let (sft_report, sft_replies) = measure("sft", &reference)?;
    let (ppo_report, ppo_replies) = measure("ppo", &policy)?;
    let replies = prompts.iter().zip(sft_replies).zip(ppo_replies);
    let conversations = replies
        .take(request.show)
        .map(|((prompt, sft), ppo)| Conversation {
            prompt: prompt
                .messages
                .last()
                .map_or_else(String::new, |last| last.content.clone()),
            sft,
            ppo,
        })
        .collect();
    let report = EvalReport {
        models: EvalModels {
            base: base_report,
            sft: sft_report,
            ppo: ppo_report,
        },
        conversations,
    };
    let line = serde_json::to_string(&report)?;
    emit(&Event::Output { line });
    Ok(())
}

fn prompts(request: &EvalRequest, tokenizer: &Tokenizer) -> Result<Vec<PromptExample>> {
    let rows: Vec<Prompt> = datasets::load_split(&request.prompts, Split::Heldout)?;
    let sampling = &request.sampling;
    let (examples, _) = prompt_examples(
        &rows,
        tokenizer,
        sampling.max_prompt_tokens,
        sampling.overlong,
    )?;
    if examples.len() < request.samples {
        bail!(
            "{}: has {} held-out prompts, {} are asked for\n  hint: say `--samples {}`",
            request.prompts.display(),
            examples.len(),
            request.samples,
            examples.len()
        );
    }
    let order = Order::new(request.seed, "eval prompts", examples.len(), examples.len());
    Ok(order
        .batch(0, request.samples)
        .into_iter()
        .map(|i| examples[i].clone())
        .collect())
}

fn text(request: &EvalRequest, tokenizer: &Tokenizer, base: &Model) -> Result<Vec<LmRow>> {
    let Some(path) = &request.text else {
        return Ok(Vec::new());
    };
    let context = TEXT_CONTEXT.min(base.shape.max_positions);
    let rows = TokenRows::build(path, Split::Heldout, tokenizer, context, &request.cache)?;
    let indices: Vec<usize> = (0..rows.num_rows().min(TEXT_ROWS)).collect();
    Ok(rows.rows(&indices)?.into_iter().map(LmRow::plain).collect())
}

fn options(request: &EvalRequest, tokenizer: &Tokenizer) -> SamplingOptions {
    SamplingOptions {
        max_new_tokens: request.sampling.max_new_tokens,
        temperature: request.sampling.temperature,
        seed: request.seed,
        purpose: "eval",
        eos_ids: tokenizer.stop_ids().to_vec(),
        max_batch: request.compute.batch,
        ..SamplingOptions::default()
    }
}
