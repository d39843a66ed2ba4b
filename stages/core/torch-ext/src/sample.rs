//! From logits to tokens, on the CPU.
//!
//! Shape suffixes: b rows, v vocabulary.

use tch::{Device, Kind, Tensor};

use crate::TorchError;
use crate::ffi::{self, check};
use crate::ops::{argument, describe};

/// Which part of a distribution is sampled from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cuts {
    /// Logits are divided by this; above 0.
    pub temperature: f64,
    /// Only the k likeliest tokens, and those as likely as the k-th; 1 or more.
    pub top_k: Option<usize>,
    /// Then only the smallest set of likeliest tokens that have this probability together; in (0, 1].
    pub top_p: Option<f64>,
}

/// The token of each row `[b, v]` of logits on which its uniform number (in [0, 1)) falls when the tokens'
/// probabilities lie behind each other, and the logarithm of its probability after the cuts. `None`: the
/// likeliest token (the first of those), under the plain distribution. Sums over 256 tokens are in f32 (f64 for
/// f64 logits), those of such sums in f64.
///
/// # Errors
/// When shapes, types or devices do not fit.
///
/// # Panics
/// When a cut is out of its bounds.
pub fn sample(
    logits_bv: &Tensor,
    uniform_b: Option<&[f64]>,
    cuts: &Cuts,
) -> Result<(Vec<i64>, Vec<f64>), TorchError> {
    let operation = "sample";
    let top_p = cuts.top_p.unwrap_or(1.0);
    assert!(
        cuts.temperature > 0.0 && cuts.top_k != Some(0) && top_p > 0.0 && top_p <= 1.0,
        "{cuts:?}"
    );
    let size = logits_bv.size();
    let known = matches!(
        logits_bv.kind(),
        Kind::Float | Kind::Double | Kind::BFloat16
    );
    let on_cpu = logits_bv.device() == Device::Cpu && logits_bv.is_contiguous();
    let rows = match size[..] {
        [rows, vocabulary] if vocabulary > 0 => Some(rows as usize),
        _ => None,
    };
    let enough = uniform_b.is_none_or(|uniform_b| Some(uniform_b.len()) == rows);
    let Some(rows) = rows.filter(|_| known && on_cpu && enough) else {
        let found = format!(
            "{} with {:?} uniform numbers",
            describe(logits_bv),
            uniform_b.map(<[f64]>::len)
        );
        let expected = "[b, v] in Float, Double or BFloat16 on the CPU, and b numbers";
        return Err(argument(operation, "logits_bv", &found, expected));
    };
    let (mut ids, mut logprobs) = (vec![0; rows], vec![0.0; rows]);
    // SAFETY: the tensor and the numbers are borrowed for this call, whose rows were counted; the vectors
    // have a place for each.
    unsafe {
        check(
            operation,
            ffi::rlhf_sample(
                logits_bv.as_ptr(),
                uniform_b.map_or(std::ptr::null(), <[f64]>::as_ptr),
                cuts.temperature,
                cuts.top_k.map_or(0, |k| k as i64),
                top_p,
                ids.as_mut_ptr(),
                logprobs.as_mut_ptr(),
            ),
        )?;
    }
    Ok((ids, logprobs))
}
