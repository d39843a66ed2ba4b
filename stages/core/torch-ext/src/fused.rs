//! Small operators of a block in one pass over memory each, on the CPU, with gradients.
//!
//! Shape suffixes: b rows, h heads, t positions, e width of a head, d width; `...` any leading sizes.

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use crate::TorchError;
use crate::ffi::{self, Status, check};
use crate::ops::{argument, describe};
use crate::plain::is_plain;

/// Whether these operators are to take a tensor: f32, f64 or bf16 on the CPU, unless
/// [plain ones](crate::use_plain_operators) are wanted.
pub fn is_fusible(tensor: &Tensor) -> bool {
    is_known(tensor) && !is_plain()
}

fn is_known(tensor: &Tensor) -> bool {
    let known = matches!(tensor.kind(), Kind::Float | Kind::Double | Kind::BFloat16);
    known && tensor.device() == Device::Cpu
}

/// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension (Zhang and Sennrich 2019), rounded once.
///
/// # Errors
/// When types, shapes or devices do not fit.
pub fn rms_norm(x: &Tensor, weight_d: &Tensor, eps: f64) -> Result<Tensor, TorchError> {
    let operation = "rms_norm";
    let d = weight_d.size();
    let fits = d.len() == 1 && d[0] > 0 && x.size().last() == d.first();
    if !fits || !like(x, weight_d) || !weight_d.is_contiguous() {
        let expected = format!("the last dimension and type of {}", describe(x));
        return Err(argument(
            operation,
            "weight_d",
            &describe(weight_d),
            &expected,
        ));
    }
    output(operation, |out| {
        // SAFETY: the tensors are borrowed for this call, and their sizes were checked.
        unsafe { ffi::rlhf_rms_norm(x.as_ptr(), weight_d.as_ptr(), eps, out) }
    })
}

/// `silu(gate) up` with `silu(z) = z / (1 + e^-z)` (Shazeer 2020), rounded once.
///
/// # Errors
/// When types, shapes or devices differ.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor, TorchError> {
    let operation = "swiglu";
    let packed = |tensor: &Tensor| tensor.stride().last() == Some(&1);
    if gate.size() != up.size() || !like(gate, up) || !packed(gate) || !packed(up) {
        let expected = format!("what the gate is, {}", describe(gate));
        return Err(argument(operation, "up", &describe(up), &expected));
    }
    output(operation, |out| {
        // SAFETY: the tensors are borrowed for this call, and are of one shape.
        unsafe { ffi::rlhf_swiglu(gate.as_ptr(), up.as_ptr(), out) }
    })
}

/// GELU in its tanh approximation (Hendrycks and Gimpel 2016), rounded once.
///
/// # Errors
/// For another type or device.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor, TorchError> {
    let operation = "gelu_tanh";
    if !is_known(x) {
        let expected = "Float, Double or BFloat16 on the CPU";
        return Err(argument(operation, "x", &describe(x), expected));
    }
    output(operation, |out| {
        // SAFETY: the tensor is borrowed for this call.
        unsafe { ffi::rlhf_gelu(x.as_ptr(), out) }
    })
}

/// `x cos + turned(x) sin` of the first numbers of each head, as many as the tables are wide; the others
/// stay (Su et al. 2021). `turned` takes pairs of numbers a half apart, or of neighbours (`interleaved`); both of
/// a pair have the same angle. `x_bhte` is `[b, h, t, e]`, the tables `[b or 1, 1, t, ..]`.
///
/// # Errors
/// When types, shapes or devices do not fit.
pub fn rotate(
    x_bhte: &Tensor,
    cos_b1te: &Tensor,
    sin_b1te: &Tensor,
    interleaved: bool,
) -> Result<Tensor, TorchError> {
    let operation = "rotate";
    let (x, cos) = (x_bhte.size(), cos_b1te.size());
    let fits = matches!((&x[..], &cos[..]), (&[b, _, t, e], &[rows, 1, columns, rotated])
        if (rows == b || rows == 1) && columns == t && rotated <= e && rotated % 2 == 0);
    let tables = cos_b1te.is_contiguous() && sin_b1te.is_contiguous();
    let alike = like(x_bhte, cos_b1te) && like(x_bhte, sin_b1te) && sin_b1te.size() == cos;
    if !fits || !tables || !alike || x_bhte.stride().last() != Some(&1) {
        let expected = format!("tables for {}", describe(x_bhte));
        return Err(argument(
            operation,
            "cos_b1te",
            &describe(cos_b1te),
            &expected,
        ));
    }
    output(operation, |out| {
        // SAFETY: the tensors are borrowed for this call, and their sizes were checked.
        unsafe {
            ffi::rlhf_rotate(
                x_bhte.as_ptr(),
                cos_b1te.as_ptr(),
                sin_b1te.as_ptr(),
                interleaved,
                out,
            )
        }
    })
}

fn like(a: &Tensor, b: &Tensor) -> bool {
    is_known(a) && is_known(b) && a.kind() == b.kind()
}

fn output(
    operation: &'static str,
    run: impl FnOnce(*mut *mut C_tensor) -> Status,
) -> Result<Tensor, TorchError> {
    let mut out = std::ptr::null_mut();
    check(operation, run(&raw mut out))?;
    // SAFETY: on success `out` holds a tensor of which we are the only owner.
    Ok(unsafe { Tensor::from_ptr(out) })
}
