//! What a pipeline would take on a cluster of GPUs: which sharding fits, memory of each rank, tokens a second, hours.
//!
//! A prediction by stated rates ([`COMPUTE_SHARE`] and its neighbours): nothing here was measured on a GPU.
//! The time of evaluation, saving and reading is not counted, and every sequence is as long as it may be.
//!
//! Reading order: `gpus` and `machine` (rates), `cost` (seconds of a model's passes), `work` (what a stage is made of),
//! `choice` (what fits).

mod choice;
mod cost;
mod gpus;
mod machine;
mod note;
mod work;

use choice::{Choice, Fitting};
pub use cost::Seconds;
pub use gpus::Gpu;
pub use machine::{BANDWIDTH_SHARE, COMPUTE_SHARE, Cluster, LINK_SHARE, MEMORY_SHARE, Machine};
pub use note::Note;
pub use work::Rounds;
pub(crate) use work::rounds;

use crate::memory::{Place, Site};
use crate::plan::{Dtype, Execution, Plan, StagePlan, Task};

/// A stage with a model on a cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Forecast {
    /// The stage's name.
    pub stage: String,
    /// GPUs that work on it: as many as its batch divides among.
    pub gpus: usize,
    /// The fewest on which it fits, of those that its batch divides among.
    pub fewest: Option<usize>,
    /// How it is run; where it does not fit, what would take least memory.
    pub execution: Execution,
    /// Memory of a rank at its peak.
    pub peak_bytes: u64,
    /// What it does; `None` where it does not fit.
    pub rounds: Option<Rounds>,
    /// What is to be known beside.
    pub notes: Vec<Note>,
}

/// Why nothing is predicted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForecastError {
    /// Of a type that GPUs are slow at.
    #[error(
        "stages.{stage}.dtype is f64, which is for tests: nothing is predicted of it\n  hint: --set stages.{stage}.dtype=bf16"
    )]
    Double {
        /// The stage.
        stage: String,
    },
}

impl Forecast {
    /// Tokens of all ranks in a second.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let rounds = self.rounds?;
        Some(rounds.tokens / rounds.seconds.total())
    }

    /// Hours of all rounds, where their number is known.
    pub fn hours(&self) -> Option<f64> {
        let rounds = self.rounds?;
        Some(rounds.seconds.total() * rounds.count? as f64 / 3600.0)
    }
}

impl StagePlan {
    /// The key and the size of the batch that ranks share out, and among which it must divide; `None` for a stage that has
    /// none.
    pub fn shared_batch(&self) -> Option<(&'static str, usize)> {
        match &self.task {
            Task::Pretrain(task) => Some(("batch", task.train.batch)),
            Task::Sft(task) => Some(("batch", task.train.batch)),
            Task::Reward(task) => Some(("batch", task.train.batch)),
            Task::Ppo(task) => Some(("minibatch", task.minibatch)),
            Task::Import(_) | Task::Tokenizer(_) | Task::Label(_) => None,
        }
    }

    /// Whether it decodes tokens of a model.
    fn samples(&self) -> bool {
        matches!(self.task, Task::Label(_) | Task::Ppo(_))
    }

    /// The numbers of ranks that can share it out, from the fewest on.
    fn team_sizes(&self) -> impl DoubleEndedIterator<Item = usize> {
        let whole = match &self.task {
            // Responses are shared out as they come.
            Task::Label(task) => task.episodes(),
            _ => self.shared_batch().map_or(1, |(_, batch)| batch),
        };
        let divides = self.shared_batch().is_some();
        (1..=whole).filter(move |ranks| !divides || whole.is_multiple_of(*ranks))
    }
}

/// Every stage with a model, in the plan's order.
///
/// # Errors
/// Where a stage computes in a type of which nothing is predicted.
pub fn forecast(plan: &Plan, cluster: &Cluster) -> Result<Vec<Forecast>, ForecastError> {
    let machine = cluster.machine();
    let is_computed =
        |stage: &&StagePlan| !matches!(stage.task, Task::Import(_) | Task::Tokenizer(_));
    plan.stages
        .iter()
        .filter(is_computed)
        .map(|stage| {
            if stage.execution.dtype == Dtype::F64 {
                let stage = stage.name.clone();
                return Err(ForecastError::Double { stage });
            }
            Ok(of_stage(plan, stage, &machine, cluster.gpus))
        })
        .collect()
}

/// What a stage does on so many ranks, run as fast as it fits.
fn on(fitting: &Fitting<'_>, ranks: usize) -> Option<(Choice, Rounds)> {
    let place = Place::Gpu;
    let timed = fitting.choices(ranks).into_iter().filter_map(|choice| {
        let stage = StagePlan {
            execution: choice.execution.clone(),
            ..fitting.stage.clone()
        };
        let site = Site { place, ranks };
        let rounds = rounds(fitting.plan, &stage, site, fitting.machine)?;
        Some((choice, rounds))
    });
    let seconds = |(_, rounds): &(Choice, Rounds)| rounds.seconds.total();
    timed.min_by(|one, other| seconds(one).total_cmp(&seconds(other)))
}

fn of_stage(plan: &Plan, stage: &StagePlan, machine: &Machine, gpus: usize) -> Forecast {
    let fitting = Fitting {
        plan,
        stage,
        machine,
    };
    let sizes = || stage.team_sizes().filter(|ranks| *ranks <= gpus);
    let ranks = sizes().next_back().unwrap_or(1);
    let fits = |ranks: &usize| fitting.frugal(*ranks).peak_bytes <= machine.memory;
    let fewest = match stage.shared_batch() {
        Some(_) => stage.team_sizes().find(fits),
        // Nothing of it is divided.
        None => Some(1).filter(fits),
    };
    let mut notes = Vec::new();
    if ranks < gpus {
        notes.extend(Note::idle(stage, ranks, gpus));
    }
    let found = on(&fitting, ranks);
    if let Some((choice, rounds)) = &found {
        notes.extend(Note::of_size(stage));
        notes.extend(Note::of_choice(stage, &choice.execution, ranks));
        notes.extend(Note::of_network(rounds.seconds, || {
            let total =
                |ranks| on(&fitting, ranks).map(|(_, rounds)| (rounds.seconds.total(), ranks));
            let best = sizes()
                .filter_map(total)
                .min_by(|one, other| one.0.total_cmp(&other.0));
            best.map_or(ranks, |(_, ranks)| ranks)
        }));
    } else {
        notes.push(Note::of_no_fit(&fitting, fewest));
    }
    let rounds = found.as_ref().map(|(_, rounds)| *rounds);
    let Choice {
        execution,
        peak_bytes,
    } = found.map_or_else(|| fitting.frugal(ranks), |(choice, _)| choice);
    Forecast {
        stage: stage.name.clone(),
        gpus: ranks,
        fewest,
        execution,
        peak_bytes,
        rounds,
        notes,
    }
}
