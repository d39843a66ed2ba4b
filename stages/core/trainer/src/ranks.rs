//! The processes that run a stage together, each with its share of every batch.
//!
//! All of them read the same data in the same order and make the same decisions; what they do not share is the work.
//! Sums and decisions that depend on a share go through here, so that the rest of a stage reads as if it were alone.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use runtime::ranks::Place;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tch::{Device, Kind, Tensor};
use torch_ext::{Group, Member, Pending, Reduction, Store, TorchError};

use crate::error::TrainerError;
use crate::identity::{self, Identity};
use crate::rank_error::RankError;

/// How long ranks wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For all to be there, at the start.
    pub join: Duration,
    /// For all to come to the same operation.
    pub operation: Duration,
}

static LOST: AtomicBool = AtomicBool::new(false);

/// Whether communication with other ranks has failed in this process: what follows from it is not its own fault.
pub fn lost_others() -> bool {
    LOST.load(Ordering::SeqCst)
}

/// The ranks of a job, of which this process is one; alone it is the one of one.
#[derive(Debug)]
pub struct Ranks {
    rank: usize,
    size: usize,
    link: Option<Link>,
}

#[derive(Debug)]
struct Link {
    store: Store,
    group: Rc<Group>,
    device: Device,
    /// What this rank does now, for errors.
    doing: RefCell<String>,
}

impl Ranks {
    /// One process.
    pub fn alone() -> Self {
        Self {
            rank: 0,
            size: 1,
            link: None,
        }
    }

    /// Meets the other ranks, which must have the same `identity`. Whom this rank finds at another stage it leaves
    /// there, and looks again.
    ///
    /// # Errors
    /// Where the first rank cannot be reached or others do not come in time; an identity that differs.
    pub fn join(
        place: &Place,
        device: Device,
        identity: Identity<'_>,
        patience: Patience,
    ) -> Result<Self, TrainerError> {
        let (rank, size) = (place.rank, place.size);
        let unreachable = |source| {
            lost(RankError::Join {
                rank,
                size,
                host: place.host.clone(),
                port: place.port,
                seconds: patience.join.as_secs(),
                source,
            })
        };
        let end = Instant::now() + patience.join;
        let mut left = patience.join;
        let store = loop {
            let store =
                Store::open(&place.host, place.port, rank == 0, left).map_err(unreachable)?;
            match identity::check(&store, place, identity, left) {
                Ok(()) => break store,
                // The store of the stage before went with those who were at it.
                Err(error) if rank > 0 && !is_refusal(&error) && Instant::now() < end => {
                    thread::sleep(LOOK_AGAIN);
                    left = end.saturating_duration_since(Instant::now());
                    left = left.max(LOOK_AGAIN);
                }
                Err(error) => return Err(error),
            }
        };
        LOST.store(false, Ordering::SeqCst);
        let member = Member {
            rank,
            size,
            device,
            timeout: patience.operation,
        };
        let group = Group::open(&store, "all", member).map_err(unreachable)?;
        let link = Link {
            store,
            group: Rc::new(group),
            device,
            doing: RefCell::new("the start".to_owned()),
        };
        let ranks = Self {
            rank,
            size,
            link: Some(link),
        };
        ranks.at("the start");
        ranks.barrier()?;
        tracing::info!(
            rank,
            size,
            host = place.host,
            port = place.port,
            "all ranks are here"
        );
        Ok(ranks)
    }

    /// This process, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Processes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The one that writes what all have made.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// What this rank does from now on, in words (`step 12`): what errors of others say of it.
    pub fn at(&self, place: &str) {
        if let Some(link) = &self.link {
            place.clone_into(&mut link.doing.borrow_mut());
            // A store that is gone shows in the next operation.
            let _ = link.store.set(&doing_key(self.rank), place);
        }
    }

    /// This rank's share of items that are in an order of growing cost: as many as any other's (or one more), and about
    /// as costly.
    pub fn share<T: Clone>(&self, items: &[T]) -> Vec<T> {
        let is_own = |(index, _): &(usize, &T)| self.owner(*index) == self.rank;
        let own = items.iter().enumerate().filter(is_own);
        own.map(|(_, item)| item.clone()).collect()
    }

    /// The number of this rank's micro-batch among those of all, for what is drawn of it.
    pub fn number(&self, micro_batch: usize) -> u64 {
        (micro_batch * self.size + self.rank) as u64
    }

    /// To whom the item at this place belongs: dealt out forth and back.
    fn owner(&self, index: usize) -> usize {
        let (turn, place) = (index / self.size, index % self.size);
        if turn.is_multiple_of(2) {
            place
        } else {
            self.size - 1 - place
        }
    }

    /// Everybody's items, in the order that [`Self::share`] was given, from everybody's share.
    ///
    /// # Errors
    /// Where a rank is gone or does not come.
    pub fn gather<T: Serialize + DeserializeOwned>(
        &self,
        share: Vec<T>,
    ) -> Result<Vec<T>, TrainerError> {
        let shares = self.exchange(share)?;
        let total = shares.iter().map(Vec::len).sum();
        let mut shares: Vec<_> = shares.into_iter().map(Vec::into_iter).collect();
        let in_order = (0..total).filter_map(|index| shares[self.owner(index)].next());
        Ok(in_order.collect())
    }

