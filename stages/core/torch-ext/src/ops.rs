//! Operators of libtorch that tch does not bind.
//!
//! Shape suffixes: n rows, d width, v vocabulary.

use tch::{Kind, Tensor};

use crate::TorchError;
use crate::ffi::{self, check, pointers};
use crate::kernels::is_plain;

/// The numbers of one `AdamW` update (Loshchilov and Hutter 2019, algorithm 2).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this update.
    pub lr: f64,
    /// Decay rate of the first moment.
    pub beta1: f64,
    /// Decay rate of the second moment.
    pub beta2: f64,
    /// Added to the denominator, after the bias correction (as in `PyTorch`).
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// One `AdamW` update in place: `at::_fused_adamw_`.
///
/// All lists have one entry a parameter. `steps` are float32 scalars holding the number of this
/// very update, 1 for the first: the caller counts, the kernel only reads. Parameters, gradients
/// and moments of one entry have one shape, type and device, and are contiguous. Gradients are not
/// changed.
///
/// # Errors
/// When the lists or their tensors do not fit each other, or libtorch refuses them.
pub fn fused_adamw(
    params: &[Tensor],
    grads: &[Tensor],
    exp_avgs: &[Tensor],
    exp_avg_sqs: &[Tensor],
    steps: &[Tensor],
    opts: &AdamWStep,
) -> Result<(), TorchError> {
    let operation = "fused_adamw";
    let lists = [
        ("grads", grads.len()),
        ("exp_avgs", exp_avgs.len()),
        ("exp_avg_sqs", exp_avg_sqs.len()),
        ("steps", steps.len()),
    ];
    let expected = params.len();
    for (name, found) in lists {
        if found != expected {
            return Err(TorchError::Lengths {
                operation,
                name,
                found,
                expected,
            });
        }
    }
    let all = params
        .iter()
        .zip(grads)
        .zip(exp_avgs)
        .zip(exp_avg_sqs)
        .zip(steps);
    for ((((param, grad), exp_avg), exp_avg_sq), step) in all {
        let lists = [("params", param), ("grads", grad), ("exp_avgs", exp_avg)];
        for (name, tensor) in lists.into_iter().chain([("exp_avg_sqs", exp_avg_sq)]) {
            check_entry(operation, name, tensor, param)?;
        }
        if !step.defined() || step.kind() != Kind::Float || step.numel() != 1 {
            return Err(argument(operation, "steps", &describe(step), "one Float"));
        }
    }
    if expected == 0 {
        return Ok(());
    }
    let lists = [params, grads, exp_avgs, exp_avg_sqs, steps].map(pointers);
    // SAFETY: each array holds `expected` addresses of tensors that are borrowed for this call.
    check(operation, unsafe {
        ffi::rlhf_fused_adamw(
            expected,
            lists[0].as_ptr(),
            lists[1].as_ptr(),
            lists[2].as_ptr(),
            lists[3].as_ptr(),
            lists[4].as_ptr(),
            opts.lr,
            opts.beta1,
            opts.beta2,
            opts.weight_decay,
            opts.eps,
        )
    })
}

/// Frees the gradient of `tensor`: its `.grad()` is undefined from now on, and the next backward pass makes a new one.
///
/// # Errors
/// When libtorch throws.
pub fn free_grad(tensor: &Tensor) -> Result<(), TorchError> {
    // SAFETY: the tensor is borrowed for this call; its handles share one gradient, which tch hands out with a count
    // of its own.
    check("free_grad", unsafe { ffi::rlhf_free_grad(tensor.as_ptr()) })
}

