//! `rlhf submit`: a pipeline's stages as jobs of a cluster, one for each, which wait for each other.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use runtime::RunFolder;
use runtime::run_lock::seconds_since_epoch;

use super::print;
use crate::cli::ConfigArgs;
use crate::cluster::CHECK;
use crate::cluster::jobs::{Jobs, Settings};
use crate::cluster::kubectl::Kubectl;
use crate::cluster::kubernetes::{self, Submission as OnKubernetes};
use crate::cluster::record::{Submission, seed_folder};
use crate::cluster::runs::{self, Cluster, Run, Wanted};
use crate::cluster::script::script_path;
use crate::cluster::slurm;
use crate::cluster::submission::Submitting;
use crate::failure::{Failure, Outcome};
use crate::hub::Models;
use crate::values::{Device, parse_seeds};

/// Submit a pipeline to a cluster: a job for each stage that is not done, each after those it needs
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  rlhf submit big.toml --to slurm --dry-run
  rlhf submit big.toml --to slurm --run-dir /scratch/me/big
  rlhf submit big.toml --to slurm --seeds 1-4
  rlhf submit big.toml --to kubernetes --run-dir /shared/big --dry-run > big.json

[cluster.slurm] or [cluster.kubernetes] in the file says how large jobs are. The run folder is on a file system that all nodes
see. Needs neither libtorch nor a GPU here. Stages that are done, or whose job is still there, get no other; those that
failed get a new one, and go on from their last snapshot. Then, on Slurm: rlhf status RUN, rlhf cancel RUN. On Kubernetes
kubectl does that; the folder of the run need not be seen from here, and its last name is the run's.")]
pub struct SubmitArgs {
    /// What to run.
    #[command(flatten)]
    pub source: ConfigArgs,
    /// The cluster.
    #[arg(long, value_enum)]
    pub to: Cluster,
    /// Submit this stage and all that it needs.
    #[arg(long, value_name = "STAGE")]
    pub until: Option<String>,
    /// Move this stage and all that depend on it to STAGE.old-N, and run them anew; may be repeated.
    #[arg(long, value_name = "STAGE")]
    pub restart: Vec<String>,
    /// The run folder, which all nodes see [default: runs/NAME, where NAME stands in the file].
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// A run for each seed, in the folders seed-N of the run folder, as arrays of jobs: 1,2,5-8.
    #[arg(long, value_name = "LIST", value_parser = parse_seeds)]
    pub seeds: Option<Seeds>,
    /// Where nodes compute; auto is the first GPU where there is one.
    #[arg(long, value_enum, default_value_t)]
    pub device: Device,
    /// The same bits in every run on one kind of GPU, too.
    #[arg(long)]
    pub deterministic: bool,
    /// Print the scripts or manifests, and submit nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Seeds of a submission.
pub type Seeds = std::sync::Arc<[u64]>;

/// Submits what is not done.
///
/// # Errors
/// Whatever `rlhf run` would refuse; no Slurm or `kubectl`, or its refusal, after which nothing of this submission is left.
pub fn run(args: &SubmitArgs) -> Outcome {
    let models = Models::default();
    let seeds = args.seeds.as_deref().unwrap_or(&[]);
    let wanted = Wanted {
        cluster: args.to,
        source: &args.source,
        run_dir: args.run_dir.as_deref(),
        until: args.until.as_deref(),
        restart: &args.restart,
        seeds,
    };
    let root = runs::root(&models, &wanted)?;
    match args.to {
        Cluster::Slurm => to_slurm(args, &models, (&wanted, &root)),
        Cluster::Kubernetes => to_kubernetes(args, &runs::runs(&models, &wanted, &root)?, &root),
    }
}

fn to_kubernetes(args: &SubmitArgs, runs: &[Run], root: &Path) -> Outcome {
    let name = kubernetes::name(root);
    let Settings { options, .. } = settings(args);
    if args.dry_run {
        // What the cluster has is not looked at: this may be any machine.
        let there = BTreeMap::new();
        let submission = OnKubernetes::new((&name, &options), runs, &there)?;
        submission.say_what_stays();
        // A reader that has seen enough (`| head`) is no failure.
        let _ = print(kubernetes::text(&submission.objects()).trim_end());
        return Ok(());
    }
    let kubectl = Kubectl {
        namespace: &kubernetes::table(&runs[0].plan)?.namespace,
    };
    let there = kubectl.jobs(&name)?;
    let submission = OnKubernetes::new((&name, &options), runs, &there)?;
    submission.admit()?;
    submission.submit(&kubectl)
}

fn to_slurm(args: &SubmitArgs, models: &Models, (wanted, root): (&Wanted, &Path)) -> Outcome {
    let (version, time) = (env!("CARGO_PKG_VERSION"), seconds_since_epoch());
    let token = format!("{version}-{}-{time}", std::process::id());
    // What the configuration says is checked anywhere, and again once nobody else may change the folder.
    let runs = runs::runs(models, wanted, root)?;
    if args.dry_run {
        let record = Submission::read(root).map_err(Failure::run)?;
        let record = record.unwrap_or_default();
        // Where Slurm is not, every stage that is not done is shown.
        let queue = slurm::look(&record.ids()).unwrap_or_default();
        let jobs = Jobs::new((root, &token), &runs, settings(args), (&record, &queue))?;
        show(&jobs);
        return Ok(());
    }
    slurm::is_there()?;
    let folders = wanted
        .seeds
        .iter()
        .map(|seed| seed_folder(root, Some(*seed)));
    let mut locks = Vec::new();
    for folder in std::iter::once(root.to_owned()).chain(folders) {
        let folder = RunFolder::open_or_create(&folder).map_err(Failure::run)?;
        locks.push(folder.lock_part(CHECK).map_err(Failure::run)?);
    }
    let runs = runs::runs(models, wanted, root)?;
    let record = Submission::read(root).map_err(Failure::run)?;
    let record = record.unwrap_or_default();
    let queue = slurm::look(&record.ids())?;
    let jobs = Jobs::new((root, &token), &runs, settings(args), (&record, &queue))?;
    let mut submitting = Submitting {
        jobs,
        config: &args.source.config,
        record,
        queue,
    };
    submitting.admit()?;
    submitting.fetch(models)?;
    submitting.prepare()?;
    submitting.submit()
}

fn settings(args: &SubmitArgs) -> Settings {
    let mut options = vec!["--device".to_owned(), args.device.as_str().to_owned()];
    if args.deterministic {
        options.push("--deterministic".to_owned());
    }
    Settings {
        options,
        on_cpu: args.device == Device::Cpu,
        seeds: args.seeds.is_some(),
    }
}

/// Prints what would be submitted.
fn show(jobs: &Jobs) {
    let mut text = String::new();
    let mut add = |stage: &str, options: &[String]| {
        let path = script_path(jobs.root, stage);
        let (options, script) = (options.join(" "), jobs.script(stage));
        let _ = writeln!(text, "### sbatch {options} {}\n{script}", path.display());
    };
    if jobs.has_new() {
        add(CHECK, &slurm::options(None, None));
    }
    for wave in &jobs.waves {
        let ids: BTreeMap<String, String> = wave
            .new_stages()
            .chain([CHECK])
            .map(|stage| (stage.to_owned(), format!("<{stage}>")))
            .collect();
        let places = jobs.places(wave);
        for stage in wave.new_stages() {
            let (_, dependency) = jobs.dependency((wave, stage), &ids);
            add(
                stage,
                &slurm::options(dependency.as_deref(), places.as_deref()),
            );
        }
    }
    jobs.say_what_stays();
    // A reader that has seen enough (`| head`) is no failure.
    let _ = print(text.trim_end());
}
