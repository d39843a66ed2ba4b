//! Low-rank adapters on a model's frozen weights (Hu et al. 2021), and models that share them.
//!
//! Shape suffixes: r rank, i inputs of a matrix, o its outputs; b rows, t positions, d width.

use std::collections::BTreeMap;

use recipe::lora::{LORA_A, LORA_B, LoraPlan};
use recipe::tensors::{Head, SCALAR_HEAD};
use tch::{Kind, Tensor};

use crate::transformer::{Model, draw};

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
    fn map(&self, change: fn(&Tensor) -> Tensor) -> Self {
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
        let wide = match weight.kind() {
            Kind::Double => Kind::Double,
            _ => Kind::Float,
        };
        let [a_ri, b_or] = [&self.a_ri, &self.b_or].map(|tensor| tensor.to_kind(wide));
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
        assert!(self.adapter.is_none(), "the model has adapters");
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
        self.set_trainable(false);
        Self::from_params(
            self.shape,
            self.head,
            self.reward_shift,
            self.params,
            Some(adapter),
        )
    }

    /// Another model of the same tensors: what trains one changes the other.
    #[must_use]
    pub fn share(&self) -> Self {
        self.with_tensors(Tensor::shallow_clone)
    }

    /// Another model on the same frozen weights, with a copy of its own of what is trained beside them: the
    /// adapters and a scalar head.
    #[must_use]
    pub fn fork(&self) -> Self {
        let mut params = map(&self.params, Tensor::shallow_clone);
        if let Some(head) = params.get_mut(SCALAR_HEAD) {
            *head = copy(head);
        }
        let adapter = self.adapter.as_ref().map(|adapter| adapter.map(copy));
        let (shape, head, shift) = (self.shape.clone(), self.head, self.reward_shift);
        Self::from_params(shape, head, shift, params, adapter)
    }

    /// A copy that shares no memory, and is not trainable until told so.
    #[must_use]
    pub fn deep_copy(&self) -> Self {
        self.with_tensors(copy)
    }

    /// This model with its adapters added into the weights. What has no adapter is shared with this model.
    #[must_use]
    pub fn merged(&self) -> Self {
        let mut params = map(&self.params, Tensor::shallow_clone);
        if let Some(adapter) = &self.adapter {
            let in_out = self.shape.names().in_out;
            for (name, weight) in &mut params {
                let matrix = name.strip_suffix(".weight");
                if let Some(low_rank) = matrix.and_then(|matrix| adapter.beside(matrix)) {
                    *weight = tch::no_grad(|| low_rank.merged(weight, in_out));
                }
            }
        }
        let (shape, head, shift) = (self.shape.clone(), self.head, self.reward_shift);
        Self::from_params(shape, head, shift, params, None)
    }

    /// Whether the model's weights are frozen under adapters.
    pub fn has_adapter(&self) -> bool {
        self.adapter.is_some()
    }

    /// What is trained, by name: all parameters; with adapters those (`MATRIX.lora_A.weight`, `lora_B`) and
    /// a scalar head.
    pub fn trainable(&self) -> BTreeMap<String, Tensor> {
        let Some(adapter) = &self.adapter else {
            return map(&self.params, Tensor::shallow_clone);
        };
        let mut trained = map(&adapter.tensors, Tensor::shallow_clone);
        if self.head == Head::Scalar {
            let head = self.params[SCALAR_HEAD].shallow_clone();
            trained.insert(SCALAR_HEAD.to_owned(), head);
        }
        trained
    }

    /// The rate of dropout before the adapters, in training.
    pub(crate) fn adapter_dropout(&self) -> f64 {
        self.adapter
            .as_ref()
            .map_or(0.0, |adapter| adapter.plan.dropout)
    }

    /// The same with other tensors in the place of each.
    fn with_tensors(&self, change: fn(&Tensor) -> Tensor) -> Self {
        let adapter = self.adapter.as_ref().map(|adapter| adapter.map(change));
        let (shape, params) = (self.shape.clone(), map(&self.params, change));
        Self::from_params(shape, self.head, self.reward_shift, params, adapter)
    }
}

fn map(
    tensors: &BTreeMap<String, Tensor>,
    change: fn(&Tensor) -> Tensor,
) -> BTreeMap<String, Tensor> {
    let all = tensors.iter();
    all.map(|(name, tensor)| (name.clone(), change(tensor)))
        .collect()
}

fn copy(tensor: &Tensor) -> Tensor {
    tensor.detach().copy()
}
