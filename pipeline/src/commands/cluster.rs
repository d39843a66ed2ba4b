//! What a plan would take on a cluster, as text (`rlhf plan --gpus N --gpu NAME`).

use std::fmt::Write as _;

use recipe::cluster::{Cluster, Forecast, ForecastError, Seconds, forecast};
use recipe::numbers::{bytes, grouped};
use recipe::plan::{Plan, StagePlan, Task};

use super::plan::heading;
use crate::inspect::table::{Align, Table};

const ASSUMED: &str = "predicted from assumed rates (experiments/cluster/README.md), not measured; \
                       the time of evaluation and saving is not counted";

/// The table, what to set, and what is to be known.
pub(super) fn text(plan: &Plan, cluster: &Cluster) -> Result<String, ForecastError> {
    let forecasts = forecast(plan, cluster)?;
    let gpu = &cluster.gpu;
    let mut text = heading(plan);
    let _ = writeln!(
        text,
        "on {} x {} ({} GB, {} TFLOP/s in bf16), {} a node, {} Gbit/s between nodes\n{ASSUMED}\n",
        cluster.gpus,
        gpu.name,
        gpu.memory_gb,
        gpu.bf16_tflops,
        cluster.gpus_per_node,
        cluster.network_gbps
    );
    text += &table(&forecasts, cluster).to_text('-');
    text += &total(plan, &forecasts);
    for forecast in &forecasts {
        if let Some(stage) = plan
            .stage(&forecast.stage)
            .filter(|_| forecast.rounds.is_some())
        {
            text += &settings(stage, forecast);
        }
    }
    for forecast in &forecasts {
        for note in &forecast.notes {
            let _ = write!(text, "\n{}: {note}", forecast.stage);
        }
    }
    Ok(text)
}

fn table(forecasts: &[Forecast], cluster: &Cluster) -> Table {
    let mut table = Table::new(&[
        ("stage", Align::Left),
        ("GPUs", Align::Right),
        ("fits from", Align::Right),
        ("sharding", Align::Left),
        ("memory", Align::Right),
        ("of card", Align::Right),
        ("tokens/s", Align::Right),
        ("hours", Align::Right),
        ("GPU-hours", Align::Right),
        ("compute", Align::Right),
        ("bandwidth", Align::Right),
        ("network", Align::Right),
    ]);
    let card = cluster.gpu.memory_gb * 1e9;
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    for forecast in forecasts {
        let hours = forecast.hours();
        let time = forecast.rounds.map(|rounds| rounds.seconds);
        let share = |part: Option<f64>| {
            let all = time.map(Seconds::total);
            or_none(part.zip(all).map(|(part, all)| percent(part / all)))
        };
        table.rows.push(vec![
            forecast.stage.clone(),
            forecast.gpus.to_string(),
            or_none(forecast.fewest.map(|gpus| gpus.to_string())),
            forecast.execution.sharding.word().to_owned(),
            bytes(forecast.peak_bytes),
            percent(forecast.peak_bytes as f64 / card),
            or_none(
                forecast
                    .tokens_per_second()
                    .map(|rate| grouped(rate as u64)),
            ),
            or_none(hours.map(hours_text)),
            or_none(hours.map(|hours| hours_text(hours * forecast.gpus as f64))),
            share(time.map(|seconds| seconds.compute)),
            share(time.map(|seconds| seconds.memory)),
            share(time.map(|seconds| seconds.network)),
        ]);
    }
    table
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

/// Hours, to a thousandth and to three digits.
fn hours_text(hours: f64) -> String {
    match hours {
        ..0.0005 => "<0.001".to_owned(),
        ..0.995 => format!("{hours:.3}"),
        ..9.95 => format!("{hours:.2}"),
        ..99.5 => format!("{hours:.1}"),
        _ => grouped(hours.round() as u64),
    }
}

/// Stages one after the other, where all are known.
fn total(plan: &Plan, forecasts: &[Forecast]) -> String {
    let names = |picked: &dyn Fn(&&Forecast) -> bool| -> Vec<&str> {
        let picked = forecasts.iter().filter(picked);
        picked.map(|forecast| forecast.stage.as_str()).collect()
    };
    let unfit = names(&|forecast| forecast.rounds.is_none());
    if !unfit.is_empty() {
        return format!(
            "\nnot as a whole; what does not fit: {}\n",
            unfit.join(", ")
        );
    }
    let endless = names(&|forecast| forecast.hours().is_none());
    if !endless.is_empty() {
        return format!(
            "\nno hours of {}: epochs are counted once the data is there\n  hint: say steps in place of epochs\n",
            endless.join(", ")
        );
    }
    let sums = |picked: &dyn Fn(&&Forecast) -> bool| {
        let picked = || forecasts.iter().filter(picked);
        let hours = |forecast: &Forecast| forecast.hours().unwrap_or_default();
        let all: f64 = picked().map(hours).sum();
        let of_gpus = picked().map(|forecast| hours(forecast) * forecast.gpus as f64);
        format!(
            "{} hours, {} GPU-hours",
            hours_text(all),
            hours_text(of_gpus.sum())
        )
    };
    let pretrains = |forecast: &&Forecast| {
        let stage = plan.stage(&forecast.stage);
        stage.is_some_and(|stage| matches!(stage.task, Task::Pretrain(_)))
    };
    format!(
        "\nall stages: {}; without pretraining: {} (of GPUs at work)\n",
        sums(&|_| true),
        sums(&|forecast| !pretrains(forecast))
    )
}

/// What the file would have to say, where it is not what it says.
fn settings(stage: &StagePlan, forecast: &Forecast) -> String {
    let (said, chosen) = (&stage.execution, &forecast.execution);
    let mut changes = Vec::new();
    let mut change = |key: &str, differs: bool, value: String| {
        if differs {
            changes.push(format!(" --set stages.{}.{key}={value}", stage.name));
        }
    };
    let sharding = chosen.sharding;
    change(
        "sharding",
        sharding != said.sharding,
        sharding.word().to_owned(),
    );
    let rows = chosen.micro_batch;
    change("micro_batch", rows != said.micro_batch, rows.to_string());
    let rows = chosen.sample_batch;
    change("sample_batch", rows != said.sample_batch, rows.to_string());
    let again = chosen.checkpointing;
    change(
        "checkpointing",
        again != said.checkpointing,
        again.to_string(),
    );
    if changes.is_empty() {
        return String::new();
    }
    format!(" {}\n", changes.concat())
}
