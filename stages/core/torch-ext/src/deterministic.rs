//! The same bits in every run on one kind of device.
//!
//! Shape suffixes: b rows, v numbers of a row.

use tch::{Kind, Tensor};

use crate::TorchError;
use crate::ffi::{self, check};

/// A probability of 1 as a whole number; sums stay below the largest one.
const ONE: f64 = (1_u64 << 60) as f64;

/// From now on libtorch takes only algorithms that add in one order, and refuses an operator that has none, by name:
/// `torch.use_deterministic_algorithms(True)`. cuBLAS needs `CUBLAS_WORKSPACE_CONFIG=:4096:8` beside it, from before
/// CUDA starts.
///
/// # Errors
/// libtorch's.
pub fn use_deterministic() -> Result<(), TorchError> {
    // SAFETY: no pointer is passed.
    check("use_deterministic", unsafe {
        ffi::rlhf_use_deterministic()
    })
}

/// Whether [`use_deterministic`] was called.
pub fn is_deterministic() -> bool {
    let mut on = false;
    // SAFETY: `on` is a valid place.
    let status = unsafe { ffi::rlhf_is_deterministic(&raw mut on) };
    check("is_deterministic", status).is_ok() && on
}

/// Sums of the numbers of each row up to each of them, f64 `[b, v]` as the probabilities in it, which are 0 to 1.
/// On a GPU libtorch adds floats in any order there: where that is not allowed, whole numbers of 2^-60 are added,
/// which have one sum.
pub fn sums_so_far(probs_bv: &Tensor) -> Tensor {
    if is_deterministic() {
        whole_sums(probs_bv)
    } else {
        probs_bv.cumsum(-1, None)
    }
}

fn whole_sums(probs_bv: &Tensor) -> Tensor {
    let whole_bv = (probs_bv * ONE).round().to_kind(Kind::Int64);
    whole_bv.cumsum(-1, Kind::Int64).to_kind(Kind::Double) / ONE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_switch_reaches_libtorch() -> Result<(), TorchError> {
        assert!(!is_deterministic());
        use_deterministic()?;
        assert!(is_deterministic());
        Ok(())
    }

    #[test]
    fn whole_numbers_have_the_sums_of_the_floats() {
        let probs_bv = Tensor::rand([3, 5000], (Kind::Double, tch::Device::Cpu)).softmax(-1, None);
        let apart = (whole_sums(&probs_bv) - probs_bv.cumsum(-1, None)).abs();
        assert!(apart.max().double_value(&[]) < 1e-14);
        // Small ones are not lost, and nothing becomes less on the way.
        let few = Tensor::from_slice(&[0.5, 1e-17, 0.0, 0.25, 1e-17, 0.25]).view([1, 6]);
        let sums = Vec::<f64>::try_from(whole_sums(&few).view(-1)).expect("f64");
        assert!(
            sums.is_sorted() && (sums[5] - 1.0).abs() < 1e-15,
            "{sums:?}"
        );
        assert!((sums[0] - 0.5).abs() < 1e-15, "{sums:?}");
    }
}
