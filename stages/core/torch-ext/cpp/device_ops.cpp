// The kernels of device.h that are installed, and the operators that have no way of their own on the CPU.
#include "device_ops.h"

#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>

#include <atomic>

#include "border.h"

namespace rlhf::device {
namespace {

std::atomic<const Kernels*> installed{nullptr};
// Whether they run on the CPU: in tests.
std::atomic<bool> emulated{false};

}  // namespace

const Kernels* kernels_for(const at::Tensor& tensor) {
  const bool fits = emulated ? tensor.device().is_cpu() : tensor.is_cuda();
  return fits ? installed.load() : nullptr;
}

}  // namespace rlhf::device

namespace {

namespace device = rlhf::device;

// What the host says of the rows of a pass over the cache; mirrors `RawSpan` in src/device_attention.rs.
struct Span {
  at::Tensor* row_of;
  at::Tensor* position;
  at::Tensor* table;
  int64_t splits;
};

at::Tensor attention(const at::Tensor& q_nhe, const at::Tensor& k_nke, const at::Tensor& v_nke,
                     const at::Tensor& keys, const at::Tensor& values, const Span& span, double scale,
                     int64_t window, const at::Tensor& bias_hs) {
  const int64_t tokens = q_nhe.size(0), heads = q_nhe.size(1), width = q_nhe.size(2);
  at::Tensor out = at::empty(q_nhe.sizes(), q_nhe.options());
  at::Tensor partial;
  if (span.splits > 1) {
    const auto wide = q_nhe.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    partial = at::empty({tokens, heads, span.splits, width + 2}, q_nhe.options().dtype(wide));
  }
  device::call(&device::Kernels::attention, q_nhe,
               device::Attention{q_nhe.data_ptr(),
                                 k_nke.data_ptr(),
                                 v_nke.data_ptr(),
                                 q_nhe.stride(0),
                                 q_nhe.stride(1),
                                 k_nke.stride(0),
                                 k_nke.stride(1),
                                 v_nke.stride(0),
                                 v_nke.stride(1),
                                 keys.data_ptr(),
                                 values.data_ptr(),
                                 span.row_of->const_data_ptr<int32_t>(),
                                 span.position->const_data_ptr<int32_t>(),
                                 span.table->const_data_ptr<int32_t>(),
                                 tokens,
                                 heads,
                                 k_nke.size(1),
                                 width,
                                 span.table->size(1),
                                 scale,
                                 window,
                                 device::at_of(bias_hs),
                                 bias_hs.defined() ? bias_hs.stride(0) : 0,
                                 span.splits,
                                 device::at_of(partial),
                                 out.data_ptr()});
  return out;
}

}  // namespace

extern "C" {

void rlhf_use_device_kernels(const void* kernels, bool emulated) {
  device::installed = static_cast<const device::Kernels*>(kernels);
  device::emulated = emulated;
}

char* rlhf_device_attention(at::Tensor* q_nhe, at::Tensor* k_nke, at::Tensor* v_nke, at::Tensor* keys,
                            at::Tensor* values, const Span* span, double scale, int64_t window,
                            at::Tensor* bias_hs, at::Tensor** out) {
  return rlhf::guarded([&] {
    const c10::NoGradGuard no_grad;
    *out = new at::Tensor(attention(*q_nhe, *k_nke, *v_nke, *keys, *values, *span, scale, window,
                                    bias_hs == nullptr ? at::Tensor() : *bias_hs));
  });
}

char* rlhf_device_sample(at::Tensor* logits_bv, at::Tensor* uniform_b, double temperature,
                         at::Tensor** ids_b, at::Tensor** logprobs_b) {
  return rlhf::guarded([&] {
    const c10::NoGradGuard no_grad;
    const int64_t rows = logits_bv->size(0);
    at::Tensor ids = at::empty({rows}, logits_bv->options().dtype(at::kLong));
    at::Tensor logprobs = at::empty({rows}, logits_bv->options().dtype(at::kDouble));
    device::call(&device::Kernels::sample, *logits_bv,
                 device::Sample{logits_bv->data_ptr(), rows, logits_bv->size(1), temperature,
                                uniform_b == nullptr ? nullptr : uniform_b->const_data_ptr<double>(),
                                ids.data_ptr<int64_t>(), logprobs.data_ptr<double>()});
    *ids_b = new at::Tensor(ids);
    *logprobs_b = new at::Tensor(logprobs);
  });
}

}  // extern "C"
