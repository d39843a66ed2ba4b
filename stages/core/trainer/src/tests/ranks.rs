//! Several ranks, each a thread of its own: what they learn is what one process learns.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use recipe::plan::Sharding;
use runtime::manifest::Manifest;
use runtime::ranks::Place;
use runtime::run_folder::RunFolder;
use serde_json::json;
use tch::{Device, Kind, Tensor, no_grad};

use super::stage::{options, rows};
use super::{norm, plan, tiny_model, tiny_tokenizer};
use crate::{
    Contents, Division, Ema, Identity, Patience, Ranks, RestorePart, SnapshotPart, Stepper,
    TrainerError, lm_backward, lm_evaluate, restore_snapshot, save_snapshot,
};

pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;

pub(super) const PATIENCE: Patience = Patience {
    join: Duration::from_secs(20),
    operation: Duration::from_secs(20),
};

const SHARDINGS: [Sharding; 4] = [
    Sharding::None,
    Sharding::Optimizer,
    Sharding::Gradients,
    Sharding::Parameters,
];

pub(super) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

pub(super) fn place(rank: usize, size: usize, port: u16) -> Place {
    Place {
        rank,
        size,
        local_rank: rank,
        host: "127.0.0.1".to_owned(),
        port,
    }
}

pub(super) fn named(work: &str) -> Identity<'_> {
    let stage = "test";
    Identity { stage, work }
}

/// What each of so many ranks makes of `body`, by rank.
pub(super) fn on_ranks<T: Send>(
    size: usize,
    body: impl Fn(Ranks) -> Result<T, Failure> + Sync,
) -> Vec<Result<T, Failure>> {
    let port = free_port();
    let run = |rank| {
        if size == 1 {
            return body(Ranks::alone());
        }
        let place = place(rank, size, port);
        body(Ranks::join(&place, Device::Cpu, named("test"), PATIENCE)?)
    };
    std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (0..size)
            .map(|rank| scope.spawn(move || run(rank)))
            .collect();
        let ended = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
        ended.map(|ended| ended.expect("no panic")).collect()
    })
}

/// The first rank's, after all have ended well.
pub(super) fn first<T>(results: Vec<Result<T, Failure>>) -> Result<T, Failure> {
    let all = results.into_iter().collect::<Result<Vec<T>, _>>()?;
    Ok(all.into_iter().next().expect("a rank"))
}

/// A model, its average and its optimizer on one rank.
struct Run {
    model: model::Model,
    stepper: Stepper,
    ema: Ema,
    curve: Vec<[f64; 3]>,
}

impl Run {
    fn new(seed: u64, kind: Kind, sharding: Sharding, ranks: Ranks) -> Self {
        let model = match ranks.group() {
            Some(group) if sharding == Sharding::Parameters => {
                tiny_model(seed, kind).sharded(Rc::clone(group))
            }
            _ => tiny_model(seed, kind),
        };
        let division = Division {
            ranks: ranks.into(),
            sharding,
        };
        let stepper = Stepper::divided(&[&model][..], &plan(), 20, division);
        Self {
            ema: Ema::new(&stepper, 0.9),
            model,
            stepper,
            curve: Vec::new(),
        }
    }

    /// Two losses an update, as PPO has with pretraining text.
    fn train(&mut self, steps: std::ops::Range<u64>) -> Result<(), TrainerError> {
        for step in steps {
            let (model, stepper) = (&self.model, &mut self.stepper);
            let loss = lm_backward(model, stepper, &rows(step), &options(1))?;
            lm_backward(model, stepper, &rows(step + 100), &options(2))?;
            let update = stepper.update(step)?;
            self.ema.update(stepper);
            let ranks = &self.stepper.division().ranks;
            let heldout = lm_evaluate(&self.model, &rows(7), 1, 3, ranks)?;
            self.curve
                .push([loss.mean(), update.grad_norm, heldout.mean()]);
        }
        Ok(())
    }

    fn save(&self, dir: &Path, step: u64) -> Result<(), Failure> {
        let part = SnapshotPart {
            name: "policy",
            model: &self.model,
            stepper: &self.stepper,
            ema: Some(&self.ema),
        };
        let contents = Contents {
            parts: &[part],
            tokenizer: &tiny_tokenizer().map_err(|error| error.to_string())?,
            state: json!({"cursor": step}),
        };
        let stage = RunFolder::open_or_create(dir)?.stage("ppo");
        let manifest = Manifest::new("checkpoint", "ppo", step);
        let ranks = &self.stepper.division().ranks;
        save_snapshot(ranks, &stage, step, &contents, manifest)?;
        Ok(())
    }

    fn restore(&mut self, dir: &Path, step: u64) -> Result<(), Failure> {
        let stage = RunFolder::open_or_create(dir)?.stage("ppo");
        let folder = stage.snapshot_dir(step);
        Manifest::verify(&folder)?;
        let part = RestorePart {
            name: "policy",
            stepper: &mut self.stepper,
            ema: Some(&mut self.ema),
        };
        let state = restore_snapshot(&folder, &mut [part])?;
        assert_eq!(state, json!({"cursor": step}));
        Ok(())
    }

