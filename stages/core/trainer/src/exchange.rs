//! The sums of gradients over ranks, bucket by bucket, while the backward pass goes on.
//!
//! Where nothing is sharded every rank has every sum in the end; else each has that of its slices
//! ([`Bucket`]).

use std::collections::VecDeque;
use std::rc::Rc;

use model::Bucket;
use recipe::plan::Sharding;
use tch::{Device, Kind, Tensor};
use torch_ext::{Pending, Reduction};

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
            Sharding::Optimizer | Sharding::Gradients | Sharding::Parameters => self.ranks.size(),
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
    /// Buckets on their way, the oldest first.
    coming: VecDeque<Coming>,
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
    /// Whether the present pass's gradients have been sent.
    is_sent: bool,
}

/// A bucket on its way, and what will hold its sum.
#[derive(Debug)]
struct Coming {
    bucket: usize,
    made: Tensor,
    pending: Pending,
}

/// Buckets that are on their way at a time, at most: so many gradients are whole where each rank keeps a part of them.
const MOST_COMING: usize = 2;

impl Exchange {
    /// For parameters in these buckets, whose gradients are summed in `kind`.
    pub(crate) fn new(
        division: Division,
        buckets: Vec<Bucket>,
        kind: Kind,
        device: Device,
    ) -> Self {
        Self {
            lanes: buckets.iter().map(|_| Lane::default()).collect(),
            coming: VecDeque::new(),
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
        let of_part = |index: &usize| self.buckets[*index].part() == part;
        self.not_sent().filter(of_part).collect()
    }

    /// All buckets that are not on their way.
    pub(crate) fn not_sent(&self) -> impl Iterator<Item = usize> {
        (0..self.buckets.len()).filter(|index| !self.lanes[*index].is_sent)
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
        let options = (self.kind, self.device);
        let whole = bucket.pack(options, grad);
        let begun = match self.division.sharding {
            Sharding::None => {
                let begun = group.all_reduce(&whole, Reduction::Sum);
                begun.map(|pending| (whole, pending))
            }
            Sharding::Optimizer | Sharding::Gradients | Sharding::Parameters => {
                let part = Tensor::zeros([bucket.part_numel() as i64], options);
                let begun = group.reduce_scatter(&part, &whole);
                begun.map(|pending| (part, pending))
            }
        };
        let (made, pending) = begun.map_err(|error| self.division.ranks.explain(&error))?;
        self.lanes[index].is_sent = true;
        self.coming.push_back(Coming {
            bucket: index,
            made,
            pending,
        });
        self.wait(MOST_COMING)
    }

    /// Waits until no more than so many buckets are on their way, and adds up what has come.
    fn wait(&mut self, most: usize) -> Result<(), TrainerError> {
        while self.coming.len() > most
            && let Some(coming) = self.coming.pop_front()
        {
            self.division.ranks.wait(Ok(coming.pending))?;
            match &mut self.lanes[coming.bucket].sum {
                Some(sum) => drop(sum.f_add_(&coming.made)?),
                none => *none = Some(coming.made),
            }
        }
        Ok(())
    }

    /// Ends a backward pass: waits for what is on its way, and adds it up.
    pub(crate) fn end_pass(&mut self) -> Result<(), TrainerError> {
        self.has_kept = self.lanes.iter().any(|lane| !lane.is_sent);
        self.passes_left = self.passes_left.saturating_sub(1);
        for lane in &mut self.lanes {
            lane.is_sent = false;
        }
        self.wait(0)
    }

    /// The sums: of each parameter this rank's slice (all of it, where nothing is sharded), flat, in the parameters' order.
    pub(crate) fn sums(&self) -> Vec<Tensor> {
        let slice = self.division.slice();
        let mut all: Vec<(usize, Tensor)> = Vec::new();
        for (bucket, lane) in self.buckets.iter().zip(&self.lanes) {
            if let Some(sum) = &lane.sum {
                let slices = bucket.slices(slice);
                all.extend(slices.map(|slice| (slice.index, slice.of_part(sum))));
            }
        }
        all.sort_by_key(|(index, _)| *index);
        all.into_iter().map(|(_, sum)| sum).collect()
    }

    /// Whether gradients of an earlier pass wait to be sent.
    pub(crate) fn has_kept(&self) -> bool {
        self.has_kept
    }

    /// Among whom.
    pub(crate) fn ranks(&self) -> &Ranks {
        &self.division.ranks
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
        self.coming.clear();
        self.passes_left = 0;
        self.has_kept = false;
    }

    /// Makes every rank's parameters whole again, of which each has changed its slices; not those that are `None`.
    pub(crate) fn gather<'a>(
        &self,
        param: impl Fn(usize) -> Option<&'a Tensor>,
    ) -> Result<(), TrainerError> {
        let Some(group) = self.division.ranks.group() else {
            return Ok(());
        };
        if self.is_whole() {
            return Ok(());
        }
        for bucket in &self.buckets {
            let Some(first) = bucket.indices().find_map(&param) else {
                continue;
            };
            let whole = bucket.pack((first.kind(), self.device), |_| None);
            let part = bucket.part_of(&whole, self.division.slice()).copy();
            for slice in bucket.slices(self.division.slice()) {
                if let Some(param) = param(slice.index) {
                    slice.of_part(&part).copy_(&slice.of_tensor(param));
                }
            }
            self.division.ranks.wait(group.all_gather(&whole, &part))?;
            for (index, place) in bucket.places(&whole) {
                if let Some(param) = param(index) {
                    param.detach().view([-1]).copy_(&place);
                }
            }
        }
        Ok(())
    }
}
