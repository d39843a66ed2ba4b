// Vectors of 16 numbers that the compiler lowers to what the processor has, and loops over tasks.
//
// Kernels are compiled for several processors by `RLHF_CLONES`; what they call is inlined into each
// clone. Sums have one order, whatever the processor.
#pragma once

#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>

#if defined(__x86_64__)
#define RLHF_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define RLHF_CLONES
#endif
#define RLHF_INLINE inline __attribute__((always_inline))

namespace rlhf {

constexpr int64_t kLanes = 16;

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef double Doubles __attribute__((vector_size(8 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));

// The type in which numbers of a stored type are computed with, and a vector of it.
template <typename T>
struct Wide {
  using Scalar = float;
  using Vector = Floats;
};
template <>
struct Wide<double> {
  using Scalar = double;
  using Vector = Doubles;
};

RLHF_INLINE Floats load(const float* from) {
  Floats x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

RLHF_INLINE Doubles load(const double* from) {
  Doubles x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

RLHF_INLINE Floats load(const c10::BFloat16* from) {
  Halves bits;
  std::memcpy(&bits, from, sizeof bits);
  return (Floats)(__builtin_convertvector(bits, Ints) << 16);
}

RLHF_INLINE void store(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }
RLHF_INLINE void store(double* to, Doubles x) { std::memcpy(to, &x, sizeof x); }

// Rounded to the nearest, ties to even; not-a-number stays one.
RLHF_INLINE void store(c10::BFloat16* to, Floats x) {
  const Ints bits = (Ints)x;
  const Ints rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const Ints quiet = (bits >> 16) | 0x40;
  const Ints is_nan = x != x;
  const Ints high = (is_nan & quiet) | (~is_nan & (rounded >> 16));
  const Halves out = __builtin_convertvector(high, Halves);
  std::memcpy(to, &out, sizeof out);
}

// The first `n` numbers of a vector, 0 behind them.
template <typename T>
RLHF_INLINE typename Wide<T>::Vector load_some(const T* from, int64_t n) {
  T whole[kLanes] = {};
  std::memcpy(whole, from, n * sizeof(T));
  return load(whole);
}

template <typename T>
RLHF_INLINE void store_some(T* to, typename Wide<T>::Vector x, int64_t n) {
  T whole[kLanes];
  store(whole, x);
  std::memcpy(to, whole, n * sizeof(T));
}

// e^x for x <= 0, within two units of the last place; 0 below -87, where single precision ends; not-a-number
// stays one.
RLHF_INLINE Floats exp_negative(Floats x) {
  const Ints is_small = x < -87.0f;
  const Ints is_nan = x != x;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Floats shifted = x * 1.44269504088896341f + magic;
  const Floats n = shifted - magic;
  const Floats r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Ints exponent = ((Ints)shifted - 0x4b400000) << 23;
  return (Floats)((((Ints)p + exponent) & ~is_small) | is_nan);
}

RLHF_INLINE Doubles exp_negative(Doubles x) {
  for (int64_t i = 0; i < kLanes; ++i) {
    x[i] = std::exp(x[i]);
  }
  return x;
}

template <typename Vector>
RLHF_INLINE auto largest(Vector x) {
  auto most = x[0];
  for (int64_t i = 1; i < kLanes; ++i) {
    most = x[i] > most ? x[i] : most;
  }
  return most;
}

template <typename Vector>
RLHF_INLINE auto sum(Vector x) {
  auto total = x[0];
  for (int64_t i = 1; i < kLanes; ++i) {
    total += x[i];
  }
  return total;
}

// Runs `body(task)` for all tasks, on libtorch's threads; tasks may differ in size. What one of them throws
// is thrown when all have ended.
template <typename Body>
void for_each_task(int64_t tasks, const Body& body) {
  std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic, 1) if (tasks > 1)
  for (int64_t task = 0; task < tasks; ++task) {
    try {
      body(task);
    } catch (...) {
#pragma omp critical(rlhf_failure)
      failure = std::current_exception();
    }
  }
  if (failure) {
    std::rethrow_exception(failure);
  }
}

// Runs `body(begin, end)` over stretches of `rows`, on libtorch's threads where there is enough to do.
template <typename Body>
void for_each_stretch(int64_t rows, int64_t numbers_per_row, const Body& body) {
  constexpr int64_t kNumbers = 8192;
  const int64_t length = std::max<int64_t>(1, kNumbers / std::max<int64_t>(1, numbers_per_row));
  for_each_task((rows + length - 1) / length, [&](int64_t task) {
    body(task * length, std::min(rows, (task + 1) * length));
  });
}

}  // namespace rlhf
