//! Whether all ranks do the same thing with the same program, before any of them begins.

use std::time::{Duration, Instant};

use runtime::ranks::Place;
use torch_ext::Store;

use crate::error::TrainerError;
use crate::rank_error::RankError;
use crate::ranks::lost;

/// What a rank is about to do.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    /// The stage: ranks meet in it. The stages of a run on several machines follow each other at one address, and a
    /// machine may be ahead of the first one there, or behind.
    pub stage: &'a str,
    /// What it is made of, and by which program. It must be the same on all ranks.
    pub work: &'a str,
}

/// All ranks wait for rank 0's identity, and rank 0 for everybody's.
pub(crate) fn check(
    store: &Store,
    place: &Place,
    identity: Identity<'_>,
    patience: Duration,
) -> Result<(), TrainerError> {
    let (rank, size) = (place.rank, place.size);
    let Identity { stage, work } = identity;
    store.set(&identity_key(stage, rank), work)?;
    if rank > 0 {
        let found = identity_of(store, stage, (rank, 0), patience)?;
        store.set(&read_key(stage, rank), "")?;
        return compare((rank, work), (0, &found));
    }
    for other in 1..size {
        let found = identity_of(store, stage, (rank, other), patience)?;
        let compared = compare((rank, work), (other, &found));
        if compared.is_err() {
            // The store goes with this rank; the others have a word with which to compare theirs first.
            let until = Instant::now() + FAREWELL.min(patience);
            for other in 1..size {
                let left = until.saturating_duration_since(Instant::now());
                let _ = store.get(&read_key(stage, other), left);
            }
        }
        compared?;
    }
    Ok(())
}

/// How long rank 0 waits, where it refuses another, for all to have read what it is.
const FAREWELL: Duration = Duration::from_secs(5);

fn identity_of(
    store: &Store,
    stage: &str,
    (rank, other): (usize, usize),
    patience: Duration,
) -> Result<String, TrainerError> {
    let found = store.get(&identity_key(stage, other), patience);
    let absent = |source| {
        lost(RankError::Absent {
            rank,
            other,
            seconds: patience.as_secs(),
            source,
        })
    };
    Ok(found.map_err(absent)?.unwrap_or_default())
}

fn compare(
    (rank, identity): (usize, &str),
    (other, found): (usize, &str),
) -> Result<(), TrainerError> {
    if found == identity {
        return Ok(());
    }
    let error = RankError::Identity {
        rank,
        identity: identity.to_owned(),
        other,
        found: found.to_owned(),
    };
    Err(Box::new(error).into())
}

fn read_key(stage: &str, rank: usize) -> String {
    format!("{stage}/read/{rank}")
}

fn identity_key(stage: &str, rank: usize) -> String {
    format!("{stage}/identity/{rank}")
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;
    use std::time::Duration;

    use runtime::ranks::Place;
    use tch::Device;
    use torch_ext::Store;

    use super::Identity;
    use crate::{Patience, Ranks};

    #[test]
    fn a_rank_that_is_early_for_a_stage_waits_for_the_first_to_come_to_it() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        let patience = Patience {
            join: Duration::from_secs(20),
            operation: Duration::from_secs(20),
        };
        let join = |rank| {
            let place = Place {
                rank,
                size: 2,
                local_rank: 0,
                host: "127.0.0.1".to_owned(),
                port,
            };
            let identity = Identity {
                stage: "sft",
                work: "plan",
            };
            Ranks::join(&place, Device::Cpu, identity, patience)
        };
        // The first rank is still at the stage before.
        let before = Store::open("127.0.0.1", port, true, patience.join).expect("a store");
        before
            .set("pretrain/identity/0", "another plan")
            .expect("set");
        thread::scope(|scope| {
            let early = scope.spawn(|| join(1).map(|ranks| ranks.barrier().is_ok()));
            let seen = before.get("sft/identity/1", patience.join);
            assert_eq!(seen.expect("a store").as_deref(), Some("plan"));
            drop(before);
            let first = join(0).expect("both are there");
            assert!(first.barrier().is_ok());
            assert!(early.join().expect("no panic").expect("both are there"));
        });
    }
}