    /// One value of each rank, by rank.
    ///
    /// # Errors
    /// As [`Self::gather`].
    ///
    /// # Panics
    /// When the value cannot be written as `MessagePack`.
    pub fn exchange<T: Serialize + DeserializeOwned>(
        &self,
        value: T,
    ) -> Result<Vec<T>, TrainerError> {
        let Some(link) = &self.link else {
            return Ok(vec![value]);
        };
        let bytes = rmp_serde::to_vec(&value).expect("plain data can be written");
        let decode = |bytes: &[u8]| {
            rmp_serde::from_slice(bytes).map_err(|error| self.failed(&format!("exchange: {error}")))
        };
        let mut lengths = vec![0.0; self.size];
        lengths[self.rank] = bytes.len() as f64;
        self.sum(&mut lengths)?;
        let longest = lengths.iter().fold(1.0, |a: f64, b| a.max(*b)) as usize;
        let mut padded = bytes;
        padded.resize(longest, 0);
        let part = Tensor::from_slice(&padded).to_device(link.device);
        let whole = Tensor::zeros([(longest * self.size) as i64], (Kind::Uint8, link.device));
        self.wait(link.group.all_gather(&whole, &part))?;
        let all: Vec<u8> = Vec::try_from(whole.to_device(Device::Cpu))?;
        all.chunks(longest)
            .zip(lengths)
            .map(|(bytes, length)| decode(&bytes[..length as usize]))
            .collect()
    }

    /// The sums over all ranks.
    ///
    /// # Errors
    /// As [`Self::gather`].
    pub fn sum(&self, numbers: &mut [f64]) -> Result<(), TrainerError> {
        self.reduce(numbers, Reduction::Sum)
    }

    /// The largest numbers of all ranks.
    ///
    /// # Errors
    /// As [`Self::gather`].
    pub fn max(&self, numbers: &mut [f64]) -> Result<(), TrainerError> {
        self.reduce(numbers, Reduction::Max)
    }

    /// Whether it holds on any rank.
    ///
    /// # Errors
    /// As [`Self::gather`].
    pub fn any(&self, holds: bool) -> Result<bool, TrainerError> {
        let mut numbers = [f64::from(holds)];
        self.max(&mut numbers)?;
        Ok(numbers[0] > 0.0)
    }

    fn reduce(&self, numbers: &mut [f64], reduction: Reduction) -> Result<(), TrainerError> {
        let Some(link) = &self.link else {
            return Ok(());
        };
        let tensor = Tensor::from_slice(numbers).to_device(link.device);
        self.wait(link.group.all_reduce(&tensor, reduction))?;
        let reduced: Vec<f64> = Vec::try_from(tensor.to_device(Device::Cpu))?;
        numbers.copy_from_slice(&reduced);
        Ok(())
    }

    /// Waits until all ranks are here.
    ///
    /// # Errors
    /// As [`Self::gather`].
    pub fn barrier(&self) -> Result<(), TrainerError> {
        match &self.link {
            Some(link) => link.group.barrier().map_err(|error| self.explain(&error)),
            None => Ok(()),
        }
    }

    /// `make` on the first rank, and then on the others, which find what it has left behind.
    ///
    /// # Errors
    /// That of `make`, or as [`Self::gather`].
    pub fn first_alone<T, E: From<TrainerError>>(
        &self,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        if self.is_first() {
            let made = make()?;
            self.barrier()?;
            return Ok(made);
        }
        self.barrier()?;
        make()
    }

    /// What the first rank says, on all ranks; what others say does not matter.
    ///
    /// # Errors
    /// As [`Self::gather`].
    pub fn word_of_first<T: Serialize + DeserializeOwned + Default>(
        &self,
        word: T,
    ) -> Result<T, TrainerError> {
        let words = self.exchange(word)?;
        Ok(words.into_iter().next().unwrap_or_default())
    }

    /// The group of all ranks, where there are several.
    pub(crate) fn group(&self) -> Option<&Rc<Group>> {
        self.link.as_ref().map(|link| &link.group)
    }

    /// Waits for an operation that was begun.
    pub(crate) fn wait(&self, begun: Result<Pending, TorchError>) -> Result<(), TrainerError> {
        begun
            .and_then(Pending::wait)
            .map_err(|error| self.explain(&error))
    }

    /// An error of communication, with what is known of the others.
    pub fn explain(&self, error: &TorchError) -> TrainerError {
        self.failed(&error.to_string())
    }

    fn failed(&self, message: &str) -> TrainerError {
        let link = self.link.as_ref();
        lost(RankError::Communication {
            rank: self.rank,
            size: self.size,
            doing: link.map_or_else(String::new, |link| link.doing.borrow().clone()),
            message: message.to_owned(),
            others: link.map_or_else(String::new, |link| self.seen(link)),
        })
    }

    /// What the others said last that they were doing, a line each.
    fn seen(&self, link: &Link) -> String {
        let mut lines = String::new();
        for other in (0..self.size).filter(|other| *other != self.rank) {
            let seen = match link.store.get(&doing_key(other), Duration::ZERO) {
                Ok(Some(place)) => format!("was last at {place}"),
                Ok(None) => "never came".to_owned(),
                Err(_) => {
                    lines.push_str("\n    rank 0 is gone, and with it what it knew of the others");
                    break;
                }
            };
            let _ = write!(lines, "\n    rank {other} {seen}");
        }
        lines
    }
}

/// How long a rank waits before it looks again for the others.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Whether the others were met, and do something else.
fn is_refusal(error: &TrainerError) -> bool {
    let TrainerError::Ranks(error) = error else {
        return false;
    };
    matches!(**error, RankError::Identity { .. })
}

/// An error that another process is the cause of.
pub(crate) fn lost(error: RankError) -> TrainerError {
    LOST.store(true, Ordering::SeqCst);
    Box::new(error).into()
}

fn doing_key(rank: usize) -> String {
    format!("doing/{rank}")
}
