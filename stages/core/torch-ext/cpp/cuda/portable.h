// One source of kernels for two compilers: nvcc, and the host's, which runs them on the CPU one thread
// after another (emulate.h), so that their arithmetic is tested where no GPU is.
#pragma once

#include <cstdint>
#include <limits>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define RLHF_KERNEL __global__ void
#define RLHF_DEVICE __device__ __forceinline__
#define RLHF_SHARED __shared__
#define RLHF_LAUNCH(kernel, grid, threads, stream, ...) \
  kernel<<<grid, threads, 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#else
#include "emulate.h"
#define RLHF_KERNEL void
#define RLHF_DEVICE inline
// Blocks run one after another, so one copy serves all.
#define RLHF_SHARED static
#define RLHF_LAUNCH(kernel, grid, threads, stream, ...) \
  rlhf::emulate::launch(grid, threads, [&] { kernel(__VA_ARGS__); })
#endif

namespace rlhf {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;
// Below all numbers.
template <typename A>
constexpr A kNone = -std::numeric_limits<A>::infinity();
template <typename A>
constexpr A kNotANumber = std::numeric_limits<A>::quiet_NaN();

RLHF_DEVICE int lane() { return threadIdx.x % kWarp; }
RLHF_DEVICE int warp() { return threadIdx.x / kWarp; }

// Every lane gets the sum of all, in one order.
template <typename A>
RLHF_DEVICE A warp_sum(A x) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    x += __shfl_xor_sync(kAll, x, step);
  }
  return x;
}

template <typename A>
RLHF_DEVICE A warp_max(A x, int lanes = kWarp) {
  for (int step = lanes / 2; step > 0; step /= 2) {
    const A other = __shfl_xor_sync(kAll, x, step);
    x = other > x ? other : x;
  }
  return x;
}

// The same over a block of whole warps; every thread calls it.
template <typename A, typename Reduce>
RLHF_DEVICE A block_reduce(A x, A none, const Reduce& reduce) {
  RLHF_SHARED A of_warps[kWarp];
  x = reduce(x);
  __syncthreads();  // an earlier reduction's numbers have been read
  if (lane() == 0) {
    of_warps[warp()] = x;
  }
  __syncthreads();
  const int warps = blockDim.x / kWarp;
  return reduce(lane() < warps ? of_warps[lane()] : none);
}

template <typename A>
RLHF_DEVICE A block_sum(A x) {
  return block_reduce(x, A(0), [](A y) { return warp_sum(y); });
}

template <typename A>
RLHF_DEVICE A block_max(A x) {
  return block_reduce(x, kNone<A>, [](A y) { return warp_max(y); });
}

}  // namespace rlhf
