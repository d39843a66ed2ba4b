//! The processes that run a stage together: how many there are, on which machines, and where they meet.

use std::net::TcpListener;
use std::time::Duration;

use recipe::plan::{Plan, StagePlan};
use runtime::ranks::{Place, PlaceError, meeting_of_step};

/// This machine, where nothing else is said.
const LOOPBACK: &str = "127.0.0.1";

/// Who runs a pipeline's stages: the processes that this one starts, among those of other machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Team {
    /// Processes that this one starts for a stage.
    pub here: usize,
    /// The first of them.
    pub first: usize,
    /// Processes on all machines.
    pub size: usize,
    /// Where the first of all listens; `None`: each stage takes a free port of this machine.
    pub master: Option<(String, u16)>,
    /// How long ranks wait for all to be there.
    pub join: Duration,
    /// How long they wait for each other later on.
    pub timeout: Duration,
}

/// Why processes cannot run a pipeline together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TeamError {
    /// The environment makes no sense.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A machine's number is too large.
    #[error("--node-rank {rank} of --nodes {nodes}\n  hint: machines are counted from 0")]
    Node {
        /// The number.
        rank: usize,
        /// Machines.
        nodes: usize,
    },
    /// Nobody knows where the first machine is.
    #[error(
        "--nodes {nodes}: where is the first machine?\n  hint: `--master HOST:PORT`, the same on every machine; a \
         step of Slurm (`srun`) knows it by itself"
    )]
    NoMaster {
        /// Machines.
        nodes: usize,
    },
    /// `--master` is no address.
    #[error("--master {value}: expected HOST:PORT, as in node1:29500")]
    Master {
        /// What was said.
        value: String,
    },
    /// A step of Slurm starts this command once for each process, and each would start all of them.
    #[error(
        "this step of Slurm has {tasks} tasks on {nodes} nodes, and each would start {ranks} processes\n  hint: srun \
         --ntasks-per-node=1 rlhf launch --ranks {ranks} -- ..., or without `rlhf launch`: srun \
         --ntasks-per-node={ranks} rlhf run ..."
    )]
    Tasks {
        /// Tasks of the step.
        tasks: usize,
        /// Its machines.
        nodes: usize,
        /// Processes that each would start.
        ranks: usize,
    },
    /// Fewer GPUs than processes.
    #[error(
        "CUDA_VISIBLE_DEVICES={visible:?} shows {gpus} GPUs to --ranks {ranks}\n  hint: as many ranks as GPUs, another \
         CUDA_VISIBLE_DEVICES, or --device cpu"
    )]
    Gpus {
        /// The variable.
        visible: String,
        /// GPUs in it.
        gpus: usize,
        /// Processes on this machine.
        ranks: usize,
    },
    /// This machine has no free port.
    #[error("cannot find a free port")]
    Port(#[from] std::io::Error),
    /// A batch cannot be shared out.
    #[error(
        "stages.{stage}.{key} {count} does not divide among {ranks} ranks\n  hint: make it a multiple of {ranks}, or take \
         another number of ranks"
    )]
    Batch {
        /// The stage.
        stage: String,
        /// The key of the batch.
        key: &'static str,
        /// Its value.
        count: usize,
        /// Processes.
        ranks: usize,
    },
}

/// What was said of machines on the command line.
#[derive(Debug, Clone, Default)]
pub struct Nodes<'a> {
    /// Machines.
    pub count: Option<usize>,
    /// This one's number.
    pub this: Option<usize>,
    /// The first one's address.
    pub master: Option<&'a str>,
}

impl Team {
    /// One process for each stage.
    pub fn alone() -> Self {
        Self {
            here: 1,
            first: 0,
            size: 1,
            master: None,
            join: Duration::ZERO,
            timeout: Duration::ZERO,
        }
    }

    /// As the environment says that this process stands among others (`torchrun`, `srun`).
    ///
    /// # Errors
    /// Where it makes no sense.
    pub fn from_environment(join: Duration, timeout: Duration) -> Result<Self, TeamError> {
        let place = Place::from_environment()?.filter(|place| place.size > 1);
        Ok(place.map_or_else(Self::alone, |place| Self {
            here: 1,
            first: place.rank,
            size: place.size,
            master: Some((place.host, place.port)),
            join,
            timeout,
        }))
    }

