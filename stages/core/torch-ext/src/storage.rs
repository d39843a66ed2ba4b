//! Memory that a tensor has only for a time.

use tch::{Device, Kind, Tensor};

use crate::TorchError;
use crate::ffi::{self, check};

/// A flat tensor, and tensors that are parts of it, whose memory is given back and taken again: their numbers are lost in
/// between, their names, shapes and places in a graph stay.
///
/// While the memory is away nothing may read or write any of them: libtorch's operators do not look whether it is there,
/// and would end the process. Who owns this knows when it is there ([`Self::is_here`]).
#[derive(Debug)]
pub struct Lent {
    flat: Tensor,
}

impl Lent {
    /// So many numbers, which are not set.
    pub fn new(numel: usize, kind: Kind, device: Device) -> Self {
        Self {
            flat: Tensor::empty([numel as i64], (kind, device)),
        }
    }

    /// The whole. It shares its memory, present or not.
    pub fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// Whether the memory is there.
    pub fn is_here(&self) -> bool {
        self.flat.numel() == 0 || !self.flat.data_ptr().is_null()
    }

    /// Gives the memory back. On a GPU: to what is queued next.
    ///
    /// # Errors
    /// When libtorch throws.
    pub fn give_back(&self) -> Result<(), TorchError> {
        self.resize(0)
    }

    /// Takes memory anew, whose numbers are not set.
    ///
    /// # Errors
    /// When there is none.
    pub fn take(&self) -> Result<(), TorchError> {
        self.resize(self.flat.numel() * self.flat.kind().elt_size_in_bytes())
    }

    fn resize(&self, bytes: usize) -> Result<(), TorchError> {
        // SAFETY: the tensor is borrowed for this call and has memory of an allocator (`Tensor::empty`); that nothing reads it
        // while it is away is what this type's documentation asks for.
        check("memory of a tensor", unsafe {
            ffi::rlhf_set_storage_bytes(self.flat.as_ptr(), bytes)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_back_with_the_whole_and_a_graph_waits_for_them()
    -> Result<(), Box<dyn std::error::Error>> {
        let lent = Lent::new(6, Kind::Double, Device::Cpu);
        let mut weight = Tensor::zeros([2, 2], (Kind::Double, Device::Cpu));
        let fill = |scale: f64| {
            let numbers = Tensor::arange(6, (Kind::Double, Device::Cpu)) * scale;
            lent.flat().data().f_copy_(&numbers)?;
            Ok::<_, tch::TchError>(())
        };
        fill(1.0)?;
        weight.set_data(&lent.flat().narrow(0, 2, 4).view([2, 2]));
        let weight = weight.set_requires_grad(true);
        let x = Tensor::ones([1, 2], (Kind::Double, Device::Cpu)).set_requires_grad(true);
        let y = x.matmul(&weight.tr()).square().sum(Kind::Double);
        assert!(lent.is_here());
        lent.give_back()?;
        assert!(!lent.is_here());
        assert_eq!(weight.size(), [2, 2]);
        lent.take()?;
        fill(1.0)?;
        y.backward();
        // y = (2 + 3)^2 + (4 + 5)^2, its gradient 2 (5 w0 + 9 w1).
        assert_eq!(Vec::<f64>::try_from(x.grad().view([-1]))?, [92.0, 120.0]);
        assert_eq!(
            Vec::<f64>::try_from(weight.grad().view([-1]))?,
            [10.0, 10.0, 18.0, 18.0]
        );
        Ok(())
    }
}
