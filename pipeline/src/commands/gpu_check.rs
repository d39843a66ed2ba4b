//! `rlhf gpu-check`: does CUDA compute what the CPU computes?
//!
//! First a 1.3B model is trained and sampled in bf16, which fails at once where CUDA cannot be used.
//! Then the tiny pipeline runs on the CPU, and every stage again on CUDA *from the CPU's artefacts*, so
//! that differences cannot grow from stage to stage; the first updates are compared.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use recipe::plan::{Plan, StagePlan, Task};
use runtime::RunFolder;
use runtime::metrics::read_metrics;
use runtime::run_folder::PLAN;

use super::{default_file, find_libtorch, last_line, print};
use crate::cli::{ConfigArgs, GpuCheckArgs, RunArgs};
use crate::failure::{Failure, Outcome};
use crate::hub::Models;
use crate::inspect::read_plan;
use crate::values::Device;
use crate::worker::Worker;

/// Largest relative difference between CUDA and CPU, f32.
const TOLERANCE: f64 = 1e-4;
/// Updates that are compared; rounding differences grow with every update.
const STEPS_COMPARED: u64 = 3;

/// Runs both, compares, and prints the figures as JSON lines.
///
/// # Errors
/// CUDA that cannot be used, a stage that fails, or a number that differs.
pub fn run(args: &GpuCheckArgs) -> Outcome {
    let config = default_file(args.config.as_deref(), "experiments/tiny/pipeline.toml")?;
    let (cpu, cuda) = (args.run_dir.join("cpu"), args.run_dir.join("cuda"));
    eprintln!("1.3B model in bf16: two training steps, then sampling");
    let figures = worker_answer(&["gpu-check"])?;
    let _ = print(&figures);
    for folder in [&cpu, &cuda] {
        if folder.exists() {
            fs::remove_dir_all(folder)
                .with_context(|| format!("cannot remove {}", folder.display()))
                .map_err(Failure::Run)?;
        }
    }
    let source = without_dropout(config)?;
    super::run::run(&run_args(&source, &cpu, Device::Cpu))?;
    let plan = read_plan(&cpu).map_err(Failure::Run)?;
    let plan = plan.ok_or_else(|| Failure::Run(anyhow!("{} has no plan", cpu.display())))?;
    let mut differences = Vec::new();
    for stage in &plan.stages {
        if matches!(
            stage.task,
            Task::Import(_) | Task::Tokenizer(_) | Task::Label(_)
        ) {
            continue;
        }
        let largest = compare_stage(&plan, &stage.name, &cpu, &cuda)?;
        let line =
            serde_json::json!({ "stage": stage.name, "largest_relative_difference": largest });
        let _ = print(&line.to_string());
        if largest > TOLERANCE {
            differences.push(format!("{} {largest:.2e}", stage.name));
        }
    }
    if differences.is_empty() {
        eprintln!("gpu-check: CUDA agrees with the CPU within {TOLERANCE:.0e}");
        return Ok(());
    }
    Err(Failure::Run(anyhow!(
        "CUDA differs from the CPU by more than {TOLERANCE:.0e}: {}",
        differences.join(", ")
    )))
}

/// Each device draws its own dropout, so there is none where two are compared.
fn without_dropout(config: PathBuf) -> Outcome<ConfigArgs> {
    let mut source = ConfigArgs {
        config,
        overrides: Vec::new(),
    };
    let plan = Models::default().plan(&source, None)?;
    let dropped = |stage: &StagePlan| {
        let key = format!("stages.{}.dropout", stage.name);
        (stage.task.train()?.dropout > 0.0).then(|| (key, "0".to_owned()))
    };
    source.overrides = plan.stages.iter().filter_map(dropped).collect();
    Ok(source)
}

fn run_args(source: &ConfigArgs, run_dir: &Path, device: Device) -> RunArgs {
    RunArgs {
        source: source.clone(),
        only: None,
        kind: None,
        until: None,
        restart: Vec::new(),
        run_dir: Some(run_dir.to_owned()),
        device,
    }
}

/// Runs one stage on CUDA in a folder whose other stages are the CPU's; returns the largest relative
/// difference of the first losses.
fn compare_stage(plan: &Plan, name: &str, cpu: &Path, cuda: &Path) -> Outcome<f64> {
    let io = |error: std::io::Error| Failure::Run(error.into());
    let folder = cuda.join(name);
    fs::create_dir_all(&folder).map_err(io)?;
    fs::copy(cpu.join(PLAN), folder.join(PLAN)).map_err(io)?;
    for stage in plan.stages.iter().filter(|stage| stage.name != name) {
        let target = std::path::absolute(cpu.join(&stage.name)).map_err(io)?;
        std::os::unix::fs::symlink(target, folder.join(&stage.name)).map_err(io)?;
    }
    eprintln!("{name} on CUDA");
    let run_dir = folder.to_string_lossy().into_owned();
    worker_answer(&[
        "stage",
        "--run-dir",
        &run_dir,
        "--stage",
        name,
        "--device",
        "cuda",
    ])?;
    let rows = |root: &Path| -> Outcome<_> {
        let run = RunFolder::open_or_create(root).map_err(Failure::run)?;
        read_metrics(&run.stage(name).metrics_path()).map_err(Failure::run)
    };
    let (on_cpu, on_cuda) = (rows(cpu)?, rows(&folder)?);
    let names = [
        "loss/train",
        "ppo/policy_loss",
        "ppo/value_loss",
        "objective/score",
        "optimizer/grad_norm",
    ];
    let mut largest: f64 = 0.0;
    let mut compared = 0;
    for (a, b) in on_cpu
        .iter()
        .zip(&on_cuda)
        .filter(|(a, _)| a.step <= STEPS_COMPARED)
    {
        for name in names {
            if let (Some(x), Some(y)) = (a.values.get(name), b.values.get(name)) {
                // Losses near zero (PPO's policy loss) are compared absolutely.
                largest = largest.max((x - y).abs() / x.abs().max(1.0));
                compared += 1;
            }
        }
    }
    if compared == 0 {
        return Err(Failure::Run(anyhow!(
            "{name}: the two runs have no metric in common"
        )));
    }
    Ok(largest)
}

/// Runs the worker to its end; returns the last line of its data.
fn worker_answer(args: &[&str]) -> Outcome<String> {
    let worker = Worker::start(&find_libtorch()?, args, None).map_err(Failure::run)?;
    last_line(worker).map_err(Failure::run)
}
