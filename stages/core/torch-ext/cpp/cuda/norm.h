// LayerNorm and RMSNorm behind a sum, and their way back.
#pragma once

#include "../device.h"
#include "numbers.h"

namespace rlhf::device {

// A block a row. What a thread wrote of the sum it alone reads again.
template <typename T>
RLHF_KERNEL norm(Norm it) {
  using A = Sum<T>;
  const int64_t row = blockIdx.x, d = it.d;
  const T* x = static_cast<const T*>(it.x) + row * d;
  const T* added = it.added == nullptr ? nullptr : static_cast<const T*>(it.added) + row * d;
  T* total = it.total == nullptr ? nullptr : static_cast<T*>(it.total) + row * d;
  T* y = static_cast<T*>(it.y) + row * d;
  const T* weight = static_cast<const T*>(it.weight);
  const T* bias = static_cast<const T*>(it.bias);
  if (added != nullptr) {
    for (int64_t i = threadIdx.x; i < d; i += blockDim.x) {
      total[i] = T(A(x[i]) + A(added[i]));
    }
    x = total;
  }
  A mean = 0;
  if (it.means != nullptr) {
    A sum = 0;
    for (int64_t i = threadIdx.x; i < d; i += blockDim.x) {
      sum += A(x[i]);
    }
    mean = block_sum(sum) / A(d);
  }
  A squares = 0;
  for (int64_t i = threadIdx.x; i < d; i += blockDim.x) {
    const A z = A(x[i]) - mean;
    squares += z * z;
  }
  const A scale = A(1) / sqrt(block_sum(squares) / A(d) + A(it.eps));
  for (int64_t i = threadIdx.x; i < d; i += blockDim.x) {
    const A z = (A(x[i]) - mean) * scale * A(weight[i]);
    y[i] = T(bias == nullptr ? z : z + A(bias[i]));
  }
  if (threadIdx.x == 0) {
    static_cast<A*>(it.scales)[row] = scale;
    if (it.means != nullptr) {
      static_cast<A*>(it.means)[row] = mean;
    }
  }
}

// With z = (x - mean) r and h = g w:  dx = r (h - mean(h) - z mean(h z)), without mean(h) where the mean was
// not subtracted.
template <typename T>
RLHF_KERNEL norm_back(NormBack it) {
  using A = Sum<T>;
  const int64_t row = blockIdx.x, d = it.d;
  const T* x = static_cast<const T*>(it.x) + row * d;
  const T* grad = static_cast<const T*>(it.grad) + row * d;
  const T* beside =
      it.grad_total == nullptr ? nullptr : static_cast<const T*>(it.grad_total) + row * d;
  const T* weight = static_cast<const T*>(it.weight);
  T* grad_x = static_cast<T*>(it.grad_x) + row * d;
  const A mean = it.means == nullptr ? A(0) : static_cast<const A*>(it.means)[row];
  const A scale = static_cast<const A*>(it.scales)[row];
  A plain = 0, turned = 0;
  for (int64_t i = threadIdx.x; i < d; i += blockDim.x) {
    const A h = A(grad[i]) * A(weight[i]);
    plain += h;
    turned += h * (A(x[i]) - mean) * scale;
  }
  const A shift = it.means == nullptr ? A(0) : block_sum(plain) / A(d);
  const A slope = block_sum(turned) / A(d);
  for (int64_t i = threadIdx.x; i < d; i += blockDim.x) {
    const A h = A(grad[i]) * A(weight[i]);
    const A z = (A(x[i]) - mean) * scale;
    const A g = scale * (h - shift - z * slope);
    grad_x[i] = T(beside == nullptr ? g : g + A(beside[i]));
  }
}

// Threads of a block that sums columns: 32 columns, and so many rows at a time.
constexpr int kRowsAtOnce = 8;

// Sums of what the block's threads hold, one for each of its 32 columns: those of the first row get them.
template <typename A>
RLHF_DEVICE A column_sum(A x) {
  RLHF_SHARED A all[kRowsAtOnce][kWarp];
  __syncthreads();
  all[threadIdx.y][threadIdx.x] = x;
  __syncthreads();
  A sum = 0;
  if (threadIdx.y == 0) {
    for (int i = 0; i < kRowsAtOnce; ++i) {
      sum += all[i][threadIdx.x];
    }
  }
  return sum;
}

// dw = sum over rows of g z, db = sum over rows of g: a part of the rows each.
template <typename T>
RLHF_KERNEL norm_weight_back(NormBack it) {
  using A = Sum<T>;
  const int64_t d = it.d, column = int64_t(blockIdx.x) * kWarp + threadIdx.x, part = blockIdx.y;
  const int64_t end = it.rows * (part + 1) / it.parts;
  A of_weight = 0, of_bias = 0;
  if (column < d) {
    for (int64_t row = it.rows * part / it.parts + threadIdx.y; row < end; row += kRowsAtOnce) {
      const A mean = it.means == nullptr ? A(0) : static_cast<const A*>(it.means)[row];
      const A scale = static_cast<const A*>(it.scales)[row];
      const A g = A(static_cast<const T*>(it.grad)[row * d + column]);
      of_weight += g * (A(static_cast<const T*>(it.x)[row * d + column]) - mean) * scale;
      of_bias += g;
    }
  }
  of_weight = column_sum(of_weight);
  of_bias = column_sum(of_bias);
  if (threadIdx.y == 0 && column < d) {
    if (it.grad_weight != nullptr) {
      static_cast<A*>(it.grad_weight)[part * d + column] = of_weight;
    }
    if (it.grad_bias != nullptr) {
      static_cast<A*>(it.grad_bias)[part * d + column] = of_bias;
    }
  }
}

}  // namespace rlhf::device
