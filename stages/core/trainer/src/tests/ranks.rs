//! Several ranks, each a thread of its own: what they learn is what one process learns.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use recipe::plan::Sharding;
use runtime::manifest::Manifest;
use runtime::ranks::Place;
use runtime::run_folder::RunFolder;
use serde_json::json;
use tch::{Device, Kind, Tensor, no_grad};

use super::stage::{options, rows};
use super::{norm, plan, tiny_model, tiny_tokenizer};
use crate::{
    Contents, Division, Ema, Patience, Ranks, RestorePart, SnapshotPart, Stepper, TrainerError,
    lm_backward, lm_evaluate, restore_snapshot, save_snapshot,
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const PATIENCE: Patience = Patience {
    join: Duration::from_secs(20),
    operation: Duration::from_secs(20),
};

const SHARDINGS: [Sharding; 3] = [Sharding::None, Sharding::Optimizer, Sharding::Gradients];

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

fn place(rank: usize, size: usize, port: u16) -> Place {
    Place {
        rank,
        size,
        local_rank: rank,
        host: "127.0.0.1".to_owned(),
        port,
    }
}

/// What each of so many ranks makes of `body`, by rank.
fn on_ranks<T: Send>(
    size: usize,
    body: impl Fn(Ranks) -> Result<T, Failure> + Sync,
) -> Vec<Result<T, Failure>> {
    let port = free_port();
    let run = |rank| {
        if size == 1 {
            return body(Ranks::alone());
        }
        let place = place(rank, size, port);
        body(Ranks::join(&place, Device::Cpu, "test", PATIENCE)?)
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
fn first<T>(results: Vec<Result<T, Failure>>) -> Result<T, Failure> {
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
        let model = tiny_model(seed, kind);
        model.set_trainable(true);
        let division = Division {
            ranks: ranks.into(),
            sharding,
        };
        let stepper = Stepper::divided(&model.trainable(), &plan(), 20, division);
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
        let weights = copies(&self.model);
        self.ema.apply(&mut self.stepper)?;
        Ok(End {
            curve: self.curve,
            weights,
            averages: copies(&self.model),
        })
    }
}

struct End {
    curve: Vec<[f64; 3]>,
    weights: BTreeMap<String, Tensor>,
    averages: BTreeMap<String, Tensor>,
}

fn copies(model: &model::Model) -> BTreeMap<String, Tensor> {
    let params = model.params().iter();
    no_grad(|| {
        params
            .map(|(name, x)| (name.clone(), x.detach().copy()))
            .collect()
    })
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

#[test]
fn what_is_shared_out_comes_back_in_order() -> Result<(), Failure> {
    for size in [1, 2, 3] {
        let results = on_ranks(size, |ranks| {
            for count in [0, 1, 5, 6] {
                let items: Vec<u32> = (0..count).collect();
                let own = ranks.share(&items);
                assert!(own.len() <= items.len().div_ceil(ranks.size()));
                assert_eq!(ranks.gather(own)?, items);
            }
            let mut numbers = [1.5, ranks.rank() as f64];
            ranks.sum(&mut numbers)?;
            let expected = [1.5 * size as f64, (size * (size - 1) / 2) as f64];
            let gap = |(a, b): (&f64, f64)| (a - b).abs();
            assert!(numbers.iter().zip(expected).map(gap).all(|gap| gap < 1e-12));
            assert!(ranks.any(ranks.rank() + 1 == size)?);
            assert!(!ranks.any(false)?);
            let word = ranks.is_first().then(|| "folder".to_owned());
            assert_eq!(ranks.word_of_first(word)?, "folder");
            let nan = ranks.exchange(f64::NAN)?;
            assert!(nan.len() == size && nan.iter().all(|x| x.is_nan()));
            Ok(())
        });
        first(results)?;
    }
    Ok(())
}

#[test]
fn ranks_that_do_different_things_refuse_each_other() {
    let port = free_port();
    let join = |rank: usize| {
        let identity = ["plan a", "plan b"][rank];
        Ranks::join(&place(rank, 2, port), Device::Cpu, identity, PATIENCE)
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| join(1).map(|_| ()));
        let errors = [join(0).map(|_| ()), other.join().expect("no panic")];
        for error in errors {
            let error = error.expect_err("other plans").to_string();
            assert!(
                error.contains("plan a") && error.contains("plan b"),
                "{error}"
            );
        }
    });
}

#[test]
fn who_is_missing_is_named_in_bounded_time() {
    let patience = Patience {
        join: Duration::from_secs(2),
        operation: Duration::from_secs(2),
    };
    let started = Instant::now();
    let port = free_port();
    let error = Ranks::join(&place(1, 2, port), Device::Cpu, "test", patience);
    let error = error.expect_err("no rank 0").to_string();
    assert!(
        error.contains("rank 1 of 2") && error.contains(&port.to_string()),
        "{error}"
    );
    let error = Ranks::join(&place(0, 2, free_port()), Device::Cpu, "test", patience);
    let error = error.expect_err("no rank 1").to_string();
    assert!(error.contains("rank 1 did not come within 2 s"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(15));
}

#[test]
fn a_rank_that_is_gone_or_hangs_is_named() {
    let patience = Patience {
        join: Duration::from_secs(20),
        operation: Duration::from_secs(3),
    };
    for hangs in [false, true] {
        let port = free_port();
        let join = |rank| Ranks::join(&place(rank, 2, port), Device::Cpu, "test", patience);
        std::thread::scope(|scope| {
            let gone = scope.spawn(move || {
                let ranks = join(1).expect("both are there");
                ranks.at("step 7");
                if hangs {
                    std::thread::sleep(Duration::from_secs(6));
                }
            });
            let ranks = join(0).expect("both are there");
            ranks.at("step 8");
            let started = Instant::now();
            let error = ranks.barrier().expect_err("one is gone").to_string();
            assert!(started.elapsed() < Duration::from_secs(6), "{error}");
            assert!(error.contains("rank 0 of 2 at step 8"), "{error}");
            assert!(error.contains("rank 1 was last at step 7"), "{error}");
            gone.join().expect("no panic");
        });
    }
}
