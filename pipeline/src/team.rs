//! The processes that run a stage together: how many there are, on which machines, and where they meet.

use std::net::TcpListener;
use std::time::Duration;

use recipe::plan::{Plan, StagePlan, Task};
use runtime::ranks::{Place, PlaceError, first_host, port_of_job};

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
        let rank = nodes.this.or_else(|| number("SLURM_NODEID")).unwrap_or(0);
        if rank >= count {
            return Err(TeamError::Node { rank, nodes: count });
        }
        let of_slurm = || {
            let host = first_host(&step("SLURM_STEP_NODELIST")?);
            let job: u64 = step("SLURM_JOB_ID")?.parse().ok()?;
            Some((host, port_of_job(job)))
        };
        let master = match nodes.master {
            Some(value) => Some(address(value)?),
            None if count > 1 => Some(of_slurm().ok_or(TeamError::NoMaster { nodes: count })?),
            None => None,
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

    /// Whether every batch of the stages can be shared out.
    ///
    /// # Errors
    /// Where one cannot.
    pub fn admit(&self, plan: &Plan, stages: &[&StagePlan]) -> Result<(), TeamError> {
        let all = plan.stages.iter().filter(|stage| stages.contains(stage));
        for stage in all {
            let (key, count) = match &stage.task {
                Task::Pretrain(task) => ("batch", task.train.batch),
                Task::Sft(task) => ("batch", task.train.batch),
                Task::Reward(task) => ("batch", task.train.batch),
                Task::Ppo(task) => ("minibatch", task.minibatch),
                Task::Import(_) | Task::Tokenizer(_) | Task::Label(_) => continue,
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
mod tests {
    use super::*;

    const PATIENCE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(2));

    fn of(ranks: usize, nodes: &Nodes, variables: &[(&str, &str)]) -> Result<Team, TeamError> {
        Team::of_nodes(ranks, nodes, PATIENCE, &|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn ranks_are_counted_over_machines() -> Result<(), TeamError> {
        let nodes = Nodes {
            count: Some(2),
            this: Some(1),
            master: Some("node1:29500"),
        };
        let team = of(4, &nodes, &[])?;
        assert_eq!((team.here, team.first, team.size), (4, 4, 8));
        assert!(!team.leads());
        let places = team.places()?;
        let ranks: Vec<usize> = places.iter().map(|place| place.rank).collect();
        assert_eq!(ranks, [4, 5, 6, 7]);
        assert!(places.iter().all(|p| p.host == "node1" && p.port == 29_500));
        Ok(())
    }

    #[test]
    fn one_machine_takes_a_free_port_for_all() -> Result<(), TeamError> {
        let places = of(2, &Nodes::default(), &[])?.places()?;
        assert!(places[0].port > 0 && places[0].port == places[1].port);
        assert_eq!(places[1].host, LOOPBACK);
        Ok(())
    }

    #[test]
    fn a_step_of_slurm_says_what_the_command_does_not() -> Result<(), TeamError> {
        let step = [
            ("SLURM_STEP_ID", "0"),
            ("SLURM_STEP_NUM_NODES", "2"),
            ("SLURM_NODEID", "1"),
            ("SLURM_STEP_NODELIST", "gpu[03-04]"),
            ("SLURM_JOB_ID", "41"),
        ];
        let team = of(2, &Nodes::default(), &step)?;
        assert_eq!((team.first, team.size), (2, 4));
        assert_eq!(team.master, Some(("gpu03".to_owned(), 20_041)));
        // The script of a job sees its variables, and is no step.
        let alone = of(2, &Nodes::default(), &step[1..])?;
        assert_eq!((alone.first, alone.size, alone.master), (0, 2, None));
        Ok(())
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        let nodes = |count, rank, master| Nodes {
            count: Some(count),
            this: Some(rank),
            master,
        };
        let cases = [
            (nodes(2, 2, Some("a:1")), "--node-rank 2 of --nodes 2"),
            (nodes(2, 0, None), "where is the first machine?"),
            (
                nodes(2, 0, Some("node1")),
                "--master node1: expected HOST:PORT",
            ),
            (nodes(2, 0, Some("node1:x")), "--master node1:x"),
        ];
        for (nodes, expected) in cases {
            let error = of(1, &nodes, &[]).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
