//! Whether kernels of our own run, or libtorch's operators in their place.

use std::sync::atomic::{AtomicBool, Ordering};

static PLAIN: AtomicBool = AtomicBool::new(false);

/// From now on this process computes blocks, decoding and sampling with libtorch's operators, as on a device for
/// which there is no kernel: slower, and equal up to rounding. For comparisons.
pub fn use_plain_operators() {
    PLAIN.store(true, Ordering::Relaxed);
}

/// Whether [`use_plain_operators`] was called.
pub fn is_plain() -> bool {
    PLAIN.load(Ordering::Relaxed)
}
