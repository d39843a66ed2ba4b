//! What may be asked of [`crate::generate`], and what is refused.

use model::{Head, Model};
use thiserror::Error;
use torch_ext::TorchError;

/// How tokens are chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingOptions {
    /// Tokens of a response at most, EOS included; 1 or more.
    pub max_new_tokens: usize,
    /// Logits are divided by this; above 0. Greedy decoding does not read it.
    pub temperature: f64,
    /// Only the k likeliest tokens (and those as likely as the k-th); 1 or more. Applied after the
    /// temperature.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens that together have this probability (Holtzman et al. 2020); in (0, 1].
    /// Applied after top-k, to its renormalised distribution.
    pub top_p: Option<f64>,
    /// Always the likeliest token; log-probs are those of the plain distribution.
    pub greedy: bool,
    /// EOS is a token like any other, and every response has `max_new_tokens`.
    pub ignore_eos: bool,
    /// The run's seed.
    pub seed: u64,
    /// What the samples are for; part of every random key.
    pub purpose: &'static str,
    /// Tokens that end a response.
    pub eos_ids: Vec<u32>,
    /// Rows decoded together; bounds memory, and changes no sample.
    pub max_batch: usize,
}

impl Default for SamplingOptions {
    /// The whole distribution at temperature 1, 64 rows at a time; no token ends a response.
    fn default() -> Self {
        Self {
            max_new_tokens: 1,
            temperature: 1.0,
            top_k: None,
            top_p: None,
            greedy: false,
            ignore_eos: false,
            seed: 0,
            purpose: "",
            eos_ids: Vec::new(),
            max_batch: 64,
        }
    }
}

/// A prompt to be continued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Tokens of the prompt; at least one.
    pub prompt_ids: Vec<u32>,
    /// The key of this response's randomness: token `t` is drawn with
    /// `uniform(seed, purpose, episode, t)`. Several samples of one prompt differ in it.
    pub episode: u64,
}

/// Why a response ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// With an EOS token.
    Stop,
    /// With `max_new_tokens` tokens.
    Length,
}

impl Finish {
    /// The word for it in files: `stop` or `length`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// A response.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Its tokens, EOS included where it was made.
    pub output_ids: Vec<u32>,
    /// For each token the natural logarithm of its probability under the distribution that it was
    /// sampled from: after temperature, top-k and top-p. Greedy: under the plain distribution.
    pub logprobs: Vec<f64>,
    /// What a scalar head says before each token ([`crate::generate_with_values`]); empty where none was asked.
    pub values: Vec<f64>,
    /// Why it ended.
    pub finish: Finish,
}

/// Why nothing was sampled.
#[derive(Debug, Error)]
pub enum GenerationError {
    /// The model has no logits.
    #[error(
        "this model has a scalar head, and sampling needs a token head\n  \
         hint: sample from a language model, not from a reward or value model"
    )]
    NoTokenHead,
    /// A count that must be at least 1.
    #[error("`{option}` is 0, and must be at least 1\n  hint: {hint}")]
    Zero {
        /// The option.
        option: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// More responses than beams.
    #[error(
        "{returned} responses of each prompt are asked for, and {beams} beams give from 1 to {beams}\n  \
         hint: search with at least as many beams as responses"
    )]
    TooFewBeams {
        /// Responses of each prompt.
        returned: usize,
        /// Beams.
        beams: usize,
    },
    /// A temperature that gives no distribution.
    #[error(
        "temperature is {temperature}, and must be finite and above 0\n  \
         hint: for the likeliest tokens ask for greedy decoding"
    )]
    Temperature {
        /// The temperature.
        temperature: f64,
    },
    /// A probability out of bounds.
    #[error(
        "top_p is {top_p}, and must be above 0 and at most 1\n  hint: leave it out to keep all tokens"
    )]
    TopP {
        /// The value.
        top_p: f64,
    },
    /// A prompt of no tokens.
    #[error(
        "the prompt of request {request} is empty\n  \
         hint: a prompt needs at least one token, for instance the beginning-of-text token"
    )]
    EmptyPrompt {
        /// Index of the request.
        request: usize,
    },
    /// A prompt that leaves too little room.
    #[error(
        "the prompt of request {request} has {prompt_tokens} tokens, and with {max_new_tokens} new ones it \
         would pass the model's {max_positions} positions\n  \
         hint: shorten the prompt to {room} tokens or lower max_new_tokens",
        room = max_positions.saturating_sub(*max_new_tokens)
    )]
    TooLong {
        /// Index of the request.
        request: usize,
        /// Tokens of its prompt.
        prompt_tokens: usize,
        /// Tokens to be made.
        max_new_tokens: usize,
        /// The model's bound.
        max_positions: usize,
    },
    /// A token that the model's embedding does not have.
    #[error(
        "the prompt of request {request} has token {token}, and the model has {vocab_size}\n  \
         hint: encode prompts with the tokenizer in the model's folder"
    )]
    UnknownToken {
        /// Index of the request.
        request: usize,
        /// The token.
        token: u32,
        /// The model's bound.
        vocab_size: usize,
    },
    /// The model's distribution is none.
    #[error(
        "the log-probability of token {position} of request {request} is {logprob}\n  \
         hint: the model's weights or activations are not finite; look at its training's loss"
    )]
    NonFinite {
        /// Index of the request.
        request: usize,
        /// The response token, counted from 0.
        position: usize,
        /// Its log-probability.
        logprob: f64,
    },
    /// The device refuses to record or to repeat a step.
    #[error(transparent)]
    Torch(#[from] TorchError),
}

/// Refuses what cannot be sampled.
pub(crate) fn validate(
    model: &Model,
    requests: &[Request],
    options: &SamplingOptions,
) -> Result<(), GenerationError> {
    if model.head != Head::Token {
        return Err(GenerationError::NoTokenHead);
    }
    validate_options(options)?;
    for (request, Request { prompt_ids, .. }) in requests.iter().enumerate() {
        let (max_positions, vocab_size) = (model.shape.max_positions, model.shape.vocab_size);
        let max_new_tokens = options.max_new_tokens;
        if prompt_ids.is_empty() {
            return Err(GenerationError::EmptyPrompt { request });
        }
        if prompt_ids.len().saturating_add(max_new_tokens) > max_positions {
            let prompt_tokens = prompt_ids.len();
            return Err(GenerationError::TooLong {
                request,
                prompt_tokens,
                max_new_tokens,
                max_positions,
            });
        }
        if let Some(&token) = prompt_ids.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(GenerationError::UnknownToken {
                request,
                token,
                vocab_size,
            });
        }
    }
    Ok(())
}

fn validate_options(options: &SamplingOptions) -> Result<(), GenerationError> {
    let zero = |option, hint| Err(GenerationError::Zero { option, hint });
    if options.max_new_tokens == 0 {
        return zero("max_new_tokens", "a response has at least one token");
    }
    if options.max_batch == 0 {
        return zero("max_batch", "at least one row is decoded at a time");
    }
    if options.top_k == Some(0) {
        return zero("top_k", "leave it out to keep all tokens");
    }
    let temperature = options.temperature;
    let is_usable = temperature > 0.0 && temperature.is_finite();
    if !(options.greedy || is_usable) {
        return Err(GenerationError::Temperature { temperature });
    }
    match options.top_p {
        Some(top_p) if !(top_p > 0.0 && top_p <= 1.0) => Err(GenerationError::TopP { top_p }),
        _ => Ok(()),
    }
}
