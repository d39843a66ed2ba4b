//! What a model is made of: tensors, codes in the place of some, and adapters beside them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use recipe::tensors::SCALAR_HEAD;
use tch::Tensor;

use crate::adapter::Adapter;
use crate::quantized::QuantizedMatrix;
use crate::shards::Shards;

/// The parameters of a model. One that is quantised is frozen: nothing is trained of it but adapters.
#[derive(Debug)]
pub(crate) struct Parameters {
    /// Tensors as they are, by Hugging Face name.
    pub(crate) dense: BTreeMap<String, Tensor>,
    /// Matrices of blocks, where they are codes.
    pub(crate) quantized: Option<Quantized>,
    /// What is trained in place of all these, where there is such a thing.
    pub(crate) adapter: Option<Adapter>,
    /// Where blocks are divided among ranks.
    pub(crate) shards: Option<Rc<Shards>>,
}

/// The matrices of blocks as codes.
#[derive(Debug)]
pub(crate) struct Quantized {
    /// By Hugging Face name, as the tensors that they were made of.
    pub(crate) matrices: BTreeMap<String, QuantizedMatrix>,
    /// The folder of those.
    pub(crate) origin: PathBuf,
}

impl From<BTreeMap<String, Tensor>> for Parameters {
    fn from(dense: BTreeMap<String, Tensor>) -> Self {
        Self {
            dense,
            quantized: None,
            adapter: None,
            shards: None,
        }
    }
}

impl Parameters {
    /// The same with other tensors in the place of each. Codes never change, and are shared.
    pub(crate) fn map(&self, change: fn(&Tensor) -> Tensor) -> Self {
        Self {
            dense: map(&self.dense, change),
            quantized: self.quantized.as_ref().map(Quantized::share),
            adapter: self.adapter.as_ref().map(|adapter| adapter.map(change)),
            shards: self.shards.clone(),
        }
    }

    /// The same frozen tensors, with a copy of what is trained beside them.
    pub(crate) fn fork(&self) -> Self {
        let mut fork = self.map(Tensor::shallow_clone);
        if let Some(head) = fork.dense.get_mut(SCALAR_HEAD) {
            *head = copy(head);
        }
        fork.adapter = self.adapter.as_ref().map(|adapter| adapter.map(copy));
        fork
    }

    /// The codes of a matrix, where it has some.
    pub(crate) fn codes(&self, name: &str) -> Option<&QuantizedMatrix> {
        self.quantized.as_ref()?.matrices.get(name)
    }

    /// Number of numbers, those of adapters not among them.
    pub(crate) fn num_numbers(&self) -> usize {
        let dense: usize = self.dense.values().map(Tensor::numel).sum();
        let matrices = self.quantized.iter().flat_map(|q| q.matrices.values());
        dense + matrices.map(QuantizedMatrix::numel).sum::<usize>()
    }
}

impl Quantized {
    fn share(&self) -> Self {
        let shared = |(name, matrix): (&String, &QuantizedMatrix)| (name.clone(), matrix.share());
        Self {
            matrices: self.matrices.iter().map(shared).collect(),
            origin: self.origin.clone(),
        }
    }
}

/// Other tensors under the same names.
pub(crate) fn map(
    tensors: &BTreeMap<String, Tensor>,
    change: fn(&Tensor) -> Tensor,
) -> BTreeMap<String, Tensor> {
    let all = tensors.iter();
    all.map(|(name, tensor)| (name.clone(), change(tensor)))
        .collect()
}

/// A tensor with memory of its own, which collects no gradients.
pub(crate) fn copy(tensor: &Tensor) -> Tensor {
    tensor.detach().copy()
}
