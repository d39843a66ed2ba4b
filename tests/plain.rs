//! A PPO iteration with every kernel of our own, the CPU's and the GPU's, agrees with libtorch's plain operators.

use std::collections::BTreeMap;
use std::path::Path;

use runtime::metrics::read_metrics;

use crate::rollouts::Rollouts;
use crate::support::{Outcome, copy_of_finished_run, rlhf_run, say, scratch, tiny};

/// Of a number's size, or of 1 where it is smaller: f32.
const TOLERANCE: f64 = 1e-5;

/// The metrics of an iteration, and the numbers of its episodes.
type Iteration = (BTreeMap<String, f64>, Vec<Vec<f64>>);

fn first_iteration(run: &Path, kernels: Option<&str>) -> Outcome<Iteration> {
    let mut command = rlhf_run(&tiny(), run);
    command.args(["--restart", "ppo", "--set", "stages.ppo.iterations=1"]);
    if let Some(kernels) = kernels {
        command.env("RLHF_KERNELS", kernels);
    }
    say(&mut command)?.ended(0);
    let rows = read_metrics(&run.join("ppo/metrics.jsonl"))?;
    let first = rows
        .iter()
        .find(|row| row.step == 1)
        .ok_or("no iteration")?;
    let rollouts = Rollouts::read(&run.join("ppo/rollouts/iteration-000001.parquet"))?;
    let mut numbers = Vec::new();
    for list in [
        "logprobs",
        "reference_logprobs",
        "values",
        "rewards",
        "advantages",
        "returns",
    ] {
        numbers.extend(rollouts.lists(list));
    }
    numbers.push(rollouts.numbers("score_raw"));
    Ok((first.values.clone(), numbers))
}

#[test]
fn a_ppo_iteration_agrees_with_plain_operators() -> Outcome {
    agrees_with_plain_operators(None)
}

#[test]
fn a_ppo_iteration_of_the_gpus_kernels_agrees_with_plain_operators() -> Outcome {
    agrees_with_plain_operators(Some("emulated"))
}

fn agrees_with_plain_operators(kernels: Option<&str>) -> Outcome {
    let (ours_at, plain_at) = (scratch()?, scratch()?);
    let (ours, our_numbers) = first_iteration(&copy_of_finished_run(ours_at.path())?, kernels)?;
    let plain_run = copy_of_finished_run(plain_at.path())?;
    let (plain, plain_numbers) = first_iteration(&plain_run, Some("plain"))?;
    let close = |a: f64, b: f64| (a - b).abs() <= TOLERANCE * b.abs().max(1.0);
    assert_eq!(our_numbers.len(), plain_numbers.len());
    for (ours, plain) in our_numbers.iter().zip(&plain_numbers) {
        assert_eq!(ours.len(), plain.len(), "the same tokens");
        assert!(
            ours.iter().zip(plain).all(|(a, b)| close(*a, *b)),
            "{ours:?}\n{plain:?}"
        );
    }
    assert!(
        our_numbers != plain_numbers,
        "both were computed in one way"
    );
    let machine = ["time/", "memory/", "mfu", "_per_second"];
    let computed = |name: &&String| !machine.iter().any(|part| name.contains(part));
    let names: Vec<_> = ours.keys().filter(computed).collect();
    assert!(names.len() > 15, "{names:?}");
    for name in names {
        assert!(
            close(ours[name], plain[name]),
            "{name}: {} and {}",
            ours[name],
            plain[name]
        );
    }
    Ok(())
}
