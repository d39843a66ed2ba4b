//! What can go wrong with a model and its files.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Reading or writing a file failed.
    #[error(transparent)]
    File(#[from] runtime::files::FileError),
    /// The folder is not what its manifest says.
    #[error(transparent)]
    Manifest(#[from] runtime::manifest::ManifestError),
    /// The tokenizer beside the model cannot be used.
    #[error("{path}: {source}")]
    Tokenizer {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// libtorch refused.
    #[error(transparent)]
    Torch(#[from] torch_ext::TorchError),
    /// A file describes a model of no known shape.
    #[error("{path}: {shape}")]
    Shape {
        /// `config.json`, or a GGUF file.
        path: PathBuf,
        /// What is wrong with the shape.
        shape: recipe::ShapeError,
    },
    /// `config.json` describes no model that this crate has.
    #[error("{path}: {reason}\n  hint: {hint}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// A model whose matrices were rounded when it was read.
    #[error(
        "{path}: a quantised model cannot be saved\n  hint: it was made of a folder's weights: copy that folder, \
         or load it without `quantize`"
    )]
    Quantized {
        /// The folder that was to be written.
        path: PathBuf,
    },
    /// A file that a model folder must have is not there.
    #[error(
        "{path} does not exist\n  hint: a model folder holds config.json and model.safetensors"
    )]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file that an adapter's folder must have is not there.
    #[error(
        "{path} does not exist\n  hint: an adapter's folder holds adapter_config.json and adapter_model.safetensors"
    )]
    MissingAdapter {
        /// The file.
        path: PathBuf,
    },
    /// The file is no whole file of tensors.
    #[error("{path}: not a valid file of weights: {reason}\n  hint: copy or save the file again")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A pickle wants more than tensors.
    #[error(
        "{path}: the file names `{name}`, which is no part of a tensor: refused, and nothing was run\n  \
         hint: load it where you trust it, and save it again as safetensors"
    )]
    Unsafe {
        /// The file.
        path: PathBuf,
        /// What it names.
        name: String,
    },
    /// A tensor that the model needs is not there.
    #[error(
        "{path}: tensor `{name}` {expected:?} is missing\n  hint: the weights are of another model than the one that is described beside them"
    )]
    MissingTensor {
        /// The file or folder.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        expected: Vec<i64>,
    },
    /// A tensor that the model does not have is there.
    #[error(
        "{path}: tensor `{name}` {found:?} does not belong to this model\n  hint: the weights are of another model than the one that is described beside them"
    )]
    ExtraTensor {
        /// The file or folder.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<i64>,
    },
    /// A tensor has another shape than the model's implies.
    #[error(
        "{path}: tensor `{name}` is {found:?}, expected {expected:?} by the model's shape\n  hint: the weights are of another model than the one that is described beside them"
    )]
    TensorShape {
        /// The file or folder.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape in the file.
        found: Vec<i64>,
        /// Its shape by the model's.
        expected: Vec<i64>,
    },
    /// A tensor has a type that weights do not have.
    #[error(
        "{path}: tensor `{name}` has dtype {found}, expected one of F64, F32, F16, BF16\n  hint: quantized weights are read from GGUF files alone; use the model's folder in full precision"
    )]
    TensorType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type, as the file names it.
        found: String,
    },
    /// The tokenizer makes ids that the embedding does not have.
    #[error(
        "{path}: the tokenizer has {tokens} tokens, the model's embedding {rows} rows\n  hint: use the tokenizer that the model was trained with"
    )]
    Vocabulary {
        /// The folder.
        path: PathBuf,
        /// Tokens of the tokenizer.
        tokens: usize,
        /// Rows of the embedding.
        rows: usize,
    },
    /// The backward pass was asked for before anything had a gradient.
    #[error("the hidden states have no gradient: call `loss.backward()` before `Tape::backward`")]
    NoGradient,
}
