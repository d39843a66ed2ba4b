//! Text to token ids and back, with special tokens and a chat template.

use std::path::Path;

use runtime::files::{write_bytes, write_json};
use runtime::hash::{hash_bytes, hash_json};
use serde_json::{Map, Value};

use crate::error::TokenizerError;
use crate::rows::Message;
use crate::sentencepiece;
use crate::specials::{
    GenerationIds, Pad, Specials, resolve_specials, special, template_variables,
};
use crate::template::{ChatTemplate, RAW_TEMPLATE, Rendered};
use crate::tokenizer_files::{
    CONFIG_FILE, JSON_FILE, TokenizerFiles, check_json, default_template,
};

/// Token ids, and where in the text each begins and ends (bytes).
pub(crate) type WithOffsets = (Vec<u32>, Vec<(usize, usize)>);

/// A tokenizer, as in a Hugging Face model folder.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// What `tokenizer.json` holds.
    json: String,
    /// What `tokenizer_config.json` holds.
    config: Map<String, Value>,
    template: ChatTemplate,
    specials: Specials,
    /// Ids of all special tokens, ascending.
    special_ids: Vec<u32>,
    vocab_size: usize,
}

/// For `map_err`: what `tokenizers` says of something.
pub(crate) fn failed(what: &str) -> impl FnOnce(tokenizers::Error) -> TokenizerError {
    let what = what.to_owned();
    move |source| TokenizerError::Tokenizers {
        what,
        reason: source.to_string(),
    }
}

impl Tokenizer {
    /// Opens the tokenizer of a Hugging Face folder.
    ///
    /// Special tokens come from `tokenizer_config.json`, else `special_tokens_map.json`, else
    /// `generation_config.json`, else EOS is `<|endoftext|>` where that exists, and missing otherwise
    /// ([`Self::require_eos`]); `generation_config.json` may name more tokens that end a reply
    /// ([`Self::stop_ids`]), and where there is none, `config.json` names EOS in its place. Where no
    /// padding token is named, or it is EOS, some token without text is found for it: padded positions
    /// are masked, but EOS must stay learnable.
    ///
    /// # Errors
    /// A file that is missing or malformed, special tokens that the vocabulary lacks.
    pub fn load(dir: &Path) -> Result<Self, TokenizerError> {
        let TokenizerFiles {
            json,
            mut config,
            generation,
        } = TokenizerFiles::read(dir)?;
        let json = match json {
            Some(json) => json,
            None => sentencepiece::json(dir, &mut config)?.ok_or_else(|| {
                let path = dir.join(JSON_FILE);
                TokenizerError::Missing { path }
            })?,
        };
        Self::of(&dir.join(CONFIG_FILE), json, config, &generation)
    }