    /// `ranks` processes on each machine. What is not said of these, a step of Slurm says.
    ///
    /// # Errors
    /// Where it makes no sense.
    pub fn of_nodes(
        ranks: usize,
        nodes: &Nodes,
        (join, timeout): (Duration, Duration),
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, TeamError> {
        let step = |name: &str| variable(name).filter(|_| variable("SLURM_STEP_ID").is_some());
        let number = |name: &str| step(name).and_then(|value| value.parse().ok());
        let count = nodes
            .count
            .or_else(|| number("SLURM_STEP_NUM_NODES"))
            .unwrap_or(1);
        let tasks = number("SLURM_STEP_NUM_TASKS").unwrap_or(count);
        let said = nodes.count.is_some() && nodes.this.is_some();
        if tasks > count && !said {
            let nodes = count;
            return Err(TeamError::Tasks {
                tasks,
                nodes,
                ranks,
            });
        }
        let rank = nodes.this.or_else(|| number("SLURM_NODEID")).unwrap_or(0);
        if rank >= count {
            return Err(TeamError::Node { rank, nodes: count });
        }
        let master = match nodes.master {
            Some(value) => Some(address(value)?),
            None if count == 1 => None,
            None if step("SLURM_JOB_ID").is_some() => Some(meeting_of_step(variable)?),
            None => return Err(TeamError::NoMaster { nodes: count }),
        };
        Ok(Self {
            here: ranks,
            first: rank * ranks,
            size: count * ranks,
            master,
            join,
            timeout,
        })
    }

    /// Whether this process writes what all have made.
    pub fn leads(&self) -> bool {
        self.first == 0
    }

    /// Threads of each process: this machine's processors, shared out.
    pub fn threads(&self) -> usize {
        let all = std::thread::available_parallelism().map_or(1, usize::from);
        (all / self.here).max(1)
    }

    /// The places of the processes that this one starts.
    ///
    /// # Errors
    /// Where no port is free.
    pub fn places(&self) -> Result<Vec<Place>, TeamError> {
        let (host, port) = match &self.master {
            Some((host, port)) => (host.clone(), *port),
            None => (LOOPBACK.to_owned(), free_port()?),
        };
        let place = |local_rank| Place {
            rank: self.first + local_rank,
            size: self.size,
            local_rank,
            host: host.clone(),
            port,
        };
        Ok((0..self.here).map(place).collect())
    }

    /// Whether each process on this machine has a GPU of those that are seen (in CUDA's variable).
    ///
    /// # Errors
    /// Where there are fewer.
    pub fn admit_gpus(&self, device: &str, visible: Option<&str>) -> Result<(), TeamError> {
        let Some(visible) = visible.filter(|_| self.here > 1 && device != "cpu") else {
            return Ok(());
        };
        let names = visible.split(',').map(str::trim);
        // What follows a number that is none does not count to CUDA either.
        let gpus = names
            .take_while(|name| !name.is_empty() && *name != "-1")
            .count();
        if gpus >= self.here {
            return Ok(());
        }
        Err(TeamError::Gpus {
            visible: visible.to_owned(),
            gpus,
            ranks: self.here,
        })
    }

    /// Whether every batch of the stages can be shared out.
    ///
    /// # Errors
    /// Where one cannot.
    pub fn admit(&self, plan: &Plan, stages: &[&StagePlan]) -> Result<(), TeamError> {
        let all = plan.stages.iter().filter(|stage| stages.contains(stage));
        for stage in all {
            let Some((key, count)) = stage.shared_batch() else {
                continue;
            };
            if !count.is_multiple_of(self.size) {
                return Err(TeamError::Batch {
                    stage: stage.name.clone(),
                    key,
                    count,
                    ranks: self.size,
                });
            }
        }
        Ok(())
    }
}

fn address(value: &str) -> Result<(String, u16), TeamError> {
    let parts = value.rsplit_once(':');
    let parsed = parts.and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)));
    parsed
        .filter(|(host, port)| !host.is_empty() && *port > 0)
        .ok_or_else(|| TeamError::Master {
            value: value.to_owned(),
        })
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((LOOPBACK, 0))?.local_addr()?.port())
}

#[cfg(test)]
#[path = "team_tests.rs"]
mod tests;
