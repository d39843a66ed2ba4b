//! Ranks that meet, say something to each other, miss or lose each other.

use std::time::{Duration, Instant};

use tch::Device;

use super::ranks::{Failure, PATIENCE, first, free_port, named, on_ranks, place};
use crate::{Patience, Ranks};

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
            let word = format!("word of {}", ranks.rank());
            assert_eq!(ranks.word_of_first(word)?, "word of 0");
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
        Ranks::join(
            &place(rank, 2, port),
            Device::Cpu,
            named(identity),
            PATIENCE,
        )
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
    let error = Ranks::join(&place(1, 2, port), Device::Cpu, named("test"), patience);
    let error = error.expect_err("no rank 0").to_string();
    assert!(
        error.contains("rank 1 of 2") && error.contains(&port.to_string()),
        "{error}"
    );
    let error = Ranks::join(
        &place(0, 2, free_port()),
        Device::Cpu,
        named("test"),
        patience,
    );
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
        let join = |rank| Ranks::join(&place(rank, 2, port), Device::Cpu, named("test"), patience);
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
