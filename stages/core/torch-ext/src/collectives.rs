//! Communication between the ranks of a job: libtorch's own c10d, with Gloo for tensors of the CPU and NCCL for
//! those of GPUs.
//!
//! ```text
//! let store = Store::open("node1", 29500, rank == 0, join_timeout)?;
//! let group = Group::open(&store, "all", &Member { rank, size, device, .. })?;
//! group.all_reduce(&gradients, Reduction::Sum)?.wait()?;
//! ```
//!
//! All ranks of a group call the same operations in the same order.

use std::ffi::{CString, c_char, c_void};
use std::ptr::{self, NonNull};
use std::time::Duration;

use tch::{Device, Tensor};

use crate::TorchError;
use crate::cuda;
use crate::ffi::{self, check, take_text};
use crate::ops::{argument, describe};

/// Keys and values that all ranks of a job see, held by one of them.
#[derive(Debug)]
pub struct Store {
    raw: NonNull<c_void>,
    host: String,
}

impl Store {
    /// Serves the store on `host`, or finds it there, for up to `timeout`.
    ///
    /// # Errors
    /// Where nobody serves it in time, or the port is taken.
    ///
    /// # Panics
    /// When the name has a zero byte.
    pub fn open(
        host: &str,
        port: u16,
        serves: bool,
        timeout: Duration,
    ) -> Result<Self, TorchError> {
        let name = text(host);
        let mut raw = ptr::null_mut();
        // SAFETY: the name is NUL-terminated, and `raw` a valid place; on success it holds a store that is ours.
        check("finding the other ranks", unsafe {
            ffi::rlhf_store_open(name.as_ptr(), port, serves, millis(timeout), &raw mut raw)
        })?;
        Ok(Self {
            raw: owned(raw),
            host: host.to_owned(),
        })
    }

    /// Writes a value for all to see.
    ///
    /// # Errors
    /// When the store's server is gone.
    ///
    /// # Panics
    /// When key or value has a zero byte.
    pub fn set(&self, key: &str, value: &str) -> Result<(), TorchError> {
        let (key, value) = (text(key), text(value));
        // SAFETY: both are NUL-terminated, and the store lives as long as `self`.
        check("store", unsafe {
            ffi::rlhf_store_set(self.raw.as_ptr(), key.as_ptr(), value.as_ptr())
        })
    }

    /// Reads a value, waiting up to `timeout` for it. `None` where it is not there and the timeout is zero.
    ///
    /// # Errors
    /// When it does not come in time, or the store's server is gone.
    ///
    /// # Panics
    /// When the key has a zero byte.
    pub fn get(&self, key: &str, timeout: Duration) -> Result<Option<String>, TorchError> {
        let key = text(key);
        let mut value: *mut c_char = ptr::null_mut();
        // SAFETY: the key is NUL-terminated, and `value` a valid place; on success it holds null or a text that is ours.
        check("store", unsafe {
            ffi::rlhf_store_get(
                self.raw.as_ptr(),
                key.as_ptr(),
                millis(timeout),
                &raw mut value,
            )
        })?;
        Ok((!value.is_null()).then(|| take_text(value)))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: made by `rlhf_store_open`, and freed once.
        unsafe { ffi::rlhf_store_close(self.raw.as_ptr()) }
    }
}

/// A rank's place in a group.
#[derive(Debug, Clone, Copy)]
pub struct Member {
    /// From 0.
    pub rank: usize,
    /// Ranks of the group.
    pub size: usize,
    /// Where its tensors lie.
    pub device: Device,
    /// How long an operation may take.
    pub timeout: Duration,
}

/// What becomes of the tensors of all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// Their sum.
    Sum,
    /// The largest of each number.
    Max,
    /// The smallest of each number.
    Min,
}

/// Ranks that communicate.
#[derive(Debug)]
pub struct Group {
    raw: NonNull<c_void>,
    member: Member,
}

impl Group {
    /// Joins the group of this name, which its other members join too.
    ///
    /// # Errors
    /// When a member does not come in time, or for a GPU the library of its kernels lacks NCCL.
    ///
    /// # Panics
    /// When the name has a zero byte, or the rank is not below the size.
    pub fn open(store: &Store, name: &str, member: Member) -> Result<Self, TorchError> {
        let Member { rank, size, .. } = member;
        assert!(rank < size, "rank {rank} of {size}");
        let factory = match member.device {
            Device::Cuda(_) => cuda::nccl_factory()?,
            _ => ptr::null_mut(),
        };
        let (name, host) = (text(name), text(&store.host));
        let mut raw = ptr::null_mut();
        // SAFETY: the texts are NUL-terminated, the store lives for this call and is shared by the group, the factory is
        // null or the function of that type in `cpp/cuda/nccl.cpp`; on success `raw` holds a group that is ours.
        check("joining the group", unsafe {
            ffi::rlhf_group_open(
                store.raw.as_ptr(),
                name.as_ptr(),
                host.as_ptr(),
                rank as i32,
                size as i32,
                millis(member.timeout),
                factory,
                &raw mut raw,
            )
        })?;
        Ok(Self {
            raw: owned(raw),
            member,
        })
    }

    /// This rank's place.
    pub fn member(&self) -> Member {
        self.member
    }

    /// Reduces a tensor over all ranks, in place.
    ///
    /// # Errors
    /// When the tensor is not contiguous or does not lie on the group's device; c10d's.
    pub fn all_reduce(&self, tensor: &Tensor, reduction: Reduction) -> Result<Pending, TorchError> {
        let operation = "all_reduce";
        self.check(operation, "tensor", tensor)?;
        let reduction = match reduction {
            Reduction::Sum => 0,
            Reduction::Max => 1,
            Reduction::Min => 2,
        };
        self.begin(operation, &[tensor], |group, work| {
            // SAFETY: the tensor is borrowed for this call, and the pending work shares it.
            unsafe { ffi::rlhf_all_reduce(group, tensor.as_ptr(), reduction, work) }
        })
    }

