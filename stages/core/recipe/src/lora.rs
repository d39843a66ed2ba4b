//! Low-rank adapters (Hu et al. 2021): which matrices get one, of what rank, and the table that says it.
//!
//! Shape suffixes: r rank, i inputs of a matrix, o its outputs.

use serde::{Deserialize, Serialize};

use crate::nearest;
use crate::plan::{PpoLora, Quantization, RewardSource, Source, StagePlan, Task};
use crate::reader::{Outcome, Range, Reader};
use crate::references::Resolver;
use crate::shape::ModelShape;
use crate::tensors::{Init, Matrix, TensorSpec, matrices};
use crate::training::QUANTIZATIONS;

/// Adapters on some matrices of every block: `y = W x + scale B A x`, where the model's own weights are
/// frozen and `A` (`[r, i]`) and `B` (`[o, r]`) are trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraPlan {
    /// Rank of the adapters.
    pub r: usize,
    /// What [`Self::scale`] is made of.
    pub alpha: f64,
    /// Dropout on what enters `A`.
    pub dropout: f64,
    /// The scale is `alpha / sqrt(r)` (Kalajdzievski 2023), not `alpha / r`.
    pub rslora: bool,
    /// The matrices, by their names within a block of the model, such as `self_attn.q_proj`; sorted.
    pub target_modules: Vec<String>,
}

/// The target that stands for every matrix of the blocks.
pub const ALL_LINEAR: &str = "all-linear";
/// Ends the name of `A` in place of the matrix's `weight`, as in peft.
pub const LORA_A: &str = "lora_A.weight";
/// Ends the name of `B`.
pub const LORA_B: &str = "lora_B.weight";

impl LoraPlan {
    /// What `B A x` is multiplied by.
    pub fn scale(&self) -> f64 {
        let rank = self.r as f64;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }

    /// All tensors of the adapters of a model: `BLOCK.LAYER.MATRIX.lora_A.weight`, and `lora_B`. `A`
    /// starts as in peft, uniform within one over the root of its inputs (He et al. 2015 with a = sqrt 5),
    /// and `B` at zero: new adapters change nothing.
    pub fn tensors(&self, shape: &ModelShape) -> Vec<TensorSpec> {
        let block = shape.names().block;
        let rank = self.r as i64;
        let adapted: Vec<Matrix> = matrices(shape)
            .into_iter()
            .filter(|matrix| self.target_modules.iter().any(|name| name == matrix.name))
            .collect();
        let of_layer = |layer: usize| {
            adapted.iter().flat_map(move |matrix| {
                let name = |end: &str| format!("{block}.{layer}.{}.{end}", matrix.name);
                let bound = 1.0 / (matrix.inputs as f64).sqrt();
                [
                    TensorSpec {
                        name: name(LORA_A),
                        dims: vec![rank, matrix.inputs as i64],
                        init: Init::Uniform(bound),
                    },
                    TensorSpec {
                        name: name(LORA_B),
                        dims: vec![matrix.outputs as i64, rank],
                        init: Init::Zeros,
                    },
                ]
            })
        };
        (0..shape.layers).flat_map(of_layer).collect()
    }

    /// Numbers in the adapters of a model.
    pub fn num_parameters(&self, shape: &ModelShape) -> u64 {
        let numbers = |spec: &TensorSpec| spec.dims.iter().map(|n| *n as u64).product::<u64>();
        self.tensors(shape).iter().map(numbers).sum()
    }
}

/// The names of a block's matrices, any of which can have an adapter.
pub fn matrix_names(shape: &ModelShape) -> Vec<&'static str> {
    matrices(shape).iter().map(|matrix| matrix.name).collect()
}

/// Reads the table `lora`, where there is one, for a model of this shape.
pub(crate) fn lora(reader: &Reader<'_>, shape: &ModelShape) -> Outcome<Option<LoraPlan>> {
    if reader.table.get("lora").is_none() {
        return Ok(None);
    }
    Ok(Some(LoraPlan {
        r: reader.count("lora.r", 1)?,
        alpha: reader.number("lora.alpha", Range::POSITIVE)?,
        // Sampled and recomputed log-probabilities of PPO must agree: nothing is dropped there.
        dropout: match reader.kind {
            "ppo" => 0.0,
            _ => reader.number("lora.dropout", Range::RATE)?,
        },
        rslora: reader.flag("lora.rslora")?,
        target_modules: targets(reader, shape)?,
    }))
}

