//! `rlhf gpu-check`: does a GPU compute what the CPU computes, and how fast?
//!
//! A sequence of parts. The tiny pipeline runs on the CPU, and every stage again on the GPU *from the CPU's
//! artefacts*, so that differences cannot grow from stage to stage; then twice in deterministic mode. After that the
//! product's own stages are timed on models of 124M to 1.3B random weights, beside `PyTorch` and transformers where a
//! Python has them. A part that fails does not stop the others, and one that the time does not allow is left out.
//!
//! With `--device cpu` the same parts run in small on the CPU, where libtorch's plain operators stand for the GPU's.
//!
//! Reading order: this file, `work` (what all parts stand on), `agreement`, `texts`, `twice`, `goals`, `speed`,
//! `theirs`, `report`.

mod agreement;
mod goals;
mod report;
mod speed;
mod texts;
mod theirs;
mod twice;
mod work;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use clap::{Args, ValueEnum};
use recipe::plan::Plan;
use recipe::request::DeviceReport;
use runtime::interrupt;

use super::measured::{machine, replace_folder};
use super::{default_file, find_libtorch, print};
use crate::cli::ConfigArgs;
use crate::failure::{Failure, Outcome};
use crate::hub::Models;
use crate::libtorch::Libtorch;
use crate::values::at_least_one;
use report::{Report, State};
use work::TimeUp;

/// `rlhf gpu-check`.
#[derive(Debug, Clone, Args)]
pub struct GpuCheckArgs {
    /// What is checked; cpu is a rehearsal of the same parts in small.
    #[arg(long, value_enum, default_value_t)]
    pub device: Checked,
    /// The pipeline whose stages are compared [default: experiments/tiny/pipeline.toml, here or beside bin/].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Only these parts, separated by commas, and what they need.
    #[arg(long, value_enum, value_name = "PART,...", value_delimiter = ',')]
    pub parts: Vec<Part>,
    /// Seconds for all parts: one that would last longer is left out, or cut.
    #[arg(long, value_name = "S", default_value_t = 480, value_parser = at_least_one)]
    pub budget_s: usize,
    /// A Python with torch and transformers, for the other side [default: .peers/bin/python, then python3].
    #[arg(long, value_name = "PYTHON")]
    pub peers: Option<PathBuf>,
    /// Ours alone.
    #[arg(long, conflicts_with = "peers")]
    pub no_peers: bool,
    /// Where its runs go; what an earlier check left there is replaced.
    #[arg(long, value_name = "DIR", default_value = "runs/gpu-check")]
    pub run_dir: PathBuf,
    /// Where gpu-check.json and gpu-check.md go [default: the run folder].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// What is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Checked {
    /// The first GPU.
    #[default]
    Cuda,
    /// Nothing but the check itself.
    Cpu,
}

/// A step of the check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// The device, its largest matrix product and copy.
    Device,
    /// The tiny pipeline on the CPU.
    Cpu,
    /// Every stage, sampling and scoring against the CPU's, f32.
    AgreeF32,
    /// The same in bf16.
    AgreeBf16,
    /// Every stage twice in deterministic mode: the same bits.
    Twice,
    /// Models with random weights, and data.
    Models,
    /// Training GPT-2 124M.
    Gpt2,
    /// Sampling from 1.3B.
    Sample,
    /// PPO: DeepSpeed-Chat's step 3.
    Ppo,
    /// Training 1.3B.
    Llama,
    /// The other side's training.
    PeersTrain,
    /// The other side's sampling.
    PeersSample,
}

impl Part {
    /// In the order in which they run.
    const ALL: [Self; 12] = [
        Self::Device,
        Self::Cpu,
        Self::AgreeF32,
        Self::AgreeBf16,
        Self::Twice,
        Self::Models,
        Self::Gpt2,
        Self::Sample,
        Self::Ppo,
        Self::Llama,
        Self::PeersTrain,
        Self::PeersSample,
    ];

    fn needs(self) -> &'static [Self] {
        match self {
            Self::Device => &[],
            Self::Cpu | Self::Models => &[Self::Device],
            Self::AgreeF32 | Self::AgreeBf16 | Self::Twice => &[Self::Device, Self::Cpu],
            _ => &[Self::Device, Self::Models],
        }
    }

    /// Seconds below which it is not begun on a GPU: a guess, until somebody has measured it.
    fn least_seconds(self) -> u64 {
        match self {
            Self::Device | Self::Cpu => 5,
            Self::Gpt2 => 15,
            Self::AgreeF32 | Self::AgreeBf16 | Self::Twice | Self::Models | Self::Sample => 20,
            Self::Llama => 25,
            Self::Ppo | Self::PeersTrain | Self::PeersSample => 40,
        }
    }

    fn word(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }
}

/// What the parts share.
struct Check<'a> {
    args: &'a GpuCheckArgs,
    root: PathBuf,
    libtorch: Libtorch,
    deadline: Instant,
    /// The tiny pipeline as it ran on the CPU.
    tiny: Option<Plan>,
    /// What is timed.
    speed: Option<Plan>,
    device: Option<DeviceReport>,
    report: Report,
}

