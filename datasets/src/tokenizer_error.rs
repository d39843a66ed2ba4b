//! What can be wrong with tokenizers and chat templates.

use std::path::PathBuf;

use runtime::FileError;

/// Everything that can be wrong with a tokenizer or a chat template.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file of the folder is not there.
    #[error(
        "{}: no such file\n  hint: a tokenizer is a folder with tokenizer.json and \
         tokenizer_config.json",
        path.display()
    )]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// `tokenizers` refused.
    #[error("{what}: {}", with_hint(reason))]
    Tokenizers {
        /// What was attempted, or the file.
        what: String,
        /// Why it failed.
        reason: String,
    },
    /// There is no EOS token, and something has to end.
    #[error(
        "the tokenizer has no EOS token, which ends documents and replies\n  hint: add \"eos_token\": \
         \"...\", naming a token of tokenizer.json, to tokenizer_config.json"
    )]
    NoEosToken,
    /// No token is named for padding, and none without text is found for it.
    #[error(
        "{}: `pad_token` is missing\n  hint: add \"pad_token\": \"...\" naming a token of tokenizer.json",
        path.display()
    )]
    NoPad {
        /// `tokenizer_config.json`.
        path: PathBuf,
    },
    /// The configuration names a token that the vocabulary lacks.
    #[error(
        "{}: `{key}` is `{token}`, which tokenizer.json does not contain\n  hint: name a token of \
         its vocabulary",
        path.display()
    )]
    UnknownSpecial {
        /// `tokenizer_config.json`.
        path: PathBuf,
        /// `eos_token`, `pad_token` or `bos_token`.
        key: &'static str,
        /// The token.
        token: String,
    },
    /// A value of the configuration has an impossible type.
    #[error(
        "{}: `{key}` is neither a string nor an object with `content`\n  hint: correct the file",
        path.display()
    )]
    BadSpecial {
        /// `tokenizer_config.json`.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A token id of the configuration is no number.
    #[error(
        "{}: `{key}` must be a token id or a list of them, holds {found}\n  hint: correct the file",
        path.display()
    )]
    BadIds {
        /// `generation_config.json` or `config.json`.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What it holds.
        found: String,
    },
    /// A token id of the configuration is beyond the vocabulary.
    #[error(
        "{}: `eos_token_id` names token {id}, which tokenizer.json does not contain\n  hint: name tokens \
         of its vocabulary, or remove the key",
        path.display()
    )]
    UnknownId {
        /// `generation_config.json`.
        path: PathBuf,
        /// The id.
        id: u32,
    },
    /// The chat templates of the configuration are of an impossible type.
    #[error(
        "{}: `chat_template` is neither a text nor a list of {{\"name\": ..., \"template\": ...}}\n  \
         hint: correct the file",
        path.display()
    )]
    BadTemplates {
        /// `tokenizer_config.json`.
        path: PathBuf,
    },
    /// There are several chat templates, and none is the one to use.
    #[error(
        "{}: there are chat templates called {names}, and none called default\n  hint: put the one to \
         use into chat_template.jinja",
        path.display()
    )]
    NoDefaultTemplate {
        /// The folder.
        path: PathBuf,
        /// The names that are there.
        names: String,
    },
    /// The vocabulary cannot even hold all bytes.
    #[error(
        "vocab_size = {requested} is below {minimum}\n  hint: 256 bytes and the special tokens come \
         before any merge"
    )]
    VocabularyTooSmall {
        /// What was asked for.
        requested: usize,
        /// The least possible.
        minimum: usize,
    },
    /// The texts have too few different words.
    #[error(
        "the texts give only {found} tokens, not {requested}\n  hint: set vocab_size = {found} or \
         train on more text"
    )]
    VocabularyNotReached {
        /// What was asked for.
        requested: usize,
        /// What came out.
        found: usize,
    },
    /// The tokenizer lacks a special token that an objective of pretraining needs.
    #[error(
        "objective = \"{objective}\" needs a special token for {role} ({names}), {found}\n  hint: a \
         tokenizer that is trained gets it ([tokenizer] kind = \"bpe\"); in another one's tokenizer.json it \
         stands among added_tokens with \"special\": true"
    )]
    NoObjectiveToken {
        /// The objective's word.
        objective: &'static str,
        /// What the token stands for.
        role: &'static str,
        /// Names that are known for it.
        names: String,
        /// What is there in its place.
        found: String,
    },
    /// The chat template does not compile.
    #[error("chat template: {source:#}\n  hint: it must be Jinja as transformers renders it")]
    Template {
        /// Why.
        source: Box<minijinja::Error>,
    },
    /// The chat template refused the messages.
    #[error(
        "chat template refused a dialogue of {roles}: {source:#}\n  hint: the template decides which roles may follow each other"
    )]
    Render {
        /// The roles, in order.
        roles: String,
        /// Why.
        source: Box<minijinja::Error>,
    },
    /// The chat template loops.
    #[error(
        "the chat template does not come to an end: stopped after {steps} instructions\n  hint: look for \
         a loop over a large range in chat_template of tokenizer_config.json"
    )]
    Endless {
        /// Instructions that a rendering may take.
        steps: u64,
    },
    /// Rendering a longer dialogue changes what came before.
    #[error(
        "the chat template is not prefix-stable at message {message}: `{expected}` became \
         `{found}`\n  hint: the loss mask needs a template whose earlier text does not depend on \
         later messages; edit chat_template in tokenizer_config.json"
    )]
    NotPrefixStable {
        /// Index of the assistant message.
        message: usize,
        /// End of the text that should have been a prefix.
        expected: String,
        /// What stands there instead.
        found: String,
    },
    /// An assistant's turn has no end.
    #[error(
        "the chat template ends assistant message {message} without the EOS token `{eos}` (turn: \
         `{turn}`)\n  hint: make the template write eos_token, or set eos_token in \
         tokenizer_config.json to the token that ends a turn"
    )]
    NoEos {
        /// Index of the assistant message.
        message: usize,
        /// The EOS token.
        eos: String,
        /// The turn's text.
        turn: String,
    },
}

/// A reason that says by itself what to do, or the usual remedy.
fn with_hint(reason: &str) -> String {
    if reason.contains("\n  hint: ") {
        return reason.to_owned();
    }
    format!("{reason}\n  hint: copy or download the tokenizer's files again")
}
