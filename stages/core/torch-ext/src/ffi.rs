//! Every foreign declaration of the crate, and the one way to call them.

use std::ffi::{CStr, c_char, c_void};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::TorchError;
use crate::device_attention::RawSpan;

/// Null, or a text that [`rlhf_free`] frees.
pub(crate) type Status = *mut c_char;

#[cfg(target_env = "gnu")]
unsafe extern "C" {
    /// glibc's, `mallopt(3)`.
    pub(crate) fn mallopt(parameter: i32, value: i32) -> i32;
}

unsafe extern "C" {
    pub(crate) fn rlhf_free(text: *mut c_char);
    pub(crate) fn rlhf_show_config(text: *mut *mut c_char) -> Status;
    pub(crate) fn rlhf_libtorch_path(path: *mut *mut c_char) -> Status;
    pub(crate) fn rlhf_use_deterministic() -> Status;
    pub(crate) fn rlhf_is_deterministic(on: *mut bool) -> Status;
    pub(crate) fn rlhf_fused_adamw(
        n: usize,
        params: *const *const C_tensor,
        grads: *const *const C_tensor,
        exp_avgs: *const *const C_tensor,
        exp_avg_sqs: *const *const C_tensor,
        steps: *const *const C_tensor,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
    ) -> Status;
    pub(crate) fn rlhf_backward(
        n: usize,
        outputs: *const *const C_tensor,
        grads: *const *const C_tensor,
    ) -> Status;
    pub(crate) fn rlhf_row_attention(
        q_hme: *const C_tensor,
        k_gne: *const C_tensor,
        v_gne: *const C_tensor,
        query_starts: *const C_tensor,
        key_starts: *const C_tensor,
        longest_queries: i64,
        longest_keys: i64,
        scale: f64,
        out: *mut *mut C_tensor,
    ) -> Status;
    pub(crate) fn rlhf_store_open(
        host: *const c_char,
        port: u16,
        serves: bool,
        timeout_ms: i64,
        out: *mut *mut c_void,
    ) -> Status;
    pub(crate) fn rlhf_store_close(store: *mut c_void);
    pub(crate) fn rlhf_store_set(
        store: *mut c_void,
        key: *const c_char,
        value: *const c_char,
    ) -> Status;
    pub(crate) fn rlhf_store_get(
        store: *mut c_void,
        key: *const c_char,
        timeout_ms: i64,
        value: *mut *mut c_char,
    ) -> Status;
    pub(crate) fn rlhf_group_open(
        store: *mut c_void,
        name: *const c_char,
        host: *const c_char,
        rank: i32,
        size: i32,
        timeout_ms: i64,
        nccl: *mut c_void,
        out: *mut *mut c_void,
    ) -> Status;
    pub(crate) fn rlhf_group_close(group: *mut c_void);
    pub(crate) fn rlhf_all_reduce(
        group: *mut c_void,
        tensor: *const C_tensor,
        reduction: i32,
        work: *mut *mut c_void,
    ) -> Status;
    pub(crate) fn rlhf_all_gather(
        group: *mut c_void,
        whole: *const C_tensor,
        part: *const C_tensor,
        work: *mut *mut c_void,
    ) -> Status;
    pub(crate) fn rlhf_reduce_scatter(
        group: *mut c_void,
        part: *const C_tensor,
        whole: *const C_tensor,
        work: *mut *mut c_void,
    ) -> Status;
    pub(crate) fn rlhf_broadcast(
        group: *mut c_void,
        tensor: *const C_tensor,
        root: i32,
        work: *mut *mut c_void,
    ) -> Status;
    pub(crate) fn rlhf_work_wait(work: *mut c_void) -> Status;
    pub(crate) fn rlhf_work_free(work: *mut c_void);
    pub(crate) fn rlhf_free_grad(tensor: *const C_tensor) -> Status;
    pub(crate) fn rlhf_set_storage_bytes(tensor: *const C_tensor, bytes: usize) -> Status;
    pub(crate) fn rlhf_quantized_linear(
        x_ni: *const C_tensor,
        codes: *const C_tensor,
        scales: *const C_tensor,
        minima: *const C_tensor,
        inputs: i64,
        out: *mut *mut C_tensor,
    ) -> Status;
    pub(crate) fn rlhf_cached_attention(
        q_nhe: *const C_tensor,
        k_nke: *const C_tensor,
        v_nke: *const C_tensor,
        keys: *const C_tensor,
        values: *const C_tensor,
        table: *const i32,
        columns: i64,
        counts: *const i64,
        pasts: *const i64,
        num_rows: i64,
        scale: f64,
        window: i64,
        bias_hs: *const C_tensor,
        out: *mut *mut C_tensor,
    ) -> Status;
    pub(crate) fn rlhf_use_device_kernels(kernels: *const c_void, emulated: bool);
    pub(crate) fn rlhf_device_attention(
        q_nhe: *const C_tensor,
        k_nke: *const C_tensor,
        v_nke: *const C_tensor,
        keys: *const C_tensor,
        values: *const C_tensor,
        span: *const RawSpan,
        scale: f64,
        window: i64,
        bias_hs: *const C_tensor,
        out: *mut *mut C_tensor,
    ) -> Status;
    pub(crate) fn rlhf_device_sample(
        logits_bv: *const C_tensor,
        uniform_b: *const C_tensor,
        temperature: f64,
        ids_b: *mut *mut C_tensor,
        logprobs_b: *mut *mut C_tensor,
    ) -> Status;
    pub(crate) fn rlhf_norm(
        x: *const C_tensor,
        added: *const C_tensor,
        weight_d: *const C_tensor,
        bias_d: *const C_tensor,
        eps: f64,
        centred: bool,
        total: *mut *mut C_tensor,
        out: *mut *mut C_tensor,
    ) -> Status;
    pub(crate) fn rlhf_swiglu(
        gate: *const C_tensor,
        up: *const C_tensor,
        out: *mut *mut C_tensor,
    ) -> Status;
    pub(crate) fn rlhf_gelu(
        x: *const C_tensor,
        bias_d: *const C_tensor,
        out: *mut *mut C_tensor,
    ) -> Status;
    pub(crate) fn rlhf_rotate(
        x_bhte: *const C_tensor,
        cos_b1te: *const C_tensor,
        sin_b1te: *const C_tensor,
        interleaved: bool,
        out: *mut *mut C_tensor,
    ) -> Status;
    pub(crate) fn rlhf_pack_matrix(
        weight_oi: *const C_tensor,
        rows: i64,
        out: *mut *mut C_tensor,
    ) -> Status;
    pub(crate) fn rlhf_packed_linear(
        x: *const C_tensor,
        packed: *const C_tensor,
        bias: *const C_tensor,
        out: *mut *mut C_tensor,
    ) -> Status;
    pub(crate) fn rlhf_sample(
        logits_bv: *const C_tensor,
        uniform_b: *const f64,
        temperature: f64,
        top_k: i64,
        top_p: f64,
        ids_b: *mut i64,
        logprobs_b: *mut f64,
    ) -> Status;
    pub(crate) fn rlhf_token_logprobs(
        hidden_nd: *const C_tensor,
        weight_vd: *const C_tensor,
        targets_n: *const C_tensor,
        temperature: f64,
        chunk: i64,
        plain: bool,
        out: *mut *mut C_tensor,
    ) -> Status;
}

/// Turns the text of a failed call into an error.
pub(crate) fn check(operation: &'static str, status: Status) -> Result<(), TorchError> {
    if status.is_null() {
        return Ok(());
    }
    Err(TorchError::Libtorch {
        operation,
        message: brief(&take_text(status)),
    })
}

/// Copies and frees a text that the C++ side allocated.
pub(crate) fn take_text(text: *mut c_char) -> String {
    // SAFETY: every C++ function of `cpp/` hands out NUL-terminated texts made by `strdup`, and the
    // caller holds the only pointer to it.
    unsafe {
        let owned = CStr::from_ptr(text).to_string_lossy().into_owned();
        rlhf_free(text);
        owned
    }
}

/// libtorch's messages end in a C++ stack trace, which helps nobody here.
pub(crate) fn brief(message: &str) -> String {
    let end = message
        .find("\nException raised from")
        .unwrap_or(message.len());
    message[..end].trim_end().to_owned()
}

/// The tensors' addresses. They live as long as `tensors` does.
pub(crate) fn pointers<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Vec<*const C_tensor> {
    tensors.into_iter().map(Tensor::as_ptr).collect()
}
