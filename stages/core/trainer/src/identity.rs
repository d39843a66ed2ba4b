//! Whether all ranks do the same thing with the same program, before any of them begins.

use std::time::Duration;

use runtime::ranks::Place;
use torch_ext::Store;

use crate::error::TrainerError;
use crate::rank_error::RankError;
use crate::ranks::lost;

/// All ranks wait for rank 0's identity, and rank 0 for everybody's.
pub(crate) fn check(
    store: &Store,
    place: &Place,
    identity: &str,
    patience: Duration,
) -> Result<(), TrainerError> {
    let (rank, size) = (place.rank, place.size);
    store.set(&identity_key(rank), identity)?;
    if rank > 0 {
        let found = identity_of(store, rank, 0, patience)?;
        store.set(&read_key(rank), "")?;
        return compare((rank, identity), (0, &found));
    }
    for other in 1..size {
        let found = identity_of(store, rank, other, patience)?;
        let compared = compare((rank, identity), (other, &found));
        if compared.is_err() {
            // The store goes with this rank; the others have a word with which to compare theirs first.
            for other in 1..size {
                let _ = store.get(&read_key(other), FAREWELL.min(patience));
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
    rank: usize,
    other: usize,
    patience: Duration,
) -> Result<String, TrainerError> {
    let found = store.get(&identity_key(other), patience);
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

fn read_key(rank: usize) -> String {
    format!("read/{rank}")
}

fn identity_key(rank: usize) -> String {
    format!("identity/{rank}")
}
