//! What an optimizer trains, and how that is cut among ranks.

use std::collections::BTreeMap;

use model::{Bucket, Model, Slice, block_of};
use tch::Tensor;

use crate::exchange::Division;

/// Parameters by name, and of those that models keep divided ([`Model::sharded`]) what this rank keeps.
#[derive(Debug, Default)]
pub struct Trained {
    pub(crate) params: BTreeMap<String, Tensor>,
    pub(crate) kept: BTreeMap<String, Tensor>,
}

impl From<&BTreeMap<String, Tensor>> for Trained {
    fn from(params: &BTreeMap<String, Tensor>) -> Self {
        let shared = |(name, param): (&String, &Tensor)| (name.clone(), param.shallow_clone());
        Self {
            params: params.iter().map(shared).collect(),
            kept: BTreeMap::new(),
        }
    }
}

/// What is trained of models, whose shared parameters count once; all of it collects gradients from now on.
impl From<&[&Model]> for Trained {
    fn from(models: &[&Model]) -> Self {
        let mut trained = Self::default();
        for model in models {
            model.set_trainable(true);
            trained.params.extend(model.trainable());
            trained.kept.extend(model.kept_slices());
        }
        trained
            .kept
            .retain(|name, _| trained.params.contains_key(name));
        trained
    }
}

/// The buckets of what is trained, and what this rank keeps of each parameter, in the parameters' order.
#[derive(Debug)]
pub(crate) struct Cut {
    pub(crate) buckets: Vec<Bucket>,
    slices: Vec<Slice>,
}

impl Cut {
    pub(crate) fn of(trained: &Trained, division: &Division) -> Self {
        let described = trained.params.iter();
        let described: Vec<(Option<usize>, usize)> = described
            .map(|(name, param)| (block_of(name), param.numel()))
            .collect();
        let buckets = Bucket::of(&described, division.slices());
        let slices = buckets.iter().flat_map(|b| b.slices(division.slice()));
        let mut slices: Vec<Slice> = slices.collect();
        slices.sort_by_key(|slice| slice.index);
        Self { buckets, slices }
    }

    /// Each parameter with its name, what this rank keeps of it (the parameter itself, where nothing is divided), and the
    /// number of it that this begins with.
    pub(crate) fn kept<'a>(
        &'a self,
        trained: &'a Trained,
        division: &'a Division,
    ) -> impl Iterator<Item = (&'a str, &'a Tensor, Tensor, usize)> {
        let all = trained.params.iter().zip(&self.slices);
        all.map(move |((name, param), slice)| {
            let kept = match trained.kept.get(name) {
                Some(kept) => kept.shallow_clone(),
                None if division.slices() == 1 => param.shallow_clone(),
                None => slice.of_tensor(param),
            };
            assert_eq!(kept.numel(), slice.numbers.len(), "the slice of {name}");
            (name.as_str(), param, kept, slice.numbers.start)
        })
    }
}