/// The backward pass from given gradients of `outputs`: accumulates into the leaves' `.grad()`, and
/// frees the graph (`torch::autograd::backward`).
///
/// # Errors
/// When the lists differ in length, or libtorch refuses (no graph, shapes that differ).
pub fn backward(outputs: &[&Tensor], grads: &[&Tensor]) -> Result<(), TorchError> {
    let operation = "backward";
    if outputs.len() != grads.len() {
        let (found, expected) = (grads.len(), outputs.len());
        return Err(TorchError::Lengths {
            operation,
            name: "grads",
            found,
            expected,
        });
    }
    if outputs.iter().chain(grads).any(|t| !t.defined()) {
        return Err(argument(
            operation,
            "outputs or grads",
            "undefined",
            "a tensor with values",
        ));
    }
    let (o, g) = (
        pointers(outputs.iter().copied()),
        pointers(grads.iter().copied()),
    );
    // SAFETY: both arrays hold `outputs.len()` addresses of tensors borrowed for this call.
    check(operation, unsafe {
        ffi::rlhf_backward(outputs.len(), o.as_ptr(), g.as_ptr())
    })
}

/// `ln softmax(hidden W^T / temperature)` at `targets`, `[n]`, in f32 (f64 for f64 inputs), with
/// gradients to `hidden_nd` `[n, d]` and `weight_vd` `[v, d]`. At most `chunk x v` logits exist at a
/// time; the backward pass computes them anew.
///
/// # Errors
/// When shapes, types or devices do not fit, a target is no token, or libtorch throws. A GPU's kernel cannot refuse: what is
/// no token has there a log-probability that is not a number.
///
/// # Panics
/// When `chunk` is 0 or the temperature is not positive.
pub fn token_logprobs(
    hidden_nd: &Tensor,
    weight_vd: &Tensor,
    targets_n: &Tensor,
    temperature: f64,
    chunk: usize,
) -> Result<Tensor, TorchError> {
    let operation = "token_logprobs";
    assert!(
        chunk > 0 && temperature > 0.0,
        "chunk {chunk}, temperature {temperature}"
    );
    let (hidden, weight) = (hidden_nd.size(), weight_vd.size());
    if hidden.len() != 2 || weight.len() != 2 || hidden[1] != weight[1] {
        let found = format!("{hidden:?} beside a weight of {weight:?}");
        return Err(argument(
            operation,
            "hidden_nd",
            &found,
            "[n, d] beside [v, d]",
        ));
    }
    let fits = targets_n.size() == hidden[..1]
        && targets_n.kind() == Kind::Int64
        && targets_n.device() == hidden_nd.device();
    if !fits {
        let expected = format!("Int64 [{}] on {:?}", hidden[0], hidden_nd.device());
        let found = describe(targets_n);
        return Err(argument(operation, "targets_n", &found, &expected));
    }
    let mut out = std::ptr::null_mut();
    // SAFETY: the inputs are borrowed for this call; `out` is a valid place for one pointer, which
    // on success holds a tensor of which we are the only owner.
    unsafe {
        check(
            operation,
            ffi::rlhf_token_logprobs(
                hidden_nd.as_ptr(),
                weight_vd.as_ptr(),
                targets_n.as_ptr(),
                temperature,
                chunk as i64,
                is_plain(),
                &raw mut out,
            ),
        )?;
        Ok(Tensor::from_ptr(out))
    }
}

/// The kernel reads plain memory and checks nothing: a shorter gradient would be read beyond its end.
fn check_entry(
    operation: &'static str,
    name: &'static str,
    tensor: &Tensor,
    param: &Tensor,
) -> Result<(), TorchError> {
    let fits = tensor.defined()
        && tensor.is_contiguous()
        && param.defined()
        && tensor.size() == param.size()
        && tensor.kind() == param.kind()
        && tensor.device() == param.device();
    if fits {
        return Ok(());
    }
    let expected = format!("{}, contiguous", describe(param));
    Err(argument(operation, name, &describe(tensor), &expected))
}

pub(crate) fn describe(tensor: &Tensor) -> String {
    if !tensor.defined() {
        return "undefined".to_owned();
    }
    let layout = if tensor.is_contiguous() {
        ""
    } else {
        ", not contiguous"
    };
    format!(
        "{:?} {:?} on {:?}{layout}",
        tensor.kind(),
        tensor.size(),
        tensor.device()
    )
}

pub(crate) fn argument(
    operation: &'static str,
    name: &'static str,
    found: &str,
    expected: &str,
) -> TorchError {
    TorchError::Argument {
        operation,
        name,
        found: found.to_owned(),
        expected: expected.to_owned(),
    }
}
