//! The product with a matrix that is kept in 8 or 4 bits a weight.
//!
//! Shape suffixes: n rows, i inputs, o outputs, g groups of inputs, h half a group.

use tch::{Kind, Tensor};

use crate::TorchError;
use crate::ffi::{self, check};
use crate::ops::{argument, describe};

/// A matrix `W` `[o, i]` as codes `q`, with what makes weights of them, in f32.
#[derive(Debug)]
pub enum Codes {
    /// `w = scale q`.
    Int8 {
        /// Codes, Int8 `[o, i]`.
        codes_oi: Tensor,
        /// A scale for each output, `[o, 1]`.
        scales_o1: Tensor,
    },
    /// `w = scale q + minimum`.
    Int4 {
        /// Two codes a byte, Uint8 `[o, g, h]`: the first half of a group in the low halves of its
        /// bytes, the second in the high ones. What the last group has beyond the inputs is left out.
        codes_ogh: Tensor,
        /// Scales, `[o, g]`.
        scales_og: Tensor,
        /// Minima, `[o, g]`.
        minima_og: Tensor,
    },
}

/// `x W^T`, `[n, o]`, in the type of `x_ni` `[n, i]`, with a gradient to `x_ni`. `W` is made of its codes
/// a block of rows at a time, in this pass and in the backward pass: a copy of it never exists.
///
/// # Errors
/// When shapes, types or devices do not fit, or libtorch throws.
pub fn quantized_linear(x_ni: &Tensor, matrix: &Codes) -> Result<Tensor, TorchError> {
    let operation = "quantized_linear";
    let x = x_ni.size();
    let inputs = if let [_, inputs] = x[..] { inputs } else { 0 };
    let (codes, scales, minima) = match matrix {
        Codes::Int8 {
            codes_oi,
            scales_o1,
        } => (codes_oi, scales_o1, None),
        Codes::Int4 {
            codes_ogh,
            scales_og,
            minima_og,
        } => (codes_ogh, scales_og, Some(minima_og)),
    };
    let expected = match (&codes.size()[..], minima) {
        (&[outputs, width], None) if width == inputs => Some((Kind::Int8, [outputs, 1])),
        // The last group has some of the inputs, and none is left.
        (&[outputs, groups, half], Some(_))
            if half > 0 && (inputs as u64).div_ceil(2 * half as u64) == groups as u64 =>
        {
            Some((Kind::Uint8, [outputs, groups]))
        }
        _ => None,
    };
    let per_group = |tensor: &Tensor, dims: &[i64]| {
        let fits = tensor.kind() == Kind::Float && tensor.size() == dims;
        fits && tensor.is_contiguous() && tensor.device() == x_ni.device()
    };
    let fits = expected.is_some_and(|(kind, dims)| {
        let of_codes = codes.kind() == kind && codes.is_contiguous();
        let mut all = [Some(scales), minima].into_iter().flatten();
        of_codes && codes.device() == x_ni.device() && all.all(|t| per_group(t, &dims))
    });
    if inputs == 0 || !fits {
        let found = format!(
            "{} with scales {}, for an input {}",
            describe(codes),
            describe(scales),
            describe(x_ni)
        );
        let expected = "codes and scales of one matrix, with as many inputs as the input is wide";
        return Err(argument(operation, "matrix", &found, expected));
    }
    let mut out = std::ptr::null_mut();
    // SAFETY: the tensors are borrowed for this call, and their sizes were checked; `out` is a valid place
    // for one pointer, which on success holds a tensor of which we are the only owner.
    unsafe {
        check(
            operation,
            ffi::rlhf_quantized_linear(
                x_ni.as_ptr(),
                codes.as_ptr(),
                scales.as_ptr(),
                minima.map_or(std::ptr::null(), Tensor::as_ptr),
                inputs,
                &raw mut out,
            ),
        )?;
        Ok(Tensor::from_ptr(out))
    }
}
