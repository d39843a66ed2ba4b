//! A model whose blocks are divided among ranks: each keeps a part of their weights, and has a block whole for as long as
//! a pass goes through it (`ZeRO` 3: Rajbhandari et al. 2020; `FullyShardedDataParallel`: Zhao et al. 2023).
//!
//! What is before and behind the blocks is whole on every rank, and so are codes and adapters. A training pass takes the
//! blocks one by one (`tape`), the next one on its way meanwhile; whatever reads weights otherwise (sampling, scoring, saving)
//! holds the model [whole](Model::whole) meanwhile. All ranks ask for the same in the same order.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::{self, Debug, Formatter};
use std::rc::Rc;

use tch::{Tensor, no_grad};
use torch_ext::{Group, Lent, Pending};

use crate::ModelError;
use crate::bucket::{Bucket, block_of};
use crate::parameters::{Parameters, copy};
use crate::transformer::Model;

/// The weights of a model's blocks, of which this rank keeps a part.
pub(crate) struct Shards {
    group: Rc<Group>,
    /// What the indices of buckets stand for.
    names: Vec<String>,
    blocks: Vec<BlockShards>,
    /// How many need all blocks whole.
    holders: Cell<usize>,
}

#[derive(Debug)]
struct BlockShards {
    buckets: Vec<Shard>,
    /// Where its memory has been taken and is being filled.
    coming: RefCell<Vec<Pending>>,
}

#[derive(Debug)]
struct Shard {
    bucket: Bucket,
    /// `[n]`, of which the block's parameters are parts.
    whole: Lent,
    /// `[c]`, what this rank keeps.
    own_c: Tensor,
}

impl Debug for Shards {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} blocks of {:?}",
            self.blocks.len(),
            self.group.member()
        )
    }
}

impl Shards {
    /// Cuts the tensors of blocks among `dense`, which are whole, and puts parts of buckets in their place.
    fn cut(dense: &mut BTreeMap<String, Tensor>, group: Rc<Group>) -> Self {
        let member = group.member();
        let of_block = |(name, tensor): (&String, &Tensor)| (block_of(name), tensor.numel());
        let described: Vec<(Option<usize>, usize)> = dense.iter().map(of_block).collect();
        let names: Vec<String> = dense.keys().cloned().collect();
        let mut shards = Self {
            group,
            names,
            blocks: Vec::new(),
            holders: Cell::new(0),
        };
        for bucket in Bucket::of(&described, member.size) {
            let Some(block) = bucket.part() else { continue };
            let whole = Lent::new(bucket.numel(), kind_of(dense), member.device);
            for (index, mut place) in bucket.places(whole.flat()) {
                let tensor = dense.get_mut(&shards.names[index]);
                let tensor = tensor.unwrap_or_else(|| unreachable!("it was described"));
                place.copy_(&tensor.detach().reshape([-1]));
                *tensor = part(&place, &tensor.size());
            }
            let own_c = bucket.part_of(whole.flat(), member.rank).copy();
            given_back(&whole);
            shards.push(block, bucket, whole, own_c);
        }
        shards
    }

    /// The same numbers in memory of their own; `dense` has the tensors of all names, and gets other ones.
    fn copy(&self, dense: &mut BTreeMap<String, Tensor>) -> Self {
        let mut shards = Self {
            group: Rc::clone(&self.group),
            names: self.names.clone(),
            blocks: Vec::new(),
            holders: Cell::new(0),
        };
        let kind = kind_of(dense);
        for (block, shard) in self.all() {
            let whole = Lent::new(shard.bucket.numel(), kind, self.group.member().device);
            for (index, place) in shard.bucket.places(whole.flat()) {
                // A table that the shape has lost is in the bucket alone.
                if let Some(tensor) = dense.get_mut(&self.names[index]) {
                    *tensor = part(&place, &tensor.size());
                }
            }
            given_back(&whole);
            shards.push(block, shard.bucket.clone(), whole, shard.own_c.copy());
        }
        shards
    }

    fn push(&mut self, block: usize, bucket: Bucket, whole: Lent, own_c: Tensor) {
        while self.blocks.len() <= block {
            self.blocks.push(BlockShards {
                buckets: Vec::new(),
                coming: RefCell::default(),
            });
        }
        self.blocks[block].buckets.push(Shard {
            bucket,
            whole,
            own_c,
        });
    }

    fn all(&self) -> impl Iterator<Item = (usize, &Shard)> {
        let blocks = self.blocks.iter().enumerate();
        blocks.flat_map(|(block, shards)| shards.buckets.iter().map(move |shard| (block, shard)))
    }

    /// Takes a block's memory, and lets the ranks' parts come into it. Nothing to do where it is there.
    fn begin(&self, block: usize) -> Result<(), ModelError> {
        let shards = &self.blocks[block];
        let mut coming = shards.coming.borrow_mut();
        for shard in shards.buckets.iter().filter(|shard| !shard.whole.is_here()) {
            shard.whole.take()?;
            coming.push(self.group.all_gather(shard.whole.flat(), &shard.own_c)?);
        }
        Ok(())
    }

    fn end(&self, block: usize) -> Result<(), ModelError> {
        // All of it ends before an error is told: what is on its way writes into the block's memory.
        let coming = self.blocks[block].coming.take().into_iter();
        let ended: Vec<_> = coming.map(Pending::wait).collect();
        ended.into_iter().collect::<Result<Vec<()>, _>>()?;
        Ok(())
    }

