// The rotation of positions and the activations of MLPs.
#pragma once

#include "../device.h"
#include "norm.h"
#include "numbers.h"

namespace rlhf::device {

// A block a position: the numbers of all heads there.
template <typename T>
RLHF_KERNEL rotate(Rotation it) {
  using A = Sum<T>;
  const int64_t place = blockIdx.x, row = place / it.columns, column = place % it.columns;
  const int64_t half = it.rotated / 2, table = row * it.table_stride + column * it.rotated;
  const T* cos = static_cast<const T*>(it.cos) + table;
  const T* sin = static_cast<const T*>(it.sin) + table;
  const T* x = static_cast<const T*>(it.x) + row * it.row_stride + column * it.column_stride;
  T* y = static_cast<T*>(it.y) + place * it.heads * it.width;
  for (int64_t at = threadIdx.x; at < it.heads * it.width; at += blockDim.x) {
    const int64_t head = at / it.width, i = at % it.width;
    const T* of_head = x + head * it.head_stride;
    if (i >= it.rotated) {
      y[at] = of_head[i];
      continue;
    }
    const bool first = it.interleaved ? i % 2 == 0 : i < half;
    const int64_t step = it.interleaved ? 1 : half;
    const int64_t pair = first ? i + step : i - step;
    // Both of a pair have the same angle.
    const int64_t angle = it.interleaved ? i - i % 2 : i % half;
    const A s = (first == it.back) ? A(sin[angle]) : -A(sin[angle]);
    y[at] = T(A(of_head[i]) * A(cos[angle]) + A(of_head[pair]) * s);
  }
}

// N numbers a thread; d is a multiple of N.
template <typename T, int N>
RLHF_KERNEL gate(Gate it) {
  using A = Sum<T>;
  const int64_t packs = it.d / N, step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < it.rows * packs; at += step) {
    const int64_t row = at / packs, i = at % packs * N;
    const auto z = load<N>(static_cast<const T*>(it.gate) + row * it.gate_stride + i);
    const auto up = load<N>(static_cast<const T*>(it.up) + row * it.up_stride + i);
    Pack<T, N> y;
    for (int j = 0; j < N; ++j) {
      y.at[j] = T(A(z.at[j]) * sigmoid(A(z.at[j])) * A(up.at[j]));
    }
    store(static_cast<T*>(it.y) + row * it.d + i, y);
  }
}

template <typename T, int N>
RLHF_KERNEL gate_back(GateBack all) {
  using A = Sum<T>;
  const Gate& it = all.forward;
  const int64_t packs = it.d / N, step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < it.rows * packs; at += step) {
    const int64_t row = at / packs, i = at % packs * N;
    const auto gates = load<N>(static_cast<const T*>(it.gate) + row * it.gate_stride + i);
    const auto ups = load<N>(static_cast<const T*>(it.up) + row * it.up_stride + i);
    const auto grads = load<N>(static_cast<const T*>(all.grad) + row * it.d + i);
    Pack<T, N> of_gate, of_up;
    for (int j = 0; j < N; ++j) {
      const A z = A(gates.at[j]), up = A(ups.at[j]), g = A(grads.at[j]);
      const A s = sigmoid(z), rest = sigmoid(-z);
      of_up.at[j] = T(g * z * s);
      of_gate.at[j] = T(g * up * s * (1 + z * rest));
    }
    store(static_cast<T*>(all.grad_gate) + row * it.d + i, of_gate);
    store(static_cast<T*>(all.grad_up) + row * it.d + i, of_up);
  }
}

// GELU by tanh is x sigmoid(2 u) with u = sqrt(2/pi) (x + 0.044715 x^3), since 1 + tanh(u) = 2 sigmoid(2 u).

constexpr double kTwice = 1.5957691216057308;  // 2 sqrt(2/pi)
constexpr double kCubic = 0.044715;

template <typename T, int N>
RLHF_KERNEL gelu(Gelu it) {
  using A = Sum<T>;
  const int64_t packs = it.d / N, step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < it.rows * packs; at += step) {
    const int64_t i = at % packs * N;
    const auto x = load<N>(static_cast<const T*>(it.x) + at * N);
    Pack<T, N> bias, y;
    if (it.bias != nullptr) {
      bias = load<N>(static_cast<const T*>(it.bias) + i);
    }
    for (int j = 0; j < N; ++j) {
      const A z = it.bias == nullptr ? A(x.at[j]) : A(x.at[j]) + A(bias.at[j]);
      y.at[j] = T(z * sigmoid(z * (z * z * A(kTwice * kCubic) + A(kTwice))));
    }
    store(static_cast<T*>(it.y) + at * N, y);
  }
}

// A block takes 32 columns of a part of the rows, so that the bias' gradient needs no second reading.
template <typename T>
RLHF_KERNEL gelu_back(GeluBack all) {
  using A = Sum<T>;
  const Gelu& it = all.forward;
  const int64_t d = it.d, column = int64_t(blockIdx.x) * kWarp + threadIdx.x, part = blockIdx.y;
  const int64_t end = it.rows * (part + 1) / all.parts;
  A of_bias = 0;
  if (column < d) {
    const A bias = it.bias == nullptr ? A(0) : A(static_cast<const T*>(it.bias)[column]);
    for (int64_t row = it.rows * part / all.parts + threadIdx.y; row < end; row += kRowsAtOnce) {
      const int64_t at = row * d + column;
      const A z = A(static_cast<const T*>(it.x)[at]) + bias;
      const A u = z * (z * z * A(kTwice * kCubic) + A(kTwice));
      const A slope = z * z * A(3 * kTwice * kCubic) + A(kTwice);
      const A s = sigmoid(u), rest = sigmoid(-u);
      const A g = A(static_cast<const T*>(all.grad)[at]) * s * (1 + z * rest * slope);
      static_cast<T*>(all.grad_x)[at] = T(g);
      of_bias += g;
    }
  }
  of_bias = column_sum(of_bias);
  if (all.grad_bias != nullptr && threadIdx.y == 0 && column < d) {
    static_cast<A*>(all.grad_bias)[part * d + column] = of_bias;
  }
}

}  // namespace rlhf::device
