//! `rlhf`: the one command that a user sees. It reads and checks a configuration, decides which
//! stages are to be run, starts `rlhf-worker` for what needs tensors, and shows what happens.
//!
//! **In:** a command line. **Out:** data on standard output, everything else on standard error, and
//! an exit code (see [`failure`]).
//!
//! **Architecture invariant:** nothing here links libtorch, so that every command starts at once and
//! can explain itself on a machine where libtorch is missing or broken.
//!
//! **Reading order:** [`cli`] (what can be said), [`commands`] (a file per command),
//! [`graph`] and [`fingerprint`] (what is to be run), [`team`], [`crew`], [`worker`] and [`libtorch`] (how it is run), [`cluster`] (as jobs),
//! [`hub`] (models from elsewhere), [`inspect`] (how it is looked at).

mod checks;
mod cli;
mod cli_model;
mod cluster;
mod commands;
mod crew;
mod data_stages;
mod death;
mod failed;
mod failure;
mod fingerprint;
#[cfg(test)]
mod fixtures;
mod graph;
mod hub;
mod inspect;
mod libtorch;
mod progress;
mod team;
mod values;
mod worker;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command, EvalCommand, ModelCommand};
use failure::Outcome;

fn main() -> ExitCode {
    match dispatch(&Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn dispatch(command: &Command) -> Outcome {
    match command {
        Command::Run(args) => commands::run::alone(args),
        Command::Launch(args) => commands::launch::run(args),
        Command::Plan(args) => commands::plan::run(args),
        Command::Conduct(args) => commands::conduct::run(args),
        Command::Submit(args) => commands::submit::run(args),
        Command::Status(args) => commands::status::run(args),
        Command::Cancel(args) => commands::cancel::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Generate(args) => commands::generate::run(args),
        Command::Score(args) => commands::score::run(args),
        Command::Chat(args) => commands::chat::run(args),
        Command::Model { command } => match command {
            ModelCommand::Sizes => {
                commands::model::list_sizes();
                Ok(())
            }
            ModelCommand::Pull(args) => commands::pull::run(args),
            ModelCommand::Convert(args) => commands::model::convert(args),
            ModelCommand::Merge(args) => commands::model::merge(args),
            ModelCommand::Show(args) => commands::model_files::show(args),
            ModelCommand::Diff(args) => commands::model_files::diff(args),
        },
        Command::Eval(args) => match &args.command {
            Some(EvalCommand::Retrieval(args)) => commands::retrieval::run(args),
            None => commands::eval::run(args),
        },
        Command::Bench(args) => commands::bench::run(args),
        Command::GpuCheck(args) => commands::gpu_check::run(args),
        Command::Doctor(args) => commands::doctor::run(args),
    }
}
