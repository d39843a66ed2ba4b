//! A matrix in an order of its numbers in which products of few rows are fast.
//!
//! Shape suffixes: o outputs, i inputs.

use tch::{Device, Kind, Tensor};

use crate::ffi::{self, check};
use crate::kernels::is_plain;

/// A copy of a matrix in the order of oneDNN's kernels, on the CPU. Without it every product sorts the
/// matrix anew, which costs as much as 30 rows of it.
#[derive(Debug)]
pub struct PackedMatrix {
    packed: Tensor,
    outputs: i64,
    inputs: i64,
    kind: Kind,
}

impl PackedMatrix {
    /// Packs `weight_oi` for products of about `rows` rows; `None` where its type or the processor is none
    /// that oneDNN knows, the matrix is not on the CPU, or [plain operators](crate::use_plain_operators) are wanted.
    ///
    /// # Panics
    /// When it is no matrix, or libtorch throws.
    pub fn new(weight_oi: &Tensor, rows: usize) -> Option<Self> {
        let size = weight_oi.size();
        let &[outputs, inputs] = &size[..] else {
            panic!("a matrix of {size:?}")
        };
        let kind = weight_oi.kind();
        if weight_oi.device() != Device::Cpu || weight_oi.numel() == 0 || is_plain() {
            return None;
        }
        let weight_oi = weight_oi.detach().contiguous();
        let mut out = std::ptr::null_mut();
        // SAFETY: the tensor is borrowed for this call; `out` is a valid place for one pointer, which on success
        // is null or holds a tensor of which we are the only owner.
        let packed = unsafe {
            let status =
                ffi::rlhf_pack_matrix(weight_oi.as_ptr(), rows.max(1) as i64, &raw mut out);
            check("pack_matrix", status).unwrap_or_else(|error| panic!("{error}"));
            (!out.is_null()).then(|| Tensor::from_ptr(out))
        };
        packed.map(|packed| Self {
            packed,
            outputs,
            inputs,
            kind,
        })
    }

    /// `x W^T + bias`, `[.., o]` for `[.., i]`; without gradients.
    ///
    /// # Panics
    /// When shapes, types or devices do not fit, or libtorch throws.
    pub fn product(&self, x: &Tensor, bias: Option<&Tensor>) -> Tensor {
        let alike = |tensor: &Tensor| tensor.kind() == self.kind && tensor.device() == Device::Cpu;
        let one_each = |bias: &Tensor| alike(bias) && bias.size() == [self.outputs];
        let fits = x.size().last() == Some(&self.inputs) && bias.is_none_or(one_each);
        assert!(
            fits && alike(x),
            "{:?} {:?} times a packed {:?} matrix of {} inputs, and its bias",
            x.kind(),
            x.size(),
            self.kind,
            self.inputs
        );
        let mut out = std::ptr::null_mut();
        // SAFETY: the tensors are borrowed for this call; `out` is a valid place for one pointer, which on
        // success holds a tensor of which we are the only owner.
        unsafe {
            let status = ffi::rlhf_packed_linear(
                x.as_ptr(),
                self.packed.as_ptr(),
                bias.map_or(std::ptr::null(), Tensor::as_ptr),
                &raw mut out,
            );
            check("packed_linear", status).unwrap_or_else(|error| panic!("{error}"));
            Tensor::from_ptr(out)
        }
    }
}
