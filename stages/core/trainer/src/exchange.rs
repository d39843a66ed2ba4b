//! The sums of gradients over ranks, bucket by bucket, while the backward pass goes on.
//!
//! Where nothing is sharded every rank has every sum in the end; else each has that of its slices
//! (`buckets`).

use std::rc::Rc;

use recipe::plan::Sharding;
use tch::{Device, Kind, Tensor};
use torch_ext::{Pending, Reduction};

use crate::buckets::Bucket;
use crate::error::TrainerError;
use crate::ranks::Ranks;

/// How a model's training is divided.
#[derive(Debug, Clone)]
pub struct Division {
    /// Among whom.
    pub ranks: Rc<Ranks>,
    /// What each keeps a part of.
    pub sharding: Sharding,
}

impl Division {
    /// One process that does all.
    pub fn none() -> Self {
        Self {
            ranks: Rc::new(Ranks::alone()),
            sharding: Sharding::None,
        }
    }

    /// As many slices as tensors are cut into.
    pub(crate) fn slices(&self) -> usize {
        match self.sharding {
            Sharding::None => 1,
            Sharding::Optimizer | Sharding::Gradients => self.ranks.size(),
        }
    }

    /// The slice that this rank keeps.
    pub(crate) fn slice(&self) -> usize {
        self.ranks.rank() % self.slices()
    }
}

/// The buckets of a list of parameters, and what is on its way.
#[derive(Debug)]
pub(crate) struct Exchange {
    division: Division,
    buckets: Vec<Bucket>,
    lanes: Vec<Lane>,
    kind: Kind,
    device: Device,
    /// Backward passes until the update, where that is known.
    passes_left: usize,
    /// The gradients of a pass have stayed where they were made.
    has_kept: bool,
}

/// The state of a bucket.
#[derive(Debug, Default)]
struct Lane {
    /// What was summed so far: of a slice, or of whole tensors.
    sum: Option<Tensor>,
    /// The pass that is on its way: what will hold its sum.
    sent: Option<(Tensor, Pending)>,
}

impl Exchange {
    /// For parameters of these parts and sizes, whose gradients are summed in `kind`.
    pub(crate) fn new(
        division: Division,
        params: &[(Option<usize>, usize)],
        kind: Kind,
        device: Device,
    ) -> Self {
        let buckets = Bucket::of(params, division.slices());
        Self {
            lanes: buckets.iter().map(|_| Lane::default()).collect(),
            division,
            buckets,
            kind,
            device,
            passes_left: 0,
            has_kept: false,
        }
    }

    /// Says that the update comes after so many backward passes.
    pub(crate) fn expect(&mut self, passes: usize) {
        self.passes_left = passes;
    }

    /// Whether the pass that is under way is summed as it goes: always where gradients are sharded, so that none is kept
    /// whole; else once, at the end.
    pub(crate) fn is_due(&self) -> bool {
        self.division.sharding >= Sharding::Gradients || self.passes_left == 1
    }

    /// The buckets of a part that are not on their way.
    pub(crate) fn waiting(&self, part: Option<usize>) -> Vec<usize> {
        let of_part = |index: &usize| self.buckets[*index].part == part;
        self.not_sent().filter(of_part).collect()
    }

    /// All buckets that are not on their way.
    pub(crate) fn not_sent(&self) -> impl Iterator<Item = usize> {
        (0..self.buckets.len()).filter(|index| self.lanes[*index].sent.is_none())
    }

    /// The parameters of a bucket.
    pub(crate) fn params(&self, bucket: usize) -> Vec<usize> {
        self.buckets[bucket].indices().collect()
    }

    /// Sends the gradients of a bucket, of which those that are `None` count as zeros.
    pub(crate) fn send<'a>(
        &mut self,
        index: usize,
        grad: impl Fn(usize) -> Option<&'a Tensor>,
    ) -> Result<(), TrainerError> {
        let Some(group) = self.division.ranks.group() else {
            return Ok(());
        };
        let bucket = &self.buckets[index];
        let whole = bucket.whole(self.kind, self.device);
        bucket.pack(&whole, grad);
        let sent = match self.division.sharding {
            Sharding::None => {
                let begun = group.all_reduce(&whole, Reduction::Sum);
                begun.map(|pending| (whole, pending))
            }
            Sharding::Optimizer | Sharding::Gradients => {
                let part = bucket.part(self.kind, self.device);
                let begun = group.reduce_scatter(&part, &whole);
                begun.map(|pending| (part, pending))
            }
        };
        self.lanes[index].sent = Some(sent.map_err(|error| self.division.ranks.explain(&error))?);
        Ok(())
    }

    /// Ends a backward pass: waits for what is on its way, and adds it up.
    pub(crate) fn end_pass(&mut self) -> Result<(), TrainerError> {
        self.has_kept = self.lanes.iter().any(|lane| lane.sent.is_none());
        self.passes_left = self.passes_left.saturating_sub(1);
        for lane in &mut self.lanes {
            if let Some((made, pending)) = lane.sent.take() {
                self.division.ranks.wait(Ok(pending))?;
                match &mut lane.sum {
                    Some(sum) => drop(sum.f_add_(&made)?),
                    None => lane.sum = Some(made),
                }
            }
        }
        Ok(())
    }

    /// The sums: of each parameter this rank's slice (all of it, where nothing is sharded), flat, in the parameters' order.
    pub(crate) fn sums(&self) -> Vec<Tensor> {
        let slice = self.division.slice();
        let mut all: Vec<(usize, Tensor)> = Vec::new();
        for (bucket, lane) in self.buckets.iter().zip(&self.lanes) {
            if let Some(sum) = &lane.sum {
                all.extend(bucket.slices(sum, slice));
            }
        }
        all.sort_by_key(|(index, _)| *index);
        all.into_iter().map(|(_, sum)| sum).collect()
    }

    /// Whether gradients of an earlier pass wait to be sent.
    pub(crate) fn has_kept(&self) -> bool {
        self.has_kept
    }

    /// Whether every rank has whole sums.
    pub(crate) fn is_whole(&self) -> bool {
        self.division.sharding == Sharding::None
    }

    /// Forgets the sums, and frees them.
    pub(crate) fn clear(&mut self) {
        for lane in &mut self.lanes {
            *lane = Lane::default();
        }
        self.passes_left = 0;
        self.has_kept = false;
    }

    /// Makes every rank's `params` whole again, of which each has changed its slices.
    pub(crate) fn gather(&self, params: &[Tensor]) -> Result<(), TrainerError> {
        let (Some(group), Some(first)) = (self.division.ranks.group(), params.first()) else {
            return Ok(());
        };
        if self.division.sharding == Sharding::None {
            return Ok(());
        }
        let kind = first.kind();
        for bucket in &self.buckets {
            let (whole, part) = (
                bucket.whole(kind, self.device),
                bucket.part(kind, self.device),
            );
            for (index, mut slice) in bucket.slices(&part, self.division.slice()) {
                slice.copy_(&slice_tensor(&params[index], &self.division));
            }
            let begun = group.all_gather(&whole, &part);
            self.division.ranks.wait(begun)?;
            bucket.unpack(&whole, |index| &params[index]);
        }
        Ok(())
    }
}

/// This rank's slice of a tensor, flat; it shares the memory.
pub(crate) fn slice_tensor(tensor: &Tensor, division: &Division) -> Tensor {
    let range = crate::buckets::slice_of(tensor.numel(), division.slice(), division.slices());
    let flat = tensor.detach().view([-1]);
    flat.narrow(0, range.start as i64, range.len() as i64)
}
