//! `rlhf eval`: base, SFT and PPO on the same held-out prompts, with the same random numbers.

use anyhow::{Result, bail};
use datasets::collate::{PromptExample, prompt_examples};
use datasets::loader::Order;
use datasets::pack::TokenRows;
use datasets::{Prompt, Split, Tokenizer};
use eval::{Evaluation, Report};
use generation::SamplingOptions;
use judge::GoldRule;
use model::Model;
use recipe::request::EvalRequest;
use runtime::events::{Event, emit};
use serde_json::json;
use trainer::LmRow;

use crate::compute;

/// Held-out text rows that the pretraining loss is measured on, and their length.
const TEXT_ROWS: usize = 128;
const TEXT_CONTEXT: usize = 128;

/// Prints one JSON object: a report per model, and some conversations.
pub fn run(request: &EvalRequest) -> Result<()> {
    let (device, kind) = compute::of(&request.compute)?;
    let tokenizer = Tokenizer::load(&request.policy)?;
    let base = Model::load(&request.base, device, kind)?;
    let reference = Model::load(&request.reference, device, kind)?;
    let policy = Model::load(&request.policy, device, kind)?;
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
    let mut reports: Vec<(&str, Report)> = Vec::new();
    let mut replies = Vec::new();
    for (name, model) in [("base", &base), ("sft", &reference), ("ppo", &policy)] {
        emit(&Event::Note {
            text: format!("sampling {} replies of {name}", prompts.len()),
        });
        let sampled = eval::sample(&evaluation, model)?;
        reports.push((name, eval::evaluate(&evaluation, model, &sampled)?));
        replies.push(sampled.texts);
    }
    let conversations: Vec<_> = (0..request.show.min(prompts.len()))
        .map(|i| {
            let prompt = prompts[i]
                .messages
                .last()
                .map_or("", |message| &message.content);
            json!({ "prompt": prompt, "sft": replies[1][i], "ppo": replies[2][i] })
        })
        .collect();
    let reports: serde_json::Map<_, _> = reports
        .into_iter()
        .map(|(name, report)| (name.to_owned(), json!(report)))
        .collect();
    let line = json!({ "models": reports, "conversations": conversations }).to_string();
    emit(&Event::Output { line });
    Ok(())
}

fn prompts(request: &EvalRequest, tokenizer: &Tokenizer) -> Result<Vec<PromptExample>> {
    let rows: Vec<Prompt> = datasets::load_split(&request.prompts, Split::Heldout)?;
    let sampling = &request.sampling;
    let overlong = trainer::overlong(sampling.overlong);
    let (examples, _) = prompt_examples(&rows, tokenizer, sampling.max_prompt_tokens, overlong)?;
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
        eos_ids: vec![tokenizer.eos_id()],
        max_batch: request.compute.batch,
        ..SamplingOptions::default()
    }
}
