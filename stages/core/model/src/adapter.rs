//! Low-rank adapters on a model's frozen weights (Hu et al. 2021), and models that share them.
//!
//! Shape suffixes: r rank, i inputs of a matrix, o its outputs; b rows, t positions, d width.

use std::collections::BTreeMap;

use recipe::lora::{LORA_A, LORA_B, LoraPlan};
use recipe::tensors::{Head, SCALAR_HEAD};
use tch::{Device, Tensor};
use torch_ext::wide_kind;

use crate::ModelError;
use crate::draw::draw;
use crate::parameters::{Parameters, map};
use crate::transformer::Model;

/// The adapters of a model.
#[derive(Debug)]
pub(crate) struct Adapter {
    pub(crate) plan: LoraPlan,
    /// What the frozen weights are called in the adapter's files.
    pub(crate) base: String,
    /// By name, as [`LoraPlan::tensors`] lists them.
    pub(crate) tensors: BTreeMap<String, Tensor>,
}

impl Adapter {
    /// The same with other tensors in the place of each.
    pub(crate) fn map(&self, change: fn(&Tensor) -> Tensor) -> Self {
        Self {
            plan: self.plan.clone(),
            base: self.base.clone(),
            tensors: map(&self.tensors, change),
        }
    }

    /// What stands beside the matrix of a name, where it has an adapter.
    pub(crate) fn beside(&self, matrix: &str) -> Option<LowRank> {
        let get = |end: &str| self.tensors.get(&format!("{matrix}.{end}"));
        Some(LowRank {
            a_ri: get(LORA_A)?.shallow_clone(),
            b_or: get(LORA_B)?.shallow_clone(),
            scale: self.plan.scale(),
        })
    }
}

/// The adapter of one matrix.
#[derive(Debug)]
pub(crate) struct LowRank {
    a_ri: Tensor,
    b_or: Tensor,
    scale: f64,
}

impl LowRank {
    /// `scale B A x`, to be added to the matrix's own product. `dropout` is the rate on `x`.
    pub(crate) fn forward(&self, x_btd: &Tensor, dropout: f64) -> Tensor {
        let none = None::<&Tensor>;
        let inner_btr = if dropout > 0.0 {
            x_btd.dropout(dropout, true).linear(&self.a_ri, none)
        } else {
            x_btd.linear(&self.a_ri, none)
        };
        inner_btr.linear(&self.b_or, none) * self.scale
    }

    /// The weight of the matrix with the adapter in it, in the weight's type and layout. The sum is made in
    /// f32 at least.
    fn merged(&self, weight: &Tensor, in_out: bool) -> Tensor {
        let wide = wide_kind(weight.kind());
        let there = |tensor: &Tensor| tensor.to_device(weight.device()).to_kind(wide);
        let (a_ri, b_or) = (there(&self.a_ri), there(&self.b_or));
        let delta_oi = b_or.matmul(&a_ri) * self.scale;
        let delta = if in_out { delta_oi.tr() } else { delta_oi };
        (weight.to_kind(wide) + delta).to_kind(weight.kind())
    }
}

impl Model {
    /// This model with new adapters on its weights, which are frozen: the adapters alone, and a scalar head,
    /// are trained from now on. The outputs are still the same. `base` is what the files of the adapters
    /// call these weights; each tensor's numbers depend on the seed and its name alone.
    ///
    /// # Panics
    /// When the model has adapters.
    #[must_use]
    pub fn with_new_adapter(self, plan: &LoraPlan, base: &str, seed: u64) -> Self {
        assert!(!self.has_adapter(), "the model has adapters");
        let specs = plan.tensors(&self.shape).into_iter();
        let tensors = specs.map(|spec| {
            let tensor = draw(&spec, seed).to_kind(self.kind());
            (spec.name, tensor.to_device(self.device()))
        });
        let adapter = Adapter {
            plan: plan.clone(),
            base: base.to_owned(),
            tensors: tensors.collect(),
        };
        for tensor in self.params().values() {
            let _ = tensor.set_requires_grad(false);
        }
        let parameters = Parameters {
            adapter: Some(adapter),
            ..self.parameters
        };
        Self::from_parameters(self.shape, self.head, self.reward_shift, parameters)
    }

    /// Another model of the same tensors: what trains one changes the other.
    #[must_use]
    pub fn share(&self) -> Self {
        self.with_parameters(self.parameters.map(Tensor::shallow_clone))
    }

    /// Another model on the same frozen weights, with a copy of its own of what is trained beside them: the
    /// adapters and a scalar head.
    #[must_use]
    pub fn fork(&self) -> Self {
        self.with_parameters(self.parameters.fork())
    }

    /// A copy that shares no memory but that of codes, which never change, and is not trainable until told so.
    #[must_use]
    pub fn deep_copy(&self) -> Self {
        self.with_parameters(self.parameters.deep_copy())
    }

    /// This model with its adapters added into the weights. What has no adapter is shared with this model. The
    /// weights of a quantised model are those that its codes were made of: they are read once more, into the
    /// host's memory, since a device that codes were needed for has no room for them.
    ///
    /// # Errors
    /// As [`Model::load`], of the folder that a quantised model was read from.
    pub fn merged(&self) -> Result<Self, ModelError> {
        self.assert_whole();
        let mut dense = map(self.params(), Tensor::shallow_clone);
        if let Some(quantized) = &self.parameters.quantized {
            dense = map(&dense, |tensor| tensor.to_device(Device::Cpu));
            let origin = Self::load(&quantized.origin, Device::Cpu, self.kind())?;
            let read = origin.parameters.dense.into_iter();
            dense.extend(read.filter(|(name, _)| quantized.matrices.contains_key(name)));
        }
        if let Some(adapter) = &self.parameters.adapter {
            let in_out = self.shape.names().in_out;
            for (name, weight) in &mut dense {
                let matrix = name.strip_suffix(".weight");
                if let Some(low_rank) = matrix.and_then(|matrix| adapter.beside(matrix)) {
                    *weight = tch::no_grad(|| low_rank.merged(weight, in_out));
                }
            }
        }
        Ok(self.with_parameters(dense.into()))
    }

    /// Whether the model's weights are frozen under adapters.
    pub fn has_adapter(&self) -> bool {
        self.parameters.adapter.is_some()
    }

    /// What is trained, by name: all parameters; with adapters those (`MATRIX.lora_A.weight`, `lora_B`) and
    /// a scalar head.
    ///
    /// # Panics
    /// When the model is quantised and has no adapters: nothing of it can be trained.
    pub fn trainable(&self) -> BTreeMap<String, Tensor> {
        let Some(adapter) = &self.parameters.adapter else {
            assert!(
                !self.is_quantized(),
                "a quantised model is trained through adapters alone"
            );
            return map(self.params(), Tensor::shallow_clone);
        };
        let mut trained = map(&adapter.tensors, Tensor::shallow_clone);
        if self.head == Head::Scalar {
            let head = self.params()[SCALAR_HEAD].shallow_clone();
            trained.insert(SCALAR_HEAD.to_owned(), head);
        }
        trained
    }

    /// The rate of dropout before the adapters, in training.
    pub(crate) fn adapter_dropout(&self) -> f64 {
        let adapter = self.parameters.adapter.as_ref();
        adapter.map_or(0.0, |adapter| adapter.plan.dropout)
    }

    /// A model of this one's shape, head and shift.
    pub(crate) fn with_parameters(&self, parameters: Parameters) -> Self {
        let shape = self.shape.clone();
        Self::from_parameters(shape, self.head, self.reward_shift, parameters)
    }
}
