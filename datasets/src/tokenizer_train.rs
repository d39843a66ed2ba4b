//! Training a tokenizer.

use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, TokenizerImpl,
};

use crate::error::TokenizerError;
use crate::objective::Objective;
use crate::specials::GenerationIds;
use crate::template::OUR_TEMPLATE;
use crate::tokenizer::{Tokenizer, failed};
use crate::tokenizer_files::CONFIG_FILE;

/// Special tokens of tokenizers trained here; their ids are their indices.
pub const SPECIAL_TOKENS: [&str; 5] = [
    "<|endoftext|>",
    "<|pad|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
];
/// Tokens that every vocabulary has beside the special ones: all bytes.
const NUM_BYTES: usize = 256;

impl Tokenizer {
    /// Trains a byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) of `vocab_size` tokens,
    /// special ones included. The same texts give the same tokenizer, in whatever order.
    ///
    /// Special tokens written in the texts take no part in the merges.
    ///
    /// # Errors
    /// A vocabulary too small for all bytes, or larger than the texts can fill.
    pub fn train(
        texts: impl Iterator<Item = String> + Send,
        vocab_size: usize,
    ) -> Result<Self, TokenizerError> {
        Self::train_with(texts, vocab_size, &[])
    }

    /// [`Self::train`] with more special tokens behind the usual ones: what objectives of pretraining
    /// need ([`crate::Objective::special_tokens`]).
    ///
    /// # Errors
    /// As [`Self::train`].
    pub fn train_with(
        texts: impl Iterator<Item = String> + Send,
        vocab_size: usize,
        more: &[String],
    ) -> Result<Self, TokenizerError> {
        let usual = SPECIAL_TOKENS.into_iter();
        let specials: Vec<&str> = usual.chain(more.iter().map(String::as_str)).collect();
        let minimum = specials.len() + NUM_BYTES;
        if vocab_size < minimum {
            return Err(TokenizerError::VocabularyTooSmall {
                requested: vocab_size,
                minimum,
            });
        }
        let added = specials.iter().map(|token| AddedToken::from(*token, true));
        let mut trainer = BpeTrainer::builder()
            .vocab_size(vocab_size)
            .show_progress(false)
            .special_tokens(added.collect())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let mut trained: TokenizerImpl<
            BPE,
            NormalizerWrapper,
            ByteLevel,
            PostProcessorWrapper,
            DecoderWrapper,
        > = TokenizerImpl::new(BPE::default());
        trained.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
        trained.with_decoder(Some(ByteLevel::default()));
        let pieces = texts.flat_map(|text| without_specials(&text, &specials));
        trained
            .train(&mut trainer, pieces)
            .map_err(failed("training the tokenizer"))?;
        let found = trained.get_vocab_size(true);
        if found < vocab_size {
            return Err(TokenizerError::VocabularyNotReached {
                requested: vocab_size,
                found,
            });
        }
        let json = trained
            .to_string(false)
            .map_err(failed("writing the tokenizer"))?;
        let generation = GenerationIds::default();
        Self::of(
            Path::new(CONFIG_FILE),
            json,
            our_config(&specials),
            &generation,
        )
    }
}

/// The stretches of text between special tokens.
fn without_specials(text: &str, specials: &[&str]) -> Vec<String> {
    let mut pieces = vec![text];
    for token in specials {
        pieces = pieces
            .into_iter()
            .flat_map(|piece| piece.split(*token))
            .collect();
    }
    pieces
        .into_iter()
        .filter(|piece| !piece.is_empty())
        .map(str::to_owned)
        .collect()
}

fn our_config(specials: &[&str]) -> Map<String, Value> {
    let entries = [
        ("tokenizer_class", "PreTrainedTokenizerFast"),
        ("eos_token", SPECIAL_TOKENS[0]),
        ("pad_token", SPECIAL_TOKENS[1]),
        ("chat_template", OUR_TEMPLATE),
    ];
    let mut config: Map<String, Value> = entries
        .map(|(key, value)| (key.to_owned(), Value::from(value)))
        .into_iter()
        .collect();
    config.insert(
        "additional_special_tokens".to_owned(),
        Value::from(specials[2..].to_vec()),
    );
    let mask = Objective::Masked.special_tokens().next();
    if let Some(mask) = mask.filter(|mask| specials.contains(mask)) {
        config.insert("mask_token".to_owned(), Value::from(mask));
    }
    config.insert(
        "clean_up_tokenization_spaces".to_owned(),
        Value::Bool(false),
    );
    config
}
