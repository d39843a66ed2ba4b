//! `rlhf launch`: a run as several processes, on one or several machines.

use std::fmt::Write as _;
use std::time::Duration;

use clap::{Args, Parser};

use super::run;
use crate::cli::{Cli, Command};
use crate::failure::{Failure, Outcome};
use crate::team::{Nodes, Team};
use crate::values::at_least_one;

/// How long ranks wait for all to be there, seconds.
pub const JOIN_S: u64 = 300;

/// How long they wait for each other later on, seconds.
pub const TIMEOUT_S: u64 = 1800;

/// `rlhf launch`.
#[derive(Debug, Clone, Args)]
pub struct LaunchArgs {
    /// Processes on this machine, one for each device.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub ranks: usize,
    /// Machines, each of which is told the same [default: those of the Slurm step, else 1].
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub nodes: Option<usize>,
    /// This machine, from 0 [default: its number in the Slurm step, else 0].
    #[arg(long, value_name = "I")]
    pub node_rank: Option<usize>,
    /// Where the first machine listens [default: the first of the Slurm step, else this machine].
    #[arg(long, value_name = "HOST:PORT")]
    pub master: Option<String>,
    /// How long ranks wait for all to be there, seconds.
    #[arg(long, value_name = "S", default_value_t = JOIN_S, value_parser = clap::value_parser!(u64).range(1..))]
    pub join_timeout: u64,
    /// How long they wait for each other after that, seconds: more than the slowest may be behind.
    #[arg(long, value_name = "S", default_value_t = TIMEOUT_S, value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: u64,
    /// The exit code where a process is killed by a signal: whoever starts this may want to start it again then.
    #[arg(long, value_name = "CODE", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    pub exit_if_killed: u8,
    /// The exit code where processes of another machine fail or are lost: theirs says whether to start again.
    #[arg(long, value_name = "CODE", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    pub exit_if_lost: u8,
    /// What to run: `run CONFIG` and its options.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Runs a pipeline's stages as several processes each.
///
/// # Errors
/// As [`run::run`]; a command that is not `run`, machines that make no sense.
pub fn run(args: &LaunchArgs) -> Outcome {
    let words = std::iter::once("rlhf").chain(args.command.iter().map(String::as_str));
    let command = Cli::try_parse_from(words)
        .unwrap_or_else(|error| error.exit())
        .command;
    let Command::Run(command) = command else {
        return Err(Failure::usage(anyhow::anyhow!(
            "rlhf launch -- {}: only `run` runs as several processes\n  hint: rlhf launch --ranks {} -- run CONFIG",
            args.command.join(" "),
            args.ranks
        )));
    };
    let nodes = Nodes {
        count: args.nodes,
        this: args.node_rank,
        master: args.master.as_deref(),
    };
    let patience = (
        Duration::from_secs(args.join_timeout),
        Duration::from_secs(args.timeout),
    );
    let variable = |name: &str| std::env::var(name).ok();
    let team = Team::of_nodes(args.ranks, &nodes, patience, &variable).map_err(Failure::usage)?;
    run::run(&command, &team, &front(args)).map_err(|failure| match failure {
        Failure::Killed(error, _) => Failure::Killed(error, args.exit_if_killed),
        Failure::Elsewhere(error) => Failure::Killed(error, args.exit_if_lost),
        other => other,
    })
}

/// The command before `run`, for the words that say how to go on.
fn front(args: &LaunchArgs) -> String {
    let mut command = format!("rlhf launch --ranks {}", args.ranks);
    let numbers = [("--nodes", args.nodes), ("--node-rank", args.node_rank)];
    for (flag, value) in numbers {
        if let Some(value) = value {
            let _ = write!(command, " {flag} {value}");
        }
    }
    if let Some(master) = &args.master {
        let _ = write!(command, " --master {master}");
    }
    let times = [
        ("--join-timeout", args.join_timeout, JOIN_S),
        ("--timeout", args.timeout, TIMEOUT_S),
    ];
    for (flag, value, _) in times.iter().filter(|(_, value, usual)| value != usual) {
        let _ = write!(command, " {flag} {value}");
    }
    command.push_str(" --");
    command
}
