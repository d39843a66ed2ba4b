//! One stage of a run.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use recipe::memory::{Place, Site};
use recipe::plan::{Plan, StagePlan, Task};
use runtime::events::{Event, emit};
use runtime::hash::hash_file;
use runtime::ranks;
use runtime::run_folder::RunFolder;
use tch::Device;
use torch_ext::TorchError;
use trainer::{Identity, Outcome, Patience, Ranks, StageContext};

/// How a stage is run here.
pub struct Launch<'a> {
    /// Where to compute.
    pub device: &'a str,
    /// The same bits in every run.
    pub deterministic: bool,
    /// Of what the stage is made.
    pub hash: &'a str,
    /// How long ranks wait for each other.
    pub patience: Patience,
}

/// Runs `name` from its last snapshot, or from the start, with the other ranks where there are some.
pub fn run(run_dir: &Path, name: &str, launch: &Launch) -> Result<ExitCode> {
    let device = crate::compute::device(launch.device)?;
    // Before anything is read: the first rank's front has written it by then.
    let ranks = join(name, device, launch)?;
    let run = RunFolder::open_or_create(run_dir)?;
    let text = std::fs::read_to_string(run.plan_path())
        .with_context(|| format!("{}", run.plan_path().display()))?;
    let plan = Plan::from_toml(&text)?;
    let Some(stage) = plan.stage(name) else {
        bail!("{} has no stage `{name}`", run.plan_path().display());
    };
    let deterministic = launch.deterministic;
    if deterministic {
        torch_ext::use_deterministic()?;
    }
    tracing::info!(
        stage = name,
        ?device,
        deterministic,
        threads = tch::get_num_threads(),
        "started"
    );
    if device == Device::Cpu {
        let (place, ranks) = (Place::Cpu, ranks.size());
        save_memory(&plan, stage, Site { place, ranks });
    }
    let ctx = StageContext::new(run, stage.clone(), plan.seed, device, ranks)?;
    let outcome = run_task(&ctx).map_err(|error| with_others(&ctx, error))?;
    let interrupted = outcome == Outcome::Interrupted;
    emit(&Event::Finished {
        stage: name.to_owned(),
        interrupted,
    });
    Ok(ExitCode::SUCCESS)
}

fn run_task(ctx: &StageContext) -> Result<Outcome> {
    Ok(match &ctx.plan.task {
        Task::Pretrain(task) => pretrain::run(ctx, task)?,
        Task::Sft(task) => sft::run(ctx, task)?,
        Task::Label(task) => label::run(ctx, task)?,
        Task::Reward(task) => reward::run(ctx, task)?,
        Task::Ppo(task) => ppo::run(ctx, task)?,
        Task::Import(_) | Task::Tokenizer(_) => {
            bail!("stage `{}` needs no worker", ctx.plan.name)
        }
    })
}

/// An error of communication with what is known of the other ranks, where it comes from below the trainer (the weights of
/// a divided model).
fn with_others(ctx: &StageContext, error: anyhow::Error) -> anyhow::Error {
    let torch = error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(torch @ TorchError::Communication { .. }) => Some(torch),
        _ => None,
    });
    match torch {
        Some(torch) => ctx.ranks.explain(torch).into(),
        None => error,
    }
}

fn join(stage: &str, device: Device, launch: &Launch) -> Result<Ranks> {
    let Some(place) = ranks::Place::from_environment()?.filter(|place| place.size > 1) else {
        return Ok(Ranks::alone());
    };
    // A program of other sources has other bytes.
    let program = hash_file(&std::env::current_exe()?)?;
    let work = format!("plan {:.12} with program {program:.12}", launch.hash);
    let identity = Identity { stage, work: &work };
    Ok(Ranks::join(&place, device, identity, launch.patience)?)
}

/// A stage that will have more than this in memory gives back each tensor's as soon as it is freed, so that it has what
/// its plan says. That costs page faults for every activation, which smaller stages are spared.
const LARGE_BYTES: u64 = 768 << 20;
/// The smallest of such tensors.
const GIVEN_BACK_BYTES: usize = 1 << 20;
/// The user's own word on it, which glibc reads.
const MMAP_THRESHOLD: &str = "MALLOC_MMAP_THRESHOLD_";

fn save_memory(plan: &Plan, stage: &StagePlan, site: Site) {
    let is_large = recipe::peak_bytes(plan, stage, site) > LARGE_BYTES;
    if is_large && std::env::var_os(MMAP_THRESHOLD).is_none() {
        torch_ext::give_back_tensors(GIVEN_BACK_BYTES);
    }
}
