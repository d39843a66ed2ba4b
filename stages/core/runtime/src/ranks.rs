//! A process's place among those that run a stage together.
//!
//! `rlhf launch` sets it for the workers that it starts; `torchrun` and Slurm's `srun` set the same for programs that
//! they start.

use std::env;

/// The variables of `torchrun`, which `rlhf launch` sets, too.
const RANK: &str = "RANK";
const WORLD_SIZE: &str = "WORLD_SIZE";
const LOCAL_RANK: &str = "LOCAL_RANK";
const MASTER_ADDR: &str = "MASTER_ADDR";
const MASTER_PORT: &str = "MASTER_PORT";

/// The first of the ports that jobs of Slurm take by their number.
const FIRST_PORT: u64 = 20_000;
const NUM_PORTS: u64 = 20_000;

/// One process of several that run the same stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// From 0.
    pub rank: usize,
    /// Processes of the job.
    pub size: usize,
    /// The rank among those on this machine: the index of its GPU.
    pub local_rank: usize,
    /// The first rank's machine.
    pub host: String,
    /// Where the first rank listens.
    pub port: u16,
}

/// Why the environment does not say where this process stands.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlaceError {
    /// Some of the variables are there.
    #[error(
        "{found} is set, and {missing} is not\n  hint: `rlhf launch` sets all of them; `unset {found}` for one process"
    )]
    Missing {
        /// A variable that is there.
        found: String,
        /// One that is not.
        missing: String,
    },
    /// A value is no number, or out of bounds.
    #[error("{name}={value}: expected {expected}")]
    Value {
        /// The variable.
        name: String,
        /// Its value.
        value: String,
        /// What it should be.
        expected: String,
    },
}

impl Place {
    /// As the environment of this process says; `None` where it is alone.
    ///
    /// # Errors
    /// Where variables are missing, or make no sense together.
    pub fn from_environment() -> Result<Option<Self>, PlaceError> {
        Self::from_variables(&|name| env::var(name).ok())
    }