/// How the frozen matrices under adapters are kept (Dettmers et al. 2023).
pub(crate) fn under_adapters(reader: &Reader<'_>) -> Outcome<Option<Quantization>> {
    let quantize = reader.choice_or_off("quantize", QUANTIZATIONS)?;
    if quantize.is_none() || reader.table.get("lora").is_some() {
        return Ok(quantize);
    }
    let message =
        "needs lora: without adapters all weights are trained, and those of few bits cannot be";
    let hint = match reader.kind {
        "ppo" => {
            "add lora = { r = 8 }, or quantise only what is frozen: reference = { quantize = \"int8\" } and \
             reward = [{ model = \"stage:NAME\", quantize = \"int8\" }]"
        }
        _ => "add lora = { r = 8 }, or leave quantize out",
    };
    Err(reader.problem("quantize", message, hint))
}

/// The matrices that `lora.target_modules` names in a model of this shape.
fn targets(reader: &Reader<'_>, shape: &ModelShape) -> Outcome<Vec<String>> {
    let key = "lora.target_modules";
    let all = matrices(shape);
    let mut chosen = Vec::new();
    for word in reader.words(key, ALL_LINEAR)? {
        let fits = |matrix: &&Matrix| word == ALL_LINEAR || matrix.is_called(&word);
        let before = chosen.len();
        chosen.extend(all.iter().filter(fits).map(|matrix| matrix.name.to_owned()));
        if chosen.len() == before {
            let known: Vec<&str> = all.iter().flat_map(Matrix::words).collect();
            let family = shape.family.model_type();
            let message = format!("a block of {family} has no matrix called {word:?}");
            let hint = nearest::hint(&word, &[&known[..], &[ALL_LINEAR]].concat(), "names");
            return Err(reader.problem(key, message, hint));
        }
    }
    chosen.sort();
    chosen.dedup();
    Ok(chosen)
}

/// The table `lora` of a ppo stage, for its policy and its value model.
pub(crate) fn ppo_lora(
    reader: &Reader<'_>,
    resolver: &Resolver,
    (model, shape): (&Source, &ModelShape),
    (reward, value_shape): (&[RewardSource], &ModelShape),
) -> Outcome<Option<PpoLora>> {
    let Some(policy) = lora(reader, shape)? else {
        return Ok(None);
    };
    let share_backbone = reader.flag("lora.share_backbone")?;
    let own = LoraPlan {
        target_modules: targets(reader, value_shape)?,
        ..policy.clone()
    };
    let shared = if share_backbone {
        shared_adapters(reader, resolver, model, reward)?
    } else {
        None
    };
    Ok(Some(PpoLora {
        value: shared.unwrap_or(own),
        policy,
        share_backbone,
    }))
}

/// The adapters of the first reward model, where every reward model is adapters on the policy's start: all of
/// them then read the policy's ids.
fn shared_adapters(
    reader: &Reader<'_>,
    resolver: &Resolver,
    model: &Source,
    reward: &[RewardSource],
) -> Outcome<Option<LoraPlan>> {
    let mut first = None;
    for source in reward {
        let stage = match &source.model {
            Source::Stage { name } => resolver.stage(name),
            Source::Path { .. } | Source::Hub { .. } => None,
        };
        let lora = match stage.map(|StagePlan { task, .. }| task) {
            Some(Task::Reward(plan)) if plan.model == *model => plan.lora.clone(),
            _ => None,
        };
        let Some(lora) = lora else {
            let message = "needs reward models that are adapters on what the policy starts from";
            let hint = "name reward stages with a table lora and this stage's model, or leave \
                        share_backbone out";
            return Err(reader.problem("lora.share_backbone", message, hint));
        };
        first.get_or_insert(LoraPlan {
            dropout: 0.0,
            ..lora
        });
    }
    Ok(first)
}
