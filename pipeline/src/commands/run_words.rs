//! What `rlhf run` says: what each stage will do, and how to go on.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use recipe::plan::{Duration as Length, Task, TrainPlan};

use crate::cli::RunArgs;

/// The command that continues: the same one, without restarts. `front` is what stands before `run`.
pub fn continuation(front: &str, args: &RunArgs) -> String {
    let mut command = format!("{front} run {}", args.source.config.display());
    let flags = [
        ("--only", &args.only),
        ("--kind", &args.kind),
        ("--until", &args.until),
    ];
    for (flag, value) in flags {
        if let Some(value) = value {
            let _ = write!(command, " {flag} {value}");
        }
    }
    for (key, value) in &args.source.overrides {
        let _ = write!(command, " --set '{key}={value}'");
    }
    if let Some(dir) = &args.run_dir {
        let _ = write!(command, " --run-dir {}", dir.display());
    }
    if args.device != crate::values::Device::default() {
        let _ = write!(command, " --device {}", args.device.as_str());
    }
    if args.deterministic {
        command.push_str(" --deterministic");
    }
    command
}

/// Relative to the working directory where that is shorter.
pub fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    let short: PathBuf = path.strip_prefix(here).unwrap_or(path).into();
    short.display().to_string()
}

/// What a stage will do.
pub fn in_words(task: &Task) -> String {
    match task {
        Task::Import(import) => match &import.path {
            Some(path) => format!("convert {} ({})", shown(path), import.format),
            None => format!("make data ({})", import.format),
        },
        Task::Tokenizer(plan) => format!("train a tokenizer of {} tokens", plan.vocab_size),
        Task::Pretrain(plan) => format!("train a base model, {}", length(&plan.train)),
        Task::Sft(plan) => format!("fine-tune on demonstrations, {}", length(&plan.train)),
        Task::Label(plan) => format!(
            "sample {} responses to each of {} prompts and rank them",
            plan.responses,
            plan.num_prompts + plan.num_heldout
        ),
        Task::Reward(plan) => format!("train a reward model on rankings, {}", length(&plan.train)),
        Task::Ppo(plan) => format!(
            "optimise the policy by PPO, {} iterations of {} episodes",
            plan.iterations, plan.batch
        ),
    }
}

fn length(train: &TrainPlan) -> String {
    match train.duration {
        Length::Steps(steps) => format!("{steps} steps of {}", train.batch),
        Length::Epochs(epochs) => format!("{epochs} epochs in steps of {}", train.batch),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    #[test]
    fn the_continuation_is_the_command_without_restarts() {
        let line = "rlhf run a.toml --until sft --restart sft --set b=1 --run-dir r --device cpu --deterministic";
        let Ok(Cli {
            command: Command::Run(args),
        }) = Cli::try_parse_from(line.split(' '))
        else {
            panic!("must parse")
        };
        let expected =
            "rlhf run a.toml --until sft --set 'b=1' --run-dir r --device cpu --deterministic";
        assert_eq!(continuation("rlhf", &args), expected);
        assert_eq!(
            continuation("rlhf launch --ranks 2 --", &args).replacen("launch --ranks 2 -- ", "", 1),
            expected
        );
    }
}