    /// The same of other variables. Those of `torchrun` win over Slurm's; outside of a step (`srun`) Slurm's mean
    /// nothing: the script of a job sees them, too.
    ///
    /// # Errors
    /// As [`Self::from_environment`].
    pub fn from_variables(
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, PlaceError> {
        if let Some(found) = [RANK, WORLD_SIZE]
            .into_iter()
            .find(|name| variable(name).is_some())
        {
            return of_torchrun(variable, found).map(Some);
        }
        let tasks =
            variable("SLURM_STEP_NUM_TASKS").filter(|_| variable("SLURM_STEP_ID").is_some());
        match tasks {
            Some(tasks) if tasks != "1" => of_slurm(variable).map(Some),
            _ => Ok(None),
        }
    }

    /// As variables for a process.
    pub fn to_variables(&self) -> [(&'static str, String); 5] {
        [
            (RANK, self.rank.to_string()),
            (WORLD_SIZE, self.size.to_string()),
            (LOCAL_RANK, self.local_rank.to_string()),
            (MASTER_ADDR, self.host.clone()),
            (MASTER_PORT, self.port.to_string()),
        ]
    }

    fn checked(self, name: &str) -> Result<Self, PlaceError> {
        if self.rank < self.size {
            return Ok(self);
        }
        Err(PlaceError::Value {
            name: name.to_owned(),
            value: self.rank.to_string(),
            expected: format!("a rank below {}, the number of processes", self.size),
        })
    }
}

fn of_torchrun(
    variable: &dyn Fn(&str) -> Option<String>,
    found: &str,
) -> Result<Place, PlaceError> {
    let get = |name: &str| {
        variable(name).ok_or_else(|| PlaceError::Missing {
            found: found.to_owned(),
            missing: name.to_owned(),
        })
    };
    let place = Place {
        rank: number(RANK, &get(RANK)?)?,
        size: number(WORLD_SIZE, &get(WORLD_SIZE)?)?,
        local_rank: number(LOCAL_RANK, &get(LOCAL_RANK)?)?,
        host: get(MASTER_ADDR)?,
        port: number(MASTER_PORT, &get(MASTER_PORT)?)?,
    };
    place.checked(RANK)
}

fn of_slurm(variable: &dyn Fn(&str) -> Option<String>) -> Result<Place, PlaceError> {
    let get = |name: &str| of_step(variable, name);
    let (host, port) = meeting_of_step(variable)?;
    let place = Place {
        rank: number("SLURM_PROCID", &get("SLURM_PROCID")?)?,
        size: number("SLURM_STEP_NUM_TASKS", &get("SLURM_STEP_NUM_TASKS")?)?,
        local_rank: number("SLURM_LOCALID", &get("SLURM_LOCALID")?)?,
        host,
        port,
    };
    place.checked("SLURM_PROCID")
}

/// Where the first rank of a step of Slurm listens: on its first node, at a port of the job's, unless `MASTER_ADDR` or
/// `MASTER_PORT` says another (a node's name need not be an address).
///
/// # Errors
/// Where variables are missing, or make no sense.
pub fn meeting_of_step(
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<(String, u16), PlaceError> {
    let get = |name: &str| of_step(variable, name);
    let host = match variable(MASTER_ADDR) {
        Some(host) => host,
        None => first_host(&get("SLURM_STEP_NODELIST")?),
    };
    let port = match variable(MASTER_PORT) {
        Some(port) => number(MASTER_PORT, &port)?,
        None => port_of_job(number("SLURM_JOB_ID", &get("SLURM_JOB_ID")?)?),
    };
    Ok((host, port))
}

fn of_step(variable: &dyn Fn(&str) -> Option<String>, name: &str) -> Result<String, PlaceError> {
    variable(name).ok_or_else(|| PlaceError::Missing {
        found: "SLURM_STEP_ID".to_owned(),
        missing: name.to_owned(),
    })
}

/// A port that jobs on one machine are unlikely to share.
fn port_of_job(job: u64) -> u16 {
    (FIRST_PORT + job % NUM_PORTS) as u16
}

/// The first of Slurm's list of hosts: `gpu[03-05,9],login1` is `gpu03`.
fn first_host(list: &str) -> String {
    let end = list.find([',', '[']).unwrap_or(list.len());
    let (prefix, rest) = list.split_at(end);
    let Some(numbers) = rest.strip_prefix('[') else {
        return prefix.to_owned();
    };
    let end = numbers.find([',', '-', ']']).unwrap_or(numbers.len());
    let suffix = numbers.split_once(']').map_or("", |(_, rest)| rest);
    let suffix = &suffix[..suffix.find(',').unwrap_or(suffix.len())];
    format!("{prefix}{}{suffix}", &numbers[..end])
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, PlaceError> {
    value.parse().map_err(|_| PlaceError::Value {
        name: name.to_owned(),
        value: value.to_owned(),
        expected: "a whole number".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Option<Place>, PlaceError> {
        Place::from_variables(&|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    const SLURM: [(&str, &str); 6] = [
        ("SLURM_STEP_ID", "0"),
        ("SLURM_STEP_NUM_TASKS", "4"),
        ("SLURM_PROCID", "3"),
        ("SLURM_LOCALID", "1"),
        ("SLURM_STEP_NODELIST", "gpu[03-04]"),
        ("SLURM_JOB_ID", "20007"),
    ];

    #[test]
    fn a_place_comes_back_from_its_variables() -> Result<(), PlaceError> {
        let place = Place {
            rank: 3,
            size: 8,
            local_rank: 1,
            host: "node1".to_owned(),
            port: 29_500,
        };
        let variables = place.to_variables();
        let found = Place::from_variables(&|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| value.clone())
        })?;
        assert_eq!(found, Some(place));
        Ok(())
    }

    #[test]
    fn a_step_of_slurm_has_ranks_and_its_script_has_none() -> Result<(), PlaceError> {
        let found = of(&SLURM)?.expect("a place");
        assert_eq!((found.rank, found.size, found.local_rank), (3, 4, 1));
        assert_eq!((&found.host[..], found.port), ("gpu03", 20_007));
        assert_eq!(of(&SLURM[1..])?, None, "no step");
        assert_eq!(of(&[])?, None);
        Ok(())
    }

    #[test]
    fn what_is_missing_or_senseless_is_named() {
        let partly = of(&[("RANK", "0")]).expect_err("no size");
        assert!(partly.to_string().contains("WORLD_SIZE"), "{partly}");
        let all = |rank| {
            of(&[
                ("RANK", rank),
                ("WORLD_SIZE", "2"),
                ("LOCAL_RANK", "0"),
                ("MASTER_ADDR", "localhost"),
                ("MASTER_PORT", "29500"),
            ])
        };
        assert!(all("1").is_ok());
        let beyond = all("2").expect_err("rank 2 of 2");
        assert!(
            beyond
                .to_string()
                .contains("RANK=2: expected a rank below 2")
        );
        let word = all("one").expect_err("no number");
        assert!(word.to_string().contains("RANK=one"), "{word}");
    }

    #[test]
    fn the_first_host_of_a_list() {
        let cases = [
            ("node1", "node1"),
            ("node1,node2", "node1"),
            ("gpu[03-05,9],login1", "gpu03"),
            ("rack[2]-gpu,x", "rack2-gpu"),
        ];
        for (list, first) in cases {
            assert_eq!(first_host(list), first, "{list}");
        }
    }
}