    /// The parts of all ranks, one behind the other, in `whole`.
    ///
    /// # Errors
    /// When `whole` has not as many numbers as all parts, or as [`Self::all_reduce`].
    pub fn all_gather(&self, whole: &Tensor, part: &Tensor) -> Result<Pending, TorchError> {
        let operation = "all_gather";
        self.check_parts(operation, whole, part)?;
        self.begin(operation, &[whole, part], |group, work| {
            // SAFETY: as above.
            unsafe { ffi::rlhf_all_gather(group, whole.as_ptr(), part.as_ptr(), work) }
        })
    }

    /// This rank's part of the sum of all ranks' `whole`, in `part`.
    ///
    /// # Errors
    /// As [`Self::all_gather`].
    pub fn reduce_scatter(&self, part: &Tensor, whole: &Tensor) -> Result<Pending, TorchError> {
        let operation = "reduce_scatter";
        self.check_parts(operation, whole, part)?;
        self.begin(operation, &[part, whole], |group, work| {
            // SAFETY: as above.
            unsafe { ffi::rlhf_reduce_scatter(group, part.as_ptr(), whole.as_ptr(), work) }
        })
    }

    /// The tensor of rank `root`, in all ranks' `tensor`.
    ///
    /// # Errors
    /// As [`Self::all_reduce`].
    ///
    /// # Panics
    /// When there is no such rank.
    pub fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Pending, TorchError> {
        let operation = "broadcast";
        assert!(
            root < self.member.size,
            "rank {root} of {}",
            self.member.size
        );
        self.check(operation, "tensor", tensor)?;
        self.begin(operation, &[tensor], |group, work| {
            // SAFETY: as above.
            unsafe { ffi::rlhf_broadcast(group, tensor.as_ptr(), root as i32, work) }
        })
    }

    /// Waits until all ranks are here.
    ///
    /// # Errors
    /// c10d's.
    ///
    /// # Panics
    /// When they are not as many as the group has, which cannot be.
    pub fn barrier(&self) -> Result<(), TorchError> {
        // Of a number that is read: a GPU's barrier would wait for nothing on the host.
        let here = Tensor::ones([1], (tch::Kind::Int64, self.member.device));
        self.all_reduce(&here, Reduction::Sum)?.wait()?;
        let count = here.int64_value(&[0]);
        assert_eq!(count, self.member.size as i64, "all ranks were here");
        Ok(())
    }

    fn begin(
        &self,
        operation: &'static str,
        tensors: &[&Tensor],
        call: impl FnOnce(*mut c_void, *mut *mut c_void) -> ffi::Status,
    ) -> Result<Pending, TorchError> {
        let mut work = ptr::null_mut();
        check(operation, call(self.raw.as_ptr(), &raw mut work)).map_err(communication)?;
        Ok(Pending {
            raw: owned(work),
            operation,
            _tensors: tensors.iter().map(|x| x.shallow_clone()).collect(),
        })
    }

    fn check_parts(
        &self,
        operation: &'static str,
        whole: &Tensor,
        part: &Tensor,
    ) -> Result<(), TorchError> {
        self.check(operation, "whole", whole)?;
        self.check(operation, "part", part)?;
        let expected = part.numel() * self.member.size;
        if whole.numel() == expected && whole.kind() == part.kind() {
            return Ok(());
        }
        let expected = format!("{expected} numbers of {:?}", part.kind());
        Err(argument(operation, "whole", &describe(whole), &expected))
    }

    fn check(
        &self,
        operation: &'static str,
        name: &'static str,
        tensor: &Tensor,
    ) -> Result<(), TorchError> {
        let device = self.member.device;
        if tensor.defined() && tensor.is_contiguous() && tensor.device() == device {
            return Ok(());
        }
        let expected = format!("contiguous, on {device:?}");
        Err(argument(operation, name, &describe(tensor), &expected))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: made by `rlhf_group_open`, and freed once.
        unsafe { ffi::rlhf_group_close(self.raw.as_ptr()) }
    }
}

/// An operation under way. Its tensors are neither read nor written before [`Self::wait`].
#[derive(Debug)]
#[must_use = "the tensors are not ready before `wait`"]
pub struct Pending {
    raw: NonNull<c_void>,
    operation: &'static str,
    _tensors: Vec<Tensor>,
}

impl Pending {
    /// Waits for the end. (On a GPU: makes what this thread queues next wait for it.)
    ///
    /// # Errors
    /// Where a rank is gone, or did not come in time.
    pub fn wait(self) -> Result<(), TorchError> {
        // SAFETY: the work lives as long as `self`.
        let status = unsafe { ffi::rlhf_work_wait(self.raw.as_ptr()) };
        check(self.operation, status).map_err(communication)
    }
}

fn communication(error: TorchError) -> TorchError {
    match error {
        TorchError::Libtorch { operation, message } => {
            TorchError::Communication { operation, message }
        }
        other => other,
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // SAFETY: made by c10d for this handle, and freed once; what is under way keeps its own references.
        unsafe { ffi::rlhf_work_free(self.raw.as_ptr()) }
    }
}

fn owned(raw: *mut c_void) -> NonNull<c_void> {
    NonNull::new(raw).expect("a call that succeeds hands out an object")
}

fn text(text: &str) -> CString {
    CString::new(text).expect("a text without zero bytes")
}

fn millis(timeout: Duration) -> i64 {
    i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX)
}