    pub(crate) fn of(
        config_path: &Path,
        json: String,
        mut config: Map<String, Value>,
        generation: &GenerationIds,
    ) -> Result<Self, TokenizerError> {
        let what = config_path.with_file_name(JSON_FILE).display().to_string();
        check_json(&json).map_err(|error| failed(&what)(error.into()))?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&json).map_err(failed(&what))?;
        inner.with_truncation(None).map_err(failed(&what))?;
        inner.with_padding(None);
        let added = inner.get_added_tokens_decoder().into_iter();
        let mut special_ids: Vec<u32> = added
            .filter(|(_, token)| token.special)
            .map(|(id, _)| id)
            .collect();
        special_ids.sort_unstable();
        let specials = resolve_specials(config_path, &inner, &config, generation, &special_ids)?;
        specials.write_to(&mut config);
        let variables = template_variables(&config);
        let source = default_template(&config).unwrap_or_else(|| RAW_TEMPLATE.to_owned());
        let template = ChatTemplate::new(&source, variables)?;
        let vocab_size = inner
            .get_vocab(true)
            .into_values()
            .max()
            .map_or(0, |id| id as usize + 1);
        Ok(Self {
            inner,
            json,
            config,
            template,
            specials,
            special_ids,
            vocab_size,
        })
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json` (the chat template inside) into `dir`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), TokenizerError> {
        write_bytes(&dir.join(JSON_FILE), self.json.as_bytes())?;
        write_json(&dir.join(CONFIG_FILE), &self.config)?;
        Ok(())
    }

    /// Largest id plus one.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Refuses a tokenizer without an EOS token, for what cannot do without: training and sampling.
    ///
    /// # Errors
    /// [`TokenizerError::NoEosToken`].
    pub fn require_eos(&self) -> Result<(), TokenizerError> {
        let eos = self.specials.eos.as_ref();
        eos.map(drop).ok_or(TokenizerError::NoEosToken)
    }

    fn eos(&self) -> &(u32, String) {
        let eos = self.specials.eos.as_ref();
        eos.expect("who asks for EOS has called `require_eos`")
    }

    /// The token that ends a turn or document.
    ///
    /// # Panics
    /// Where there is none ([`Self::require_eos`]).
    pub fn eos_id(&self) -> u32 {
        self.eos().0
    }

    /// The tokens that end a reply when they are sampled: EOS first, then those that the folder's
    /// configuration adds (Llama 3, Qwen and GLM end a turn with another token than a text).
    pub fn stop_ids(&self) -> &[u32] {
        &self.specials.stop
    }

    /// The text of [`Tokenizer::eos_id`].
    ///
    /// # Panics
    /// As [`Self::eos_id`].
    pub fn eos_token(&self) -> &str {
        &self.eos().1
    }

    /// The token that fills masked positions; never EOS.
    pub fn pad_id(&self) -> u32 {
        self.specials.pad.id()
    }

    /// [`Self::pad_id`] where no text holds that token. What else is written into a folder must not be taken
    /// for padding: transformers' classifiers read their score before it.
    pub fn stated_pad_id(&self) -> Option<u32> {
        match self.specials.pad {
            Pad::Special(id, _) => Some(id),
            Pad::Word(_) => None,
        }
    }

    /// The token that starts a text, where the model has one.
    pub fn bos_id(&self) -> Option<u32> {
        self.specials.bos
    }

    /// The id of a token by its text.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token that `tokenizer_config.json` names under a key, such as `mask_token`.
    pub fn declared(&self, key: &str) -> Option<String> {
        special(Path::new(CONFIG_FILE), &self.config, key).ok()?
    }

    /// Whether a token is special: it has no text of its own.
    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.binary_search(&id).is_ok()
    }

    /// Token ids of `text`. No special token is added; those written in the text are recognised.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(failed("encoding"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of `text` with what the tokenizer adds by itself, for example BOS.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self
            .inner
            .encode_fast(text, true)
            .map_err(failed("encoding"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids, and where in `text` each token begins and ends (bytes).
    pub(crate) fn encode_with_offsets(&self, text: &str) -> Result<WithOffsets, TokenizerError> {
        let encoding = self.inner.encode(text, false).map_err(failed("encoding"))?;
        Ok((encoding.get_ids().to_vec(), encoding.get_offsets().to_vec()))
    }

    /// The text of token ids, without special tokens.
    ///
    /// # Errors
    /// When the tokenizer refuses the ids.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.inner.decode(ids, true).map_err(failed("decoding"))
    }

    /// The dialogue as the chat template writes it.
    ///
    /// # Errors
    /// When the template refuses the dialogue.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, TokenizerError> {
        Ok(self.template.render(messages, add_generation_prompt)?.text)
    }

    /// The whole dialogue as the chat template writes it, with what it marks as the assistant's words.
    pub(crate) fn render_marked(&self, messages: &[Message]) -> Result<Rendered, TokenizerError> {
        self.template.render(messages, false)
    }

    /// Token ids of a dialogue that waits for the assistant's turn.
    ///
    /// # Errors
    /// When the template refuses the dialogue.
    pub fn encode_prompt(&self, messages: &[Message]) -> Result<Vec<u32>, TokenizerError> {
        self.encode(&self.render(messages, true)?)
    }

    /// Hash of everything that decides ids: `tokenizer.json`, special tokens, template.
    pub fn hash(&self) -> String {
        let eos = self.specials.eos.as_ref().map(|(id, _)| *id);
        let specials = (eos, self.specials.pad.id(), self.specials.bos);
        hash_json(&(
            hash_bytes(self.json.as_bytes()),
            specials,
            self.template.source(),
        ))
    }
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "tokenizer_folder_tests.rs"]
mod folder_tests;
