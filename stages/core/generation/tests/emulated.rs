//! `generate` with the GPU's kernels, run on the CPU: whole steps as a GPU takes them, but for the recording.

mod decoding;

use recipe::shape::Family;

/// Learned positions, rotary ones (whole heads, and half of a head in neighbouring pairs) and `ALiBi`; grouped heads, a
/// sliding window.
const FAMILIES: [Family; 5] = [
    Family::Gpt2,
    Family::Llama,
    Family::Mistral,
    Family::Falcon,
    Family::Glm,
];
const REQUESTS: u64 = 8;

fn begin() {
    torch_ext::use_emulated_kernels().expect("librlhf_emulated.so lies beside the tests");
}
