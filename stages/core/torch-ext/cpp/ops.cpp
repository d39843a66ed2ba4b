// Operators that tch does not bind.
#include <ATen/core/Tensor.h>
#include <ATen/ops/_fused_adamw.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <vector>

#include "border.h"

namespace {

std::vector<at::Tensor> list(at::Tensor* const* tensors, size_t n) {
  std::vector<at::Tensor> out;
  out.reserve(n);
  for (size_t i = 0; i < n; ++i) {
    out.push_back(*tensors[i]);
  }
  return out;
}

}  // namespace

extern "C" {

char* rlhf_fused_adamw(size_t n, at::Tensor* const* params, at::Tensor* const* grads,
                       at::Tensor* const* exp_avgs, at::Tensor* const* exp_avg_sqs,
                       at::Tensor* const* steps, double lr, double beta1, double beta2,
                       double weight_decay, double eps) {
  return rlhf::guarded([&] {
    c10::NoGradGuard no_grad;
    at::_fused_adamw_(list(params, n), list(grads, n), list(exp_avgs, n), list(exp_avg_sqs, n),
                      {}, list(steps, n), lr, beta1, beta2, weight_decay, eps,
                      /*amsgrad=*/false, /*maximize=*/false);
  });
}

char* rlhf_backward(size_t n, at::Tensor* const* outputs, at::Tensor* const* grads) {
  return rlhf::guarded([&] { torch::autograd::backward(list(outputs, n), list(grads, n)); });
}

char* rlhf_free_grad(at::Tensor* tensor) {
  return rlhf::guarded([&] { tensor->mutable_grad().reset(); });
}

char* rlhf_set_storage_bytes(at::Tensor* tensor, size_t bytes) {
  return rlhf::guarded([&] {
    c10::StorageImpl* storage = tensor->storage().unsafeGetStorageImpl();
    TORCH_CHECK(storage->allocator() && storage->resizable(), "memory that has no allocator");
    c10::DeviceGuard guard(tensor->device());
    storage->set_data_ptr_noswap(storage->allocator()->allocate(bytes));
    storage->set_nbytes(bytes);
  });
}

}  // extern "C"
