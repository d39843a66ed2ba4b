//! `generate` with the CPU's kernels, on every family.

mod decoding;

use recipe::shape::Family;

const FAMILIES: [Family; 11] = Family::ALL;
const REQUESTS: u64 = 40;

fn begin() {}