    /// Weights, and after them the averages in their place.
    fn end(mut self) -> Result<End, TrainerError> {
        let weights = copies(&self.model)?;
        self.ema.apply(&mut self.stepper)?;
        Ok(End {
            curve: self.curve,
            weights,
            averages: copies(&self.model)?,
        })
    }
}

struct End {
    curve: Vec<[f64; 3]>,
    weights: BTreeMap<String, Tensor>,
    averages: BTreeMap<String, Tensor>,
}

fn copies(model: &model::Model) -> Result<BTreeMap<String, Tensor>, TrainerError> {
    let _whole = model.whole()?;
    let params = model.params().iter();
    Ok(no_grad(|| {
        params
            .map(|(name, x)| (name.clone(), x.detach().copy()))
            .collect()
    }))
}

fn assert_near(label: &str, found: &End, expected: &End, bound: f64) {
    assert_eq!(found.curve.len(), expected.curve.len(), "{label}");
    for (a, b) in found.curve.iter().zip(&expected.curve) {
        let gap = a
            .iter()
            .zip(b)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f64::max);
        assert!(gap <= bound, "{label}: {a:?}, not {b:?}");
    }
    for (found, expected) in [
        (&found.weights, &expected.weights),
        (&found.averages, &expected.averages),
    ] {
        for (name, tensor) in found {
            let gap = norm(&(tensor - &expected[name]));
            assert!(gap <= bound * 10.0, "{label}, {name}: {gap:e}");
        }
    }
}

#[test]
fn two_and_four_ranks_learn_what_one_learns() -> Result<(), Failure> {
    for (kind, bound) in [(Kind::Double, 1e-9), (Kind::Float, 1e-5)] {
        let of = |size, sharding| {
            first(on_ranks(size, |ranks| {
                let mut run = Run::new(3, kind, sharding, ranks);
                run.train(0..20)?;
                Ok(run.end()?)
            }))
        };
        let alone = of(1, Sharding::None)?;
        for size in [2, 4] {
            for sharding in SHARDINGS {
                let label = format!("{size} ranks, {kind:?}, {sharding:?}");
                assert_near(&label, &of(size, sharding)?, &alone, bound);
            }
        }
    }
    Ok(())
}

/// In bf16 each rank sums in f32 what is rounded, so the order shows; the loss falls as it does alone.
#[test]
fn ranks_in_bf16_learn_about_the_same() -> Result<(), Failure> {
    let of = |size, sharding| {
        first(on_ranks(size, |ranks| {
            let mut run = Run::new(3, Kind::BFloat16, sharding, ranks);
            run.train(0..10)?;
            Ok(run.curve.last().map_or(f64::NAN, |last| last[2]))
        }))
    };
    let alone = of(1, Sharding::None)?;
    for sharding in SHARDINGS {
        let loss = of(2, sharding)?;
        assert!(
            (loss - alone).abs() < 0.05,
            "{sharding:?}: {loss}, not {alone}"
        );
    }
    Ok(())
}

#[test]
fn a_snapshot_of_two_ranks_continues_on_one_and_on_four() -> Result<(), Failure> {
    for sharding in SHARDINGS {
        let dir = tempfile::tempdir()?;
        let whole = first(on_ranks(2, |ranks| {
            let mut run = Run::new(5, Kind::Double, sharding, ranks);
            run.train(0..3)?;
            run.save(dir.path(), 3)?;
            run.curve.clear();
            run.train(3..6)?;
            Ok(run.end()?)
        }))?;
        for (size, sharding) in [(1, Sharding::None), (4, sharding), (2, Sharding::Gradients)] {
            let resumed = first(on_ranks(size, |ranks| {
                let mut run = Run::new(6, Kind::Double, sharding, ranks);
                run.restore(dir.path(), 3)?;
                run.train(3..6)?;
                Ok(run.end()?)
            }))?;
            let label = format!("{size} ranks, {sharding:?}");
            assert_near(&label, &resumed, &whole, 1e-9);
        }
    }
    Ok(())
}

/// Optimizer state, and where gradients are sharded their sums, are a rank's share.
#[test]
fn each_rank_keeps_its_slices_alone() -> Result<(), Failure> {
    let kept = |size, sharding| {
        on_ranks(size, |ranks| {
            let run = Run::new(3, Kind::Float, sharding, ranks);
            let state = run.stepper.optimizer().state();
            let moments = state.iter().filter(|(key, _)| key.ends_with(".exp_avg"));
            Ok(moments.map(|(_, moment)| moment.numel()).sum::<usize>())
        })
        .into_iter()
        .collect::<Result<Vec<usize>, _>>()
    };
    let all = tiny_model(3, Kind::Float).num_params();
    assert_eq!(kept(4, Sharding::None)?, [all; 4]);
    let shares = kept(4, Sharding::Optimizer)?;
    assert_eq!(shares.iter().sum::<usize>(), all);
    assert!(
        shares.iter().all(|share| *share < all / 3),
        "{shares:?} of {all}"
    );
    Ok(())
}
