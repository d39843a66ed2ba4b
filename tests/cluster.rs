//! `rlhf plan --gpus N --gpu NAME`, and the page that shows what it says of models of 125M to 175B.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use crate::support::{Outcome, repository, rlhf, say, scratch, tiny};

const H100: &str = "h100-80g";

fn page() -> Outcome<String> {
    Ok(fs::read_to_string(
        repository().join("experiments/cluster/README.md"),
    )?)
}

fn config() -> PathBuf {
    repository().join("experiments/cluster/pipeline.toml")
}

/// What is said of a size on 64 GPUs; reward and value model are as large, up to 6.7B.
fn forecast(size: &str, gpu: &str) -> Outcome<String> {
    let reward = match size {
        "13b" | "30b" | "66b" | "175b" => "6.7b",
        smaller => smaller,
    };
    let mut command = rlhf();
    command
        .arg("plan")
        .arg(config())
        .args(["--gpus", "64", "--gpu", gpu]);
    for (stage, size) in [("base", size), ("base-reward", reward)] {
        command
            .arg("--set")
            .arg(format!("stages.{stage}.model.size=opt-{size}"));
    }
    let said = say(&mut command)?.ended(0);
    assert!(said.err.is_empty(), "{}", said.err);
    Ok(said.out)
}

/// The cells of each stage's row, by the titles above them.
fn rows(said: &str) -> BTreeMap<String, Vec<String>> {
    let cells = |line: &str| -> Vec<String> {
        let cells = line
            .split("  ")
            .map(str::trim)
            .filter(|cell| !cell.is_empty());
        cells.map(str::to_owned).collect()
    };
    let lines = said.lines().skip_while(|line| !line.starts_with("  -----"));
    let lines = lines.skip(1).take_while(|line| !line.is_empty());
    let rows: BTreeMap<_, _> = lines
        .map(|line| (cells(line)[0].clone(), cells(line)))
        .collect();
    assert!(rows.values().all(|cells| cells.len() == 12), "{said}");
    rows
}

/// The page's row of a size.
fn row(size: &str, gpu: &str) -> Outcome<String> {
    let said = forecast(size, gpu)?;
    let rows = rows(&said);
    let mut fewest = Some(1);
    let mut row = Vec::new();
    for stage in ["base", "sft", "comparisons", "reward", "ppo"] {
        let cells = rows.get(stage).ok_or(format!("no {stage} in\n{said}"))?;
        fewest = fewest
            .zip(cells[2].parse().ok())
            .map(|(one, other): (usize, usize)| one.max(other));
        row.push(match &cells[7][..] {
            "-" => format!("does not fit ({})", cells[4]),
            hours => format!("{}, {}, {hours} h", cells[3], cells[4]),
        });
    }
    let without = said.split_once("without pretraining: ");
    let total = without.and_then(|(_, rest)| rest.split_once(" GPU-hours"));
    row.push(total.map_or_else(|| "-".to_owned(), |(total, _)| total.replace("hours", "h")));
    let fewest = fewest.map_or_else(|| "-".to_owned(), |fewest| fewest.to_string());
    Ok(format!("| {size} | {fewest} | {} |", row.join(" | ")))
}

#[test]
fn the_pages_tables_are_what_the_command_says() -> Outcome {
    let page = page()?;
    let mut missing = Vec::new();
    for (gpu, sizes) in [
        (
            H100,
            &[
                "125m", "350m", "1.3b", "2.7b", "6.7b", "13b", "30b", "66b", "175b",
            ][..],
        ),
        ("h200-141g", &["30b", "66b", "175b"]),
        ("b200-180g", &["30b", "66b", "175b"]),
    ] {
        let (_, tables) = page
            .split_once(&format!("### 64 {gpu}"))
            .ok_or(format!("no table of {gpu}"))?;
        let table = tables.split("\n#").next().unwrap_or_default();
        for size in sizes {
            let row = row(size, gpu)?;
            if !table.contains(&row) {
                missing.push(format!("{gpu}: {row}"));
            }
        }
    }
    assert!(
        missing.is_empty(),
        "experiments/cluster/README.md lacks\n{}",
        missing.join("\n")
    );
    Ok(())
}

/// Everything that the command says of one size, as the page shows it.
#[test]
fn the_page_shows_an_output_as_it_is() -> Outcome {
    let said = forecast("13b", H100)?;
    let (_, said) = said.split_once("\non 64 x").ok_or("no cluster is named")?;
    let page = page()?;
    assert!(
        page.contains(&format!("on 64 x{said}")),
        "the page lacks\non 64 x{said}"
    );
    Ok(())
}

#[test]
fn a_cluster_is_said_as_a_whole_or_not_at_all() -> Outcome {
    let folder = scratch()?;
    let tiny = tiny();
    let tiny = tiny.to_string_lossy();
    for (arguments, words) in [
        (&["--gpus", "8"][..], &["--gpu <NAME>"][..]),
        (&["--gpu", H100], &["--gpus <N>"]),
        (&["--network-gbps", "100"], &["--gpus <N>"]),
        (&["--gpus", "0", "--gpu", H100], &["must be 1 or more"]),
        (
            &["--gpus", "8", "--gpu", H100, "--network-gbps", "0"],
            &["must be above 0"],
        ),
        (
            &["--gpus", "8", "--gpu", "h100-80"],
            &[
                "--gpu h100-80: no such GPU",
                "did you mean `h100-80g`?",
                "a100-40g",
                "l40s-48g",
            ],
        ),
        (
            &[
                "--gpus",
                "8",
                "--gpu",
                H100,
                "--set",
                "stages.sft.dtype=f64",
            ],
            &[
                "stages.sft.dtype is f64",
                "hint: --set stages.sft.dtype=bf16",
            ],
        ),
    ] {
        let mut command = rlhf();
        command
            .args(["plan", &tiny])
            .args(arguments)
            .current_dir(folder.path());
        let said = say(&mut command)?.ended(2).names(words);
        assert!(said.out.is_empty(), "{arguments:?}: {}", said.out);
    }
    Ok(())
}

/// Epochs are counted once the data is there: speed is said, hours are not.
#[test]
fn what_depends_on_data_is_left_open() -> Outcome {
    let mut command = rlhf();
    command.arg("plan").arg(config());
    command.args(["--gpus", "2", "--gpu", "l40s-48g"]);
    for setting in [
        "stages.base.model.size=opt-125m",
        "stages.base-reward.model.size=opt-125m",
        "stages.sft.epochs=2",
    ] {
        command.args(["--set", setting]);
    }
    let said = say(&mut command)?;
    assert_eq!(said.code, Some(0), "{}", said.err);
    let rows = rows(&said.out);
    assert_eq!(rows["sft"][7], "-");
    assert!(
        rows["sft"][6] != "-" && rows["ppo"][7] != "-",
        "{}",
        said.out
    );
    assert!(said.out.contains("no hours of sft"), "{}", said.out);
    Ok(())
}
