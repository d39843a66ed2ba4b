//! `rlhf plan`: checks everything, prints every resolved number, starts nothing.

use std::fmt::Write as _;

use clap::Args;
use recipe::cluster::{Cluster, Gpu};
use recipe::plan::{JobSize, KubernetesJob, Plan, SlurmJob};
use recipe::stage_numbers;

use super::{cluster, print};
use crate::checks::check_inputs;
use crate::cli::ConfigArgs;
use crate::failure::{Failure, Outcome};
use crate::hub::Models;
use crate::values::{above_zero, at_least_one};

/// `rlhf plan`.
#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    /// What to plan.
    #[command(flatten)]
    pub source: ConfigArgs,
    /// Say what it would take on N GPUs.
    #[arg(long, value_name = "N", value_parser = at_least_one, requires = "gpu")]
    pub gpus: Option<usize>,
    /// The kind of these GPUs, as in h100-80g.
    #[arg(long, value_name = "NAME", requires = "gpus")]
    pub gpu: Option<String>,
    /// GPUs in one node.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one, requires = "gpus")]
    pub gpus_per_node: usize,
    /// Of a node to the others, all its adapters together, Gbit/s; as of eight adapters of 400.
    #[arg(long, value_name = "X", default_value_t = 3200.0, value_parser = above_zero, requires = "gpus")]
    pub network_gbps: f64,
}

impl PlanArgs {
    /// The cluster that was said, if any.
    fn cluster(&self) -> Result<Option<Cluster>, Failure> {
        let (Some(gpus), Some(gpu)) = (self.gpus, &self.gpu) else {
            return Ok(None);
        };
        let gpu = Gpu::named(gpu).map_err(|error| Failure::usage(anyhow::anyhow!(error)))?;
        Ok(Some(Cluster {
            gpu,
            gpus,
            gpus_per_node: self.gpus_per_node,
            network_gbps: self.network_gbps,
        }))
    }
}

/// Prints the plan, or what it would take on a cluster.
///
/// # Errors
/// A configuration or an input that is wrong.
pub fn run(args: &PlanArgs) -> Outcome {
    let cluster = args.cluster()?;
    let plan = Models::default().plan(&args.source, None)?;
    for stage in &plan.stages {
        check_inputs(stage).map_err(Failure::usage)?;
    }
    let text = match &cluster {
        Some(cluster) => cluster::text(&plan, cluster).map_err(Failure::usage)?,
        None => numbers(&plan),
    };
    // A reader that has seen enough (`| head`) is no failure.
    let _ = print(text.trim_end());
    Ok(())
}

/// The plan's name, and where it comes from.
pub(super) fn heading(plan: &Plan) -> String {
    let preset = plan
        .preset
        .as_ref()
        .map(|preset| format!(", preset {preset}"));
    format!(
        "{}: {} stages, seed {}{}\nfrom {}\n",
        plan.name,
        plan.stages.len(),
        plan.seed,
        preset.unwrap_or_default(),
        plan.source.display()
    )
}

fn numbers(plan: &Plan) -> String {
    let mut text = heading(plan);
    for stage in &plan.stages {
        let mut numbers = stage_numbers(plan, stage);
        let jobs = [
            ("job on slurm", on_slurm(plan, &stage.name)),
            ("job on kubernetes", on_kubernetes(plan, &stage.name)),
        ];
        for (name, job) in jobs {
            numbers.extend(job.map(|job| (name.to_owned(), job)));
        }
        let width = numbers
            .iter()
            .map(|(name, _)| name.chars().count())
            .max()
            .unwrap_or(0);
        let _ = writeln!(text, "\n{} ({})", stage.name, stage.task.kind());
        for (name, value) in numbers {
            let _ = writeln!(text, "  {name:<width$}  {value}");
        }
    }
    text
}

/// The job of a stage on Slurm, where the plan says one.
fn on_slurm(plan: &Plan, stage: &str) -> Option<String> {
    let SlurmJob {
        size,
        partition,
        time,
        ..
    } = plan.cluster.as_ref()?.slurm.as_ref()?.get(stage)?;
    Some(job(size, &[("partition", partition), ("time", time)]))
}

/// The job of a stage on Kubernetes, where the plan says one.
fn on_kubernetes(plan: &Plan, stage: &str) -> Option<String> {
    let table = plan.cluster.as_ref()?.kubernetes.as_ref()?;
    let KubernetesJob { size, queue, .. } = table.jobs.get(stage)?;
    Some(job(size, &[("queue", queue)]))
}

fn job(size: &JobSize, facts: &[(&str, &Option<String>)]) -> String {
    let JobSize {
        nodes,
        ranks_per_node,
        gpus_per_node,
    } = size;
    let mut text = format!("{nodes} nodes x {ranks_per_node} ranks, {gpus_per_node} GPUs each");
    for (name, value) in facts {
        if let Some(value) = value {
            let _ = write!(text, ", {name} {value}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::pipeline;

    #[test]
    fn every_stage_is_in_the_table_with_its_numbers() -> Result<(), Box<dyn std::error::Error>> {
        let plan = pipeline()?.plan;
        let text = numbers(&plan);
        for stage in &plan.stages {
            assert!(text.contains(&format!("\n{} ({})\n", stage.name, stage.task.kind())));
            for (name, value) in stage_numbers(&plan, stage) {
                assert!(
                    text.contains(&name) && text.contains(&value),
                    "{name}: {value}"
                );
            }
        }
        Ok(())
    }
}
