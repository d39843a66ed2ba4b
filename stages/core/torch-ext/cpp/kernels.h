// What the one-pass operators share: types, and rows of numbers a vector at a time.
#pragma once

#include <ATen/core/Tensor.h>

#include "vectors.h"

namespace rlhf {

// Calls `body` with a zero of the tensors' type.
template <typename Body>
void with_type(const at::Tensor& tensor, const char* what, const Body& body) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return body(float{});
    case at::kDouble:
      return body(double{});
    case at::kBFloat16:
      return body(c10::BFloat16{});
    default:
      TORCH_CHECK(false, what, " in ", tensor.scalar_type());
  }
}

// The type of sums.
inline at::TensorOptions wide(const at::Tensor& tensor) {
  return tensor.options().dtype(tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
}

// `body(i, count)` for each vector of a row of `d` numbers; the last may be shorter.
template <typename Body>
RLHF_INLINE void each_vector(int64_t d, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) {
    body(i, kLanes);
  }
  if (i < d) {
    body(i, d - i);
  }
}

template <typename T>
RLHF_INLINE typename Wide<T>::Vector take(const T* from, int64_t count) {
  return count == kLanes ? load(from) : load_some(from, count);
}

template <typename T>
RLHF_INLINE void put(T* to, typename Wide<T>::Vector x, int64_t count) {
  if (count == kLanes) {
    store(to, x);
  } else {
    store_some(to, x, count);
  }
}

}  // namespace rlhf