/// Runs all parts, and prints and writes what they found.
///
/// # Errors
/// No device that can be used, a part that fails, or a number that differs: behind the table.
pub fn run(args: &GpuCheckArgs) -> Outcome {
    let libtorch = find_libtorch()?;
    default_file(args.config.as_deref(), TINY)?;
    replace_folder(&args.run_dir, "gpu-check")?;
    interrupt::install().map_err(Failure::run)?;
    let mut check = Check {
        args,
        root: std::path::absolute(&args.run_dir).map_err(Failure::run)?,
        libtorch,
        deadline: Instant::now() + Duration::from_secs(args.budget_s as u64),
        tiny: None,
        speed: None,
        device: None,
        report: Report::new(args.device == Checked::Cpu, machine()),
    };
    for part in Part::ALL.into_iter().filter(|part| is_wanted(*part, args)) {
        let started = Instant::now();
        let state = check.state_after(part);
        let (word, seconds) = (part.word(), started.elapsed().as_secs_f64());
        eprintln!("{word}: {} ({seconds:.0} s)", state.words());
        check.report.end_part(word, state, seconds);
        if interrupt::requested() {
            break;
        }
    }
    let table = check.report.table();
    let _ = print(&table);
    let out = args.out.as_deref().unwrap_or(&args.run_dir);
    check.report.write(out, &table).map_err(Failure::Run)?;
    match check.report.problems() {
        problems if problems.is_empty() => Ok(()),
        problems => Err(Failure::Run(anyhow!(problems.join("; ")))),
    }
}

/// The pipeline whose stages are compared, and those that are timed.
const TINY: &str = "experiments/tiny/pipeline.toml";
const SPEED: &str = "experiments/gpu/pipeline.toml";
const REHEARSAL: &str = "experiments/gpu/rehearsal.toml";

fn is_wanted(part: Part, args: &GpuCheckArgs) -> bool {
    let named = |part: &Part| args.parts.is_empty() || args.parts.contains(part);
    named(&part) || args.parts.iter().any(|other| other.needs().contains(&part))
}

impl Check<'_> {
    fn is_rehearsal(&self) -> bool {
        self.args.device == Checked::Cpu
    }

    /// Brings a part to its end, unless something that it needs is missing or the time is short.
    fn state_after(&mut self, part: Part) -> State {
        if let Some(missing) = part
            .needs()
            .iter()
            .find(|it| !self.report.is_done(&it.word()))
        {
            return State::NotRun(format!("it needs `{}`", missing.word()));
        }
        let left = self.deadline.saturating_duration_since(Instant::now());
        let least = if self.is_rehearsal() {
            1
        } else {
            part.least_seconds()
        };
        if left.as_secs() < least {
            let left = left.as_secs();
            return State::NotRun(format!("{left} s of {} were left", self.args.budget_s));
        }
        match self.attempt(part) {
            Ok(state) => state,
            Err(error) if error.is::<TimeUp>() => State::NotRun(error.to_string()),
            Err(error) => State::Failed(runtime::logging::in_words(error.as_ref())),
        }
    }

    fn attempt(&mut self, part: Part) -> anyhow::Result<State> {
        match part {
            Part::Device => self.measure_device()?,
            Part::Cpu => self.run_on_cpu()?,
            Part::AgreeF32 => return self.agree_in_f32(),
            Part::AgreeBf16 => return self.agree_in_bf16(),
            Part::Twice => return self.run_twice(),
            Part::Models => self.make_models()?,
            Part::Gpt2 => self.time_gpt2()?,
            Part::Sample => self.time_sampling()?,
            Part::Ppo => self.time_ppo()?,
            Part::Llama => self.time_llama()?,
            Part::PeersTrain => return self.time_their_training(),
            Part::PeersSample => return self.time_their_sampling(),
        }
        Ok(State::Done)
    }

    /// A configuration with overrides, resolved.
    fn plan(config: &Path, overrides: Vec<(String, String)>) -> Outcome<(ConfigArgs, Plan)> {
        let source = ConfigArgs {
            config: config.to_owned(),
            overrides,
        };
        let plan = Models::default().plan(&source, None)?;
        Ok((source, plan))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn arguments(line: &str) -> GpuCheckArgs {
        match Cli::try_parse_from(line.split(' ')) {
            Ok(Cli {
                command: Command::GpuCheck(args),
            }) => args,
            other => panic!("must parse: {other:?}"),
        }
    }

    #[test]
    fn parts_come_after_what_they_need_and_bring_it_along() {
        for (at, part) in Part::ALL.iter().enumerate() {
            let before = &Part::ALL[..at];
            assert!(
                part.needs().iter().all(|it| before.contains(it)),
                "{part:?}"
            );
        }
        let args = arguments("rlhf gpu-check --parts ppo,twice");
        let wanted: Vec<Part> = Part::ALL
            .into_iter()
            .filter(|it| is_wanted(*it, &args))
            .collect();
        let expected = [
            Part::Device,
            Part::Cpu,
            Part::Twice,
            Part::Models,
            Part::Ppo,
        ];
        assert_eq!(wanted, expected);
        let args = arguments("rlhf gpu-check");
        assert!(Part::ALL.into_iter().all(|part| is_wanted(part, &args)));
        assert_eq!((args.device, args.budget_s), (Checked::Cuda, 480));
    }
}
