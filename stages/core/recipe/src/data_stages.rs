//! Reads the tables of stages that make data and tokenizers: import, label, and `[tokenizer]`.

use datasets::{DatasetKind, ImportFormat};

use crate::artefacts::{self, MINIMUM_VOCABULARY};
use crate::hub::HUB_PREFIX;
use crate::objective::check_continues_text;
use crate::plan::{
    Dtype, Execution, GoldRule, ImportPlan, LabelPlan, Labeler, Plan, SamplingPlan, Sharding,
    Source, TokenizerPlan,
};
use crate::reader::{Outcome, Range, Reader};
use crate::references::{ChosenTokenizer, Resolver, Wanted};
use crate::shape::ModelShape;
use crate::training::{DTYPES, OVERLONG, QUANTIZATIONS};

pub(crate) const GOLD_RULES: &[(&str, GoldRule)] = &[("vader", GoldRule::Vader)];

/// What stages without a model have in place of choices: none of it is used.
pub(crate) const NO_EXECUTION: Execution = Execution {
    dtype: Dtype::F32,
    micro_batch: 1,
    sample_batch: 1,
    checkpointing: false,
    sharding: Sharding::None,
    save_every: 1,
    keep: 1,
};

pub(crate) fn import(reader: &Reader<'_>, resolver: &Resolver<'_>) -> Outcome<ImportPlan> {
    let Some(name) = reader.text_opt("format")? else {
        return Err(reader.missing(
            "format",
            "write format = \"chitchat\", \"synthetic\" or another",
        ));
    };
    let format = artefacts::import_format(&name)
        .map_err(|(message, hint)| reader.problem("format", message, hint))?;
    let path = if format.is_generated() {
        reader.refuse("path", "has no meaning for generated data", "leave it out")?;
        None
    } else {
        let why = "has no meaning for data that is read";
        reader.refuse(
            "conversations",
            why,
            "leave it out, or take format = \"synthetic\" or \"passkey\"",
        )?;
        let Some(text) = reader.text_opt("path")? else {
            return Err(reader.missing("path", "write path = the file or folder to import"));
        };
        Some(resolver.path(reader, "path", &text)?)
    };
    let sentences = if format == ImportFormat::Passkey {
        Some(reader.count("sentences", 1)?)
    } else {
        let hint = "leave it out, or take format = \"passkey\"";
        reader.refuse("sentences", "has no meaning for this format", hint)?;
        None
    };
    Ok(ImportPlan {
        sentences,
        format: format.name().to_owned(),
        path,
        heldout: reader.number("heldout", Range::SHARE)?,
        prompt_turns: reader.count("prompt_turns", 1)?,
        conversations: reader.count("conversations", 1)?,
    })
}

/// `[tokenizer]`: what pretraining gets, and the stage's task where it is trained.
pub(crate) fn tokenizer(
    reader: &Reader<'_>,
    resolver: &Resolver<'_>,
) -> Outcome<(ChosenTokenizer, Option<TokenizerPlan>)> {
    if trains(reader)? {
        reader.refuse(
            "path",
            "has no meaning with kind = \"bpe\"",
            "leave it out, or take kind = \"path\"",
        )?;
        let data = resolver.source(reader, "data", Wanted::Data(DatasetKind::Text))?;
        let special_tokens = resolver.special_tokens.clone();
        let minimum = MINIMUM_VOCABULARY + special_tokens.len() as u64;
        let vocab_size = reader.count("vocab_size", minimum)?;
        let source = Source::Stage {
            name: Plan::TOKENIZER.to_owned(),
        };
        return Ok((
            ChosenTokenizer { source, vocab_size },
            Some(TokenizerPlan {
                data,
                vocab_size,
                special_tokens,
            }),
        ));
    }
    for key in ["data", "vocab_size"] {
        reader.refuse(
            key,
            "has no meaning with kind = \"path\"",
            "leave it out, or take kind = \"bpe\"",
        )?;
    }
    let Some(text) = reader.text_opt("path")? else {
        return Err(reader.missing("path", "write path = a folder with tokenizer.json"));
    };
    let (source, dir) = if text.starts_with(HUB_PREFIX) {
        resolver.hub_source(reader, "path", &text, true)?
    } else {
        let path = resolver.path(reader, "path", &text)?;
        (Source::Path { path: path.clone() }, path)
    };
    let vocab_size = artefacts::vocab_size(&dir)
        .map_err(|(message, hint)| reader.problem("path", message, hint))?;
    Ok((ChosenTokenizer { source, vocab_size }, None))
}

/// Whether `[tokenizer]` is trained rather than read.
pub(crate) fn trains(reader: &Reader<'_>) -> Outcome<bool> {
    reader.choice("kind", &[("bpe", true), ("path", false)])
}

pub(crate) fn label(reader: &Reader<'_>, resolver: &Resolver<'_>) -> Outcome<LabelPlan> {
    let model = resolver.source(reader, "model", Wanted::Policy)?;
    check_continues_text(reader, resolver, &model)?;
    let shape = resolver.shape(reader, "model", &model)?;
    let prompts = resolver.source(reader, "prompts", Wanted::Data(DatasetKind::Prompts))?;
    reader.choice("labeler.kind", &[("gold", ())])?;
    let labeler = Labeler::Gold {
        rule: reader.choice("labeler.rule", GOLD_RULES)?,
    };
    Ok(LabelPlan {
        sampling: sampling(reader, &shape)?,
        quantize: reader.choice_or_off("quantize", QUANTIZATIONS)?,
        model,
        shape,
        prompts,
        num_prompts: reader.count("num_prompts", 1)?,
        num_heldout: reader.count("num_heldout", 1)?,
        responses: reader.count("responses", 2)?,
        labeler,
    })
}

/// A label stage samples and trains nothing.
pub(crate) fn label_execution(reader: &Reader<'_>) -> Outcome<Execution> {
    Ok(Execution {
        dtype: reader.choice("dtype", DTYPES)?,
        sample_batch: reader.count("sample_batch", 1)?,
        ..NO_EXECUTION
    })
}

/// Prompt and response together must fit the model.
pub(crate) fn sampling(reader: &Reader<'_>, shape: &ModelShape) -> Outcome<SamplingPlan> {
    let plan = SamplingPlan {
        max_prompt_tokens: reader.count("max_prompt_tokens", 1)?,
        max_new_tokens: reader.count("max_new_tokens", 1)?,
        temperature: reader.number("temperature", Range::POSITIVE)?,
        overlong: reader.choice("overlong", OVERLONG)?,
    };
    let tokens = plan.max_prompt_tokens + plan.max_new_tokens;
    if tokens > shape.max_positions {
        let message = format!(
            "max_prompt_tokens {} and max_new_tokens {} must be at most the model's max_positions {} \
             together, are {tokens}",
            plan.max_prompt_tokens, plan.max_new_tokens, shape.max_positions
        );
        let hint =
            "shorten one of them, or give the model more max_positions when it is pretrained";
        return Err(reader.problem("max_new_tokens", message, hint));
    }
    Ok(plan)
}
