//! The CPU's kernels for small operators.

mod operators;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// One test at a time: libtorch's random numbers are the process'.
fn begin() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
