// Whether a tensor's operators run in the kernels of device.h, and how they are called.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/Exception.h>

#include "device.h"

namespace rlhf::device {

// The kernels for a tensor, or null where there are none for its device.
const Kernels* kernels_for(const at::Tensor& tensor);

// The address of a tensor's numbers, or null of none.
inline void* at_of(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.data_ptr() : nullptr;
}

// Calls one of the kernels on the tensor's device, for numbers of its type.
template <typename Arguments>
void call(void (*Kernels::*kernel)(On, const Arguments&), const at::Tensor& tensor,
          const Arguments& arguments) {
  const auto type = tensor.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kDouble || type == at::kBFloat16,
              "a kernel for numbers in ", type, "; there are those for Float, Double and BFloat16");
  const auto number = type == at::kFloat    ? Number::kF32
                      : type == at::kDouble ? Number::kF64
                                            : Number::kBf16;
  if (tensor.numel() == 0) {
    return;
  }
  const c10::DeviceGuard guard(tensor.device());
  (kernels_for(tensor)->*kernel)(On{tensor.get_device(), number}, arguments);
}

// Parts that the rows of a sum over columns are taken in: a function of their number alone, so that the
// order of a sum is one.
inline int64_t parts_of(int64_t rows) {
  return rows < 64 ? 1 : rows / 64 < 64 ? rows / 64 : 64;
}

}  // namespace rlhf::device
