//! From logits to tokens.
//!
//! Shape suffixes: b rows, v vocabulary.

use tch::{Device, Kind, Tensor};

use crate::TorchError;
use crate::ffi::{self, check};
use crate::kernels::has_device_kernels;
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

/// The largest vocabulary that [`device_sample`] takes.
pub const LARGEST_DEVICE_VOCABULARY: usize = 1 << 18;

/// [`sample`] without cuts on a device for which [`has_device_kernels`] says so, which nothing leaves:
/// tokens, int64 `[b]`, and the logarithms of their probabilities, f64 `[b]`. Excluded tokens have the logit `-inf`.
/// `uniform_b` is f64 `[b]`; `None`: the likeliest token.
///
/// # Errors
/// When shapes, types or devices do not fit.
///
/// # Panics
/// When the temperature is not above 0.
pub fn device_sample(
    logits_bv: &Tensor,
    uniform_b: Option<&Tensor>,
    temperature: f64,
) -> Result<(Tensor, Tensor), TorchError> {
    let operation = "device_sample";
    assert!(temperature > 0.0, "{temperature}");
    let (size, device) = (logits_bv.size(), logits_bv.device());
    let known = matches!(
        logits_bv.kind(),
        Kind::Float | Kind::Double | Kind::BFloat16
    );
    let fits = matches!(size[..], [_, v] if (1..=LARGEST_DEVICE_VOCABULARY as i64).contains(&v));
    let enough = uniform_b.is_none_or(|uniform_b| {
        uniform_b.kind() == Kind::Double
            && uniform_b.device() == device
            && uniform_b.is_contiguous()
            && uniform_b.size() == size[..1]
    });
    let there = has_device_kernels(device) && logits_bv.is_contiguous();
    if !(known && fits && enough && there) {
        let expected =
            "[b, v] in Float, Double or BFloat16 on a device with kernels, and b numbers";
        return Err(argument(
            operation,
            "logits_bv",
            &describe(logits_bv),
            expected,
        ));
    }
    let (mut ids_b, mut logprobs_b) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: the tensors are borrowed for this call, and their sizes were checked; both places hold tensors of
    // which we are the only owner on success.
    unsafe {
        check(
            operation,
            ffi::rlhf_device_sample(
                logits_bv.as_ptr(),
                uniform_b.map_or(std::ptr::null(), Tensor::as_ptr),
                temperature,
                &raw mut ids_b,
                &raw mut logprobs_b,
            ),
        )?;
        Ok((Tensor::from_ptr(ids_b), Tensor::from_ptr(logprobs_b)))
    }
}
