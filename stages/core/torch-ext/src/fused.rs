//! Small operators of a block in one pass over memory each, with gradients.
//!
//! Shape suffixes: b rows, h heads, t positions, e width of a head, d width; `...` any leading sizes.

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use crate::TorchError;
use crate::ffi::{self, Status, check};
use crate::kernels::{has_device_kernels, is_plain};
use crate::ops::{argument, describe};

/// Whether these operators are to take a tensor: f32, f64 or bf16 on the CPU or on a GPU whose kernels are
/// loaded, unless [plain ones](crate::use_plain_operators) are wanted.
pub fn is_fusible(tensor: &Tensor) -> bool {
    is_known(tensor) && !is_plain()
}

fn is_known(tensor: &Tensor) -> bool {
    let known = matches!(tensor.kind(), Kind::Float | Kind::Double | Kind::BFloat16);
    known && (tensor.device() == Device::Cpu || has_device_kernels(tensor.device()))
}

/// The norm of rows of d numbers, rounded once.
#[derive(Debug, Clone, Copy)]
pub struct RowNorm<'a> {
    /// Multiplied with, `[d]`.
    pub weight_d: &'a Tensor,
    /// Added at the end, `[d]`.
    pub bias_d: Option<&'a Tensor>,
    /// Added to the mean square.
    pub eps: f64,
    /// Whether the mean is subtracted first: `LayerNorm` (Ba et al. 2016); else `RMSNorm` (Zhang and Sennrich
    /// 2019), which has no bias.
    pub centred: bool,
}

impl RowNorm<'_> {
    /// `x` normed over its last dimension.
    ///
    /// # Errors
    /// When types, shapes or devices do not fit.
    pub fn of(&self, x: &Tensor) -> Result<Tensor, TorchError> {
        self.run(x, None).map(|(_, y)| y)
    }

    /// `x + added`, and that normed.
    ///
    /// # Errors
    /// When types, shapes or devices do not fit.
    pub fn of_sum(&self, x: &Tensor, added: &Tensor) -> Result<(Tensor, Tensor), TorchError> {
        self.run(x, Some(added))
    }

    fn run(&self, x: &Tensor, added: Option<&Tensor>) -> Result<(Tensor, Tensor), TorchError> {
        let operation = "norm";
        let d = self.weight_d.size();
        let fits = d.len() == 1 && d[0] > 0 && x.size().last() == d.first();
        let of_row =
            |tensor: &Tensor| tensor.size() == d && like(x, tensor) && tensor.is_contiguous();
        let biased = self
            .bias_d
            .is_none_or(|bias_d| self.centred && of_row(bias_d));
        if !fits || !biased || !of_row(self.weight_d) {
            let expected = format!("the last dimension and type of {}", describe(x));
            let found = describe(self.weight_d);
            return Err(argument(operation, "weight_d", &found, &expected));
        }
        if let Some(added) = added
            && (added.size() != x.size() || !like(x, added))
        {
            return Err(argument(operation, "added", &describe(added), &describe(x)));
        }
        let pointer = |tensor: Option<&Tensor>| tensor.map_or(std::ptr::null(), Tensor::as_ptr);
        let mut total = std::ptr::null_mut();
        let y = output(operation, |out| {
            // SAFETY: the tensors are borrowed for this call, and their sizes were checked.
            unsafe {
                ffi::rlhf_norm(
                    x.as_ptr(),
                    pointer(added),
                    self.weight_d.as_ptr(),
                    pointer(self.bias_d),
                    self.eps,
                    self.centred,
                    &raw mut total,
                    out,
                )
            }
        })?;
        // SAFETY: on success `total` holds a tensor of which we are the only owner.
        Ok((unsafe { Tensor::from_ptr(total) }, y))
    }
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

/// GELU of `x + bias_d` in its tanh approximation (Hendrycks and Gimpel 2016), rounded once where a GPU's kernel
/// does both.
///
/// # Errors
/// When types, shapes or devices do not fit.
pub fn gelu_tanh(x: &Tensor, bias_d: Option<&Tensor>) -> Result<Tensor, TorchError> {
    let operation = "gelu_tanh";
    let d = x.size().last().copied();
    let fits =
        |bias_d: &Tensor| bias_d.dim() == 1 && d == Some(bias_d.size()[0]) && like(x, bias_d);
    if !is_known(x) || d.is_none() || !bias_d.is_none_or(fits) {
        let expected = "Float, Double or BFloat16 on the CPU, and a bias of its last dimension";
        return Err(argument(operation, "x", &describe(x), expected));
    }
    output(operation, |out| {
        // SAFETY: the tensors are borrowed for this call, and their sizes were checked.
        unsafe {
            ffi::rlhf_gelu(
                x.as_ptr(),
                bias_d.map_or(std::ptr::null(), Tensor::as_ptr),
                out,
            )
        }
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
    is_known(a) && is_known(b) && a.kind() == b.kind() && a.device() == b.device()
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
