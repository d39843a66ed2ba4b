//! How a stage is run so that it fits: the least sharding first, then recomputed activations, then fewer rows at a time.

use super::machine::Machine;
use crate::memory::{Place, Site};
use crate::peak_bytes;
use crate::plan::{Execution, Plan, Sharding, StagePlan, Task};

/// More ranks than any cluster has: what is divided among them is nothing.
const EVER_MORE: usize = 1 << 30;

/// A stage on GPUs with so much memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fitting<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) stage: &'a StagePlan,
    pub(crate) machine: &'a Machine,
}

/// An execution and what it takes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Choice {
    pub(crate) execution: Execution,
    pub(crate) peak_bytes: u64,
}

impl Fitting<'_> {
    fn said(&self) -> &Execution {
        &self.stage.execution
    }

    fn peak(&self, execution: &Execution, ranks: usize) -> u64 {
        let stage = StagePlan {
            execution: execution.clone(),
            ..self.stage.clone()
        };
        let place = Place::Gpu;
        peak_bytes(self.plan, &stage, Site { place, ranks })
    }

    fn choice(&self, execution: Execution, ranks: usize) -> Option<Choice> {
        let peak_bytes = self.peak(&execution, ranks);
        (peak_bytes <= self.machine.memory).then_some(Choice {
            execution,
            peak_bytes,
        })
    }

    /// What the stage can be told that takes least memory.
    pub(crate) fn frugal(&self, ranks: usize) -> Choice {
        let shardings = self.shardings(Sharding::None, ranks).into_iter();
        let choices = shardings.map(|sharding| {
            let execution = Execution {
                sharding,
                checkpointing: self.trains() || self.said().checkpointing,
                micro_batch: 1,
                sample_batch: 1,
                ..self.said().clone()
            };
            Choice {
                peak_bytes: self.peak(&execution, ranks),
                execution,
            }
        });
        // Not always the most sharding: below adapters whole weights are gathered beside what is kept of them.
        let least = choices.min_by_key(|choice| choice.peak_bytes);
        least.unwrap_or_else(|| unreachable!("there is always one"))
    }

    /// What one rank of ever so many would have, and whether it fits.
    pub(crate) fn floor(&self) -> (u64, bool) {
        let peak = self.frugal(EVER_MORE).peak_bytes;
        (peak, peak <= self.machine.memory)
    }

    /// The fewest ranks on which it fits, whatever its batch; there is such a number, since it fits on ever so many.
    pub(crate) fn fewest(&self) -> usize {
        let fits = |ranks: usize| self.frugal(ranks).peak_bytes <= self.machine.memory;
        let (mut below, mut ranks) = (0, 1);
        while !fits(ranks) && ranks < EVER_MORE {
            (below, ranks) = (ranks, 2 * ranks);
        }
        while ranks - below > 1 {
            let middle = below + (ranks - below) / 2;
            if fits(middle) {
                ranks = middle;
            } else {
                below = middle;
            }
        }
        ranks
    }

    /// Whether anything of it is sharded or recomputed.
    fn trains(&self) -> bool {
        !matches!(self.stage.task, Task::Label(_))
    }

    /// What may be sharded, from `least` on.
    fn shardings(&self, least: Sharding, ranks: usize) -> Vec<Sharding> {
        if ranks == 1 || !self.trains() {
            return vec![self.said().sharding];
        }
        Sharding::ALL
            .into_iter()
            .filter(|sharding| *sharding >= least)
            .collect()
    }

    /// The first that fits on so many ranks, and where that recomputes activations what fits and keeps them, a few rows at a
    /// time; nothing where none fits. What the file says of sharding is kept, if it says more than `none`.
    pub(crate) fn choices(&self, ranks: usize) -> Vec<Choice> {
        let said = self.said().sharding;
        let kept = (said != Sharding::None).then(|| self.first(&[said], ranks));
        let found = kept
            .flatten()
            .or_else(|| self.first(&self.shardings(said, ranks), ranks));
        let Some(found) = found.map(|found| self.relaxed(found, ranks)) else {
            return Vec::new();
        };
        let keeping = self.micro_batches().into_iter().find_map(|micro_batch| {
            let execution = Execution {
                micro_batch,
                checkpointing: self.said().checkpointing,
                ..found.execution.clone()
            };
            self.choice(execution, ranks)
        });
        std::iter::once(found).chain(keeping).collect()
    }

    fn first(&self, shardings: &[Sharding], ranks: usize) -> Option<Choice> {
        let (micro, sample) = (self.micro_batches(), self.sample_batches());
        let levels = micro.len().max(sample.len());
        let level = |index: usize, checkpointing: bool| Execution {
            checkpointing,
            micro_batch: micro[index.min(micro.len() - 1)],
            sample_batch: sample[index.min(sample.len() - 1)],
            ..self.said().clone()
        };
        let recomputed = self.trains() || self.said().checkpointing;
        let as_said = level(0, self.said().checkpointing);
        let less = (0..levels).map(|index| level(index, recomputed));
        let mut all = std::iter::once(as_said).chain(less);
        all.find_map(|execution| {
            let mut sharded = shardings.iter().map(|sharding| Execution {
                sharding: *sharding,
                ..execution.clone()
            });
            sharded.find_map(|execution| self.choice(execution, ranks))
        })
    }

    /// Rows were taken away from training and sampling alike: gives back what fits.
    fn relaxed(&self, mut choice: Choice, ranks: usize) -> Choice {
        let back = |choice: Choice, tries: Vec<Execution>| {
            let found = tries
                .into_iter()
                .find_map(|execution| self.choice(execution, ranks));
            found.unwrap_or(choice)
        };
        let with = |choice: &Choice, change: &dyn Fn(&mut Execution)| {
            let mut execution = choice.execution.clone();
            change(&mut execution);
            execution
        };
        let more = self.micro_batches().into_iter();
        let tries = more
            .map(|rows| with(&choice, &|e| e.micro_batch = rows))
            .collect();
        choice = back(choice, tries);
        let more = self.sample_batches().into_iter();
        let tries = more
            .map(|rows| with(&choice, &|e| e.sample_batch = rows))
            .collect();
        back(choice, tries)
    }

    /// Rows of a pass, from what is said down: divisors of it, which divide the batch too.
    fn micro_batches(&self) -> Vec<usize> {
        let said = self.said().micro_batch;
        (1..=said)
            .rev()
            .filter(|rows| said.is_multiple_of(*rows))
            .collect()
    }

    /// Rows that are decoded at a time, from what is said down.
    fn sample_batches(&self) -> Vec<usize> {
        let half = |rows: &usize| (*rows > 1).then_some(rows / 2);
        std::iter::successors(Some(self.said().sample_batch), half).collect()
    }
}