    fn release(&self, block: usize) {
        if self.holders.get() > 0 {
            return;
        }
        // What is on its way must come, or it would write into memory that is another's. Where it fails it may still come.
        if self.end(block).is_err() {
            return;
        }
        for shard in &self.blocks[block].buckets {
            given_back(&shard.whole);
        }
    }

    fn is_whole(&self) -> bool {
        self.holders.get() > 0
    }
}

/// To give memory back fails where libtorch has no allocator for it, and this has.
fn given_back(whole: &Lent) {
    whole
        .give_back()
        .unwrap_or_else(|error| panic!("memory of a block: {error}"));
}

/// A parameter at its place in a bucket: without the history of the place, so that a graph that has kept it does not mind that
/// the bucket is filled anew.
fn part(place: &Tensor, size: &[i64]) -> Tensor {
    place.view(size).data()
}

fn kind_of(dense: &BTreeMap<String, Tensor>) -> tch::Kind {
    dense.values().next().map_or(tch::Kind::Float, Tensor::kind)
}

impl Parameters {
    /// A copy that shares no memory but that of codes, which never change.
    pub(crate) fn deep_copy(&self) -> Self {
        let mut copied = self.map(Tensor::shallow_clone);
        copied.adapter = self.adapter.as_ref().map(|adapter| adapter.map(copy));
        copied.shards = self
            .shards
            .as_ref()
            .map(|shards| no_grad(|| shards.copy(&mut copied.dense)).into());
        for (name, tensor) in &mut copied.dense {
            if self.shards.is_none() || block_of(name).is_none() {
                *tensor = copy(tensor);
            }
        }
        copied
    }
}

/// A model that is whole for as long as this lives.
#[derive(Debug)]
#[must_use = "the model is whole for as long as this lives"]
pub struct Whole(Option<Rc<Shards>>);

impl Drop for Whole {
    fn drop(&mut self) {
        if let Some(shards) = &self.0 {
            shards.holders.set(shards.holders.get() - 1);
            for block in 0..shards.blocks.len() {
                shards.release(block);
            }
        }
    }
}

impl Model {
    /// This model, of which each rank of `group` keeps a part, and this process its own.
    #[must_use]
    pub fn sharded(self, group: Rc<Group>) -> Self {
        let (shape, head, shift) = (self.shape.clone(), self.head, self.reward_shift);
        let mut parameters = self.into_parameters();
        let shards = no_grad(|| Shards::cut(&mut parameters.dense, group));
        parameters.shards = Some(Rc::new(shards));
        Self::from_parameters(shape, head, shift, parameters)
    }

    /// Brings the whole model together on every rank, where it is [divided](Self::sharded), until the result is
    /// dropped.
    ///
    /// # Errors
    /// Where another rank fails, or there is no memory for it.
    pub fn whole(&self) -> Result<Whole, ModelError> {
        let Some(shards) = &self.parameters.shards else {
            return Ok(Whole(None));
        };
        shards.holders.set(shards.holders.get() + 1);
        // From here on dropped on the way out, too.
        let whole = Whole(Some(Rc::clone(shards)));
        for block in 0..shards.blocks.len() {
            shards.begin(block)?;
        }
        for block in 0..shards.blocks.len() {
            shards.end(block)?;
        }
        Ok(whole)
    }

    /// What this rank keeps of parameters that are divided, by name, flat. The others are whole.
    pub fn kept_slices(&self) -> BTreeMap<String, Tensor> {
        let mut kept = BTreeMap::new();
        if let Some(shards) = &self.parameters.shards {
            let rank = shards.group.member().rank;
            for (_, shard) in shards.all() {
                for slice in shard.bucket.slices(rank) {
                    let name = shards.names[slice.index].clone();
                    kept.insert(name, slice.of_part(&shard.own_c));
                }
            }
        }
        kept
    }

    /// Takes over those of `tensors` that are divided here.
    pub(crate) fn keep_slices_of(&self, tensors: &BTreeMap<String, Tensor>) {
        let Some(shards) = &self.parameters.shards else {
            return;
        };
        let rank = shards.group.member().rank;
        for (_, shard) in shards.all() {
            for slice in shard.bucket.slices(rank) {
                if let Some(theirs) = tensors.get(&shards.names[slice.index]) {
                    slice.of_part(&shard.own_c).copy_(&slice.of_tensor(theirs));
                }
            }
        }
    }

    /// A block is about to be computed: it must be there, and `next` comes on its way meanwhile.
    pub(crate) fn enter(&self, block: usize, next: Option<usize>) -> Result<(), ModelError> {
        let Some(shards) = &self.parameters.shards else {
            return Ok(());
        };
        shards.begin(block)?;
        shards.end(block)?;
        next.map_or(Ok(()), |next| shards.begin(next))
    }

    /// A block has been computed.
    pub(crate) fn leave(&self, block: usize) {
        if let Some(shards) = &self.parameters.shards {
            shards.release(block);
        }
    }

    /// # Panics
    /// When the model is divided and nobody holds it whole.
    pub(crate) fn assert_whole(&self) {
        let is_whole = self.parameters.shards.as_ref().is_none_or(|s| s.is_whole());
        assert!(
            is_whole,
            "a model that is divided is read where it is held whole"
        );
    }
}
