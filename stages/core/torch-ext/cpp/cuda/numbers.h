// The numbers that kernels read and write, and several of them at a time.
#pragma once

#include <cmath>
#include <cstring>

#include "portable.h"

namespace rlhf {

// bf16: the upper half of an f32, rounded to nearest, ties to even.
struct Bf16 {
  uint16_t bits;

  Bf16() = default;
  RLHF_DEVICE Bf16(float x) {
#ifdef __CUDA_ARCH__
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
#else
    uint32_t all;
    std::memcpy(&all, &x, sizeof(all));
    bits = x != x ? 0x7fff : static_cast<uint16_t>((all + 0x7fff + ((all >> 16) & 1)) >> 16);
#endif
  }
  RLHF_DEVICE operator float() const {
    const uint32_t all = static_cast<uint32_t>(bits) << 16;
#ifdef __CUDA_ARCH__
    return __uint_as_float(all);
#else
    float x;
    std::memcpy(&x, &all, sizeof(x));
    return x;
#endif
  }
};

// The type of sums.
template <typename T>
struct Wide {
  using Type = float;
};
template <>
struct Wide<double> {
  using Type = double;
};
template <typename T>
using Sum = typename Wide<T>::Type;

// N numbers that are loaded at once.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T at[N];
};

// As many as 16 bytes hold.
template <typename T>
constexpr int kPack = 16 / sizeof(T);

template <int N, typename T>
RLHF_DEVICE Pack<T, N> load(const T* from) {
  return *reinterpret_cast<const Pack<T, N>*>(from);
}

template <int N, typename T>
RLHF_DEVICE void store(T* to, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

template <typename A>
RLHF_DEVICE A sigmoid(A z) {
  return A(1) / (A(1) + exp(-z));
}

}  // namespace rlhf
