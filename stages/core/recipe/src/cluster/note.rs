//! What is to be known of a stage beside its numbers: where it does not fit, and where more GPUs are of no use.

use super::Seconds;
use super::choice::Fitting;
use crate::numbers::{bytes, grouped};
use crate::plan::{Execution, Sharding, StagePlan, Task};

/// A share of the time from which on more GPUs are of little use.
const MOSTLY: f64 = 0.5;

/// Parameters from which on what kernels do takes longer than their start: 12 layers of width 768 have 85 million beside
/// their embeddings, and are trained at half of the peak (llm.c).
const LARGE: u64 = 80_000_000;

/// A remark.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Note {
    /// GPUs that have nothing to do.
    #[error(
        "{gpus} of {all} GPUs: its {key} of {batch} divides among no more of them; a larger one would"
    )]
    Idle {
        /// That work.
        gpus: usize,
        /// That are there.
        all: usize,
        /// The key of the batch.
        key: &'static str,
        /// Its size.
        batch: usize,
    },
    /// It does not fit what is said of sharding.
    #[error("does not fit with sharding = {said:?} as the file says")]
    Sharding {
        /// What is said.
        said: &'static str,
    },
    /// On more GPUs it would.
    #[error("does not fit; it does from {fewest} GPUs on")]
    TooFew {
        /// So many.
        fewest: usize,
    },
    /// On more GPUs than its batch divides among it would.
    #[error(
        "does not fit; it would from {fewest} GPUs on, among which its {key} of {batch} does not divide: a larger {key}, \
         or tensor or pipeline parallelism, which this engine does not have"
    )]
    SmallBatch {
        /// So many.
        fewest: usize,
        /// The key of the batch.
        key: &'static str,
        /// Its size.
        batch: usize,
    },
    /// On no number of GPUs.
    #[error(
        "does not fit on any number of these GPUs: {whole} are whole on every rank{}, which is the memory of {together} of \
         them; that needs tensor or pipeline parallelism, which this engine does not have",
        if *sampled { " while it samples" } else { " while it is evaluated and saved" }
    )]
    Never {
        /// What a rank has, however many there are.
        whole: String,
        /// GPUs that would have to hold it together.
        together: u64,
        /// It is a stage that samples.
        sampled: bool,
    },
    /// So small that what is not counted matters.
    #[error(
        "of {parameters} parameters: starting its kernels, which is not counted, takes longer than what is"
    )]
    Small {
        /// Of the model.
        parameters: String,
    },
    /// The network takes most of the time.
    #[error(
        "the network takes {percent:.0} % of its time, so that it is fastest on {fastest} of these GPUs"
    )]
    Network {
        /// So much.
        percent: f64,
        /// Of all numbers of GPUs that are there.
        fastest: usize,
    },
}

impl Note {
    pub(crate) fn idle(stage: &StagePlan, gpus: usize, all: usize) -> Option<Self> {
        let (key, batch) = stage.shared_batch()?;
        Some(Self::Idle {
            gpus,
            all,
            key,
            batch,
        })
    }

    pub(crate) fn of_size(stage: &StagePlan) -> Option<Self> {
        let shape = match &stage.task {
            Task::Label(task) => &task.shape,
            _ => stage.model_shape()?,
        };
        let parameters = shape.num_parameters();
        (parameters < LARGE).then(|| Self::Small {
            parameters: grouped(parameters),
        })
    }

    pub(crate) fn of_choice(
        stage: &StagePlan,
        execution: &Execution,
        ranks: usize,
    ) -> Option<Self> {
        let said = stage.execution.sharding;
        let kept = execution.sharding == said || said == Sharding::None || ranks == 1;
        (!kept).then(|| Self::Sharding { said: said.word() })
    }

    pub(crate) fn of_network(seconds: Seconds, fastest: impl Fn() -> usize) -> Option<Self> {
        let share = seconds.network / seconds.total();
        (share > MOSTLY).then(|| Self::Network {
            percent: 100.0 * share,
            fastest: fastest(),
        })
    }

    pub(crate) fn of_no_fit(fitting: &Fitting<'_>, fewest: Option<usize>) -> Self {
        if let Some(fewest) = fewest {
            return Self::TooFew { fewest };
        }
        let (floor, fits) = fitting.floor();
        match fitting.stage.shared_batch().filter(|_| fits) {
            Some((key, batch)) => Self::SmallBatch {
                fewest: fitting.fewest(),
                key,
                batch,
            },
            None => Self::Never {
                whole: bytes(floor),
                together: floor.div_ceil(fitting.machine.memory),
                sampled: fitting.stage.samples(),
            },
        }
    }
}
