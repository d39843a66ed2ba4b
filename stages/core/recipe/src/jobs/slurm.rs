//! `[cluster.slurm]`.

use super::Tables;
use crate::job_plan::{Container, ContainerRuntime, SlurmJob};
use crate::reader::Outcome;

/// Seconds before the limit: some gigabytes of snapshot on a busy file system.
const SIGNAL_BEFORE_S: usize = 300;

/// The job of a stage.
pub(super) fn job(tables: &Tables<'_>) -> Outcome<SlurmJob> {
    let size = tables.size()?;
    let exclusive = tables
        .of("exclusive")
        .map(|reader| reader.flag("exclusive"));
    let before = tables.count("signal_before", 1)?.unwrap_or(SIGNAL_BEFORE_S);
    Ok(SlurmJob {
        size,
        partition: tables.text("partition")?,
        account: tables.text("account")?,
        qos: tables.text("qos")?,
        constraint: tables.text("constraint")?,
        cpus_per_node: tables.count("cpus_per_node", 1)?,
        memory: tables.text("memory")?,
        exclusive: exclusive.transpose()?.unwrap_or(false),
        time: time(tables, before)?,
        signal_before: before,
        restarts: tables.count("restarts", 0)?.unwrap_or(super::RESTARTS),
        options: options(tables)?,
        setup: tables.texts("setup")?,
        environment: super::environment(tables)?,
        program: tables.text("program")?,
        container: container(tables)?,
    })
}

/// Seconds of a time in one of Slurm's forms: `minutes`, `minutes:seconds`, `hours:minutes:seconds`, `days-hours`,
/// `days-hours:minutes`, `days-hours:minutes:seconds`.
fn seconds(text: &str) -> Option<usize> {
    let (days, rest) = text
        .split_once('-')
        .map_or((None, text), |(d, r)| (Some(d), r));
    let number = |part: &str| {
        let plain = part.bytes().all(|byte| byte.is_ascii_digit());
        if plain {
            part.parse::<usize>().ok()
        } else {
            None
        }
    };
    let parts: Option<Vec<usize>> = rest.split(':').map(number).collect();
    let units: &[usize] = match (days, parts.as_ref()?.len()) {
        (None, 1 | 2) => &[60, 1],
        (None, 3) | (Some(_), 1..=3) => &[3600, 60, 1],
        _ => return None,
    };
    let days = days.map_or(Some(0), number)?;
    let rest: usize = parts?
        .iter()
        .zip(units)
        .map(|(part, unit)| part * unit)
        .sum();
    Some(days * 86_400 + rest)
}

fn time(tables: &Tables<'_>, before: usize) -> Outcome<Option<String>> {
    let (Some(text), Some(reader)) = (tables.text("time")?, tables.of("time")) else {
        return Ok(None);
    };
    let Some(limit) = seconds(&text) else {
        let hint =
            "write hours:minutes:seconds or days-hours:minutes:seconds, as in \"1-12:00:00\"";
        return Err(reader.problem("time", format!("{text:?} is no time of Slurm"), hint));
    };
    if limit > before {
        return Ok(Some(text));
    }
    let message = format!("{limit} s, and a snapshot is saved {before} s before (signal_before)");
    Err(reader.problem("time", message, "allow more time, or lower signal_before"))
}

/// Options that the scripts set themselves, and what to say in their place; one that ends in `*` stands for all that
/// begin so.
const OURS: &[(&str, &str)] = &[
    ("--array -a", "give --seeds to `rlhf submit`"),
    ("--chdir -D", "the run folder is --run-dir of `rlhf submit`"),
    ("--dependency -d", "jobs wait for the stages that they need"),
    ("--error -e --output -o", "logs lie in the run folder"),
    ("--gpus* -G --gres", "say gpus_per_node"),
    ("--job-name -J", "a job is named after pipeline and stage"),
    ("--nodes -N", "say nodes"),
    ("--ntasks* -n", "say ranks_per_node"),
    ("--open-mode --parsable", "`rlhf submit` sets it"),
    ("--requeue --no-requeue", "say restarts"),
    ("--signal", "say signal_before"),
    ("--time -t", "say time"),
];

fn options(tables: &Tables<'_>) -> Outcome<Vec<String>> {
    let options = tables.texts("options")?;
    let wrong = |option: &String| {
        let hint = match instead(option) {
            Some(hint) => format!("leave it out: {hint}"),
            None if option.starts_with("--") => return None,
            None => "write --NAME=VALUE".to_owned(),
        };
        Some((format!("{option:?} cannot be given to sbatch here"), hint))
    };
    match (options.iter().find_map(wrong), tables.of("options")) {
        (Some((message, hint)), Some(reader)) => Err(reader.problem("options", message, hint)),
        _ => Ok(options),
    }
}

/// What to say in place of an option of [`OURS`].
fn instead(option: &str) -> Option<&'static str> {
    let name = if option.starts_with("--") {
        option.split(['=', ' ']).next()?
    } else {
        // A value may follow at once: `-N2`.
        option.get(..2)?
    };
    let is_it = |known: &str| match known.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == known,
    };
    let found = OURS.iter().find(|(names, _)| names.split(' ').any(is_it));
    found.map(|(_, hint)| *hint)
}

fn container(tables: &Tables<'_>) -> Outcome<Option<Container>> {
    let Some(image) = tables.text("container.image")? else {
        let without = ["container.runtime", "container.mounts"];
        if let Some((key, reader)) = without
            .into_iter()
            .find_map(|key| Some((key, tables.of(key)?)))
        {
            return Err(reader.problem(
                key,
                "there is no image",
                "write container.image = \"...\"",
            ));
        }
        return Ok(None);
    };
    let runtimes = [
        ("pyxis", ContainerRuntime::Pyxis),
        ("apptainer", ContainerRuntime::Apptainer),
    ];
    let runtime = match tables.of("container.runtime") {
        Some(reader) => reader.choice("container.runtime", &runtimes)?,
        None => ContainerRuntime::Pyxis,
    };
    Ok(Some(Container {
        image,
        runtime,
        mounts: tables.texts("container.mounts")?,
    }))
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn times_are_those_of_slurm() {
        let times = [
            ("30", 1800),
            ("30:05", 1805),
            ("12:00:01", 43_201),
            ("1-12", 129_600),
            ("1-12:30", 131_400),
            ("1-00:00:07", 86_407),
        ];
        for (text, expected) in times {
            assert_eq!(seconds(text), Some(expected), "{text}");
        }
        for other in ["", "1h", "1:00:00:00", "-5", "1-", "a-1", "1::2", "+1"] {
            assert_eq!(seconds(other), None, "{other}");
        }
    }
}
