// The operators of device.h: which kernel, in which grid.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "../device.h"
#include "activations.h"
#include "attention.h"
#include "logprobs.h"
#include "norm.h"

// Of the library that this is part of: librlhf_cuda.so, or the emulated one.
namespace rlhf::device {
void* stream_of(int32_t device);
void check_launch();
}  // namespace rlhf::device

namespace {

using rlhf::Bf16;
using rlhf::kPack;
using rlhf::kWarp;
namespace device = rlhf::device;
using device::On;

// Calls `body` with a zero of the numbers' type and the stream, and asks whether the launches went well.
template <typename Body>
void with_type(On on, const Body& body) {
  void* stream = device::stream_of(on.device);
  switch (on.number) {
    case device::Number::kF32:
      body(float{}, stream);
      break;
    case device::Number::kF64:
      body(double{}, stream);
      break;
    case device::Number::kBf16:
      body(Bf16{}, stream);
      break;
  }
  device::check_launch();
}

// Whole warps, one for every 4 numbers of a row.
unsigned threads_for(int64_t d, int64_t most) {
  const int64_t warps = (d + 4 * kWarp - 1) / (4 * kWarp);
  return static_cast<unsigned>(std::clamp<int64_t>(warps * kWarp, kWarp, most));
}

unsigned blocks_for(int64_t items, int64_t threads) {
  return static_cast<unsigned>(std::clamp<int64_t>((items + threads - 1) / threads, 1, 8192));
}

template <typename T>
bool aligned(int64_t d, std::initializer_list<const void*> pointers,
             std::initializer_list<int64_t> strides = {}) {
  bool fits = d % kPack<T> == 0;
  for (const void* pointer : pointers) {
    fits = fits && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
  }
  for (int64_t stride : strides) {
    fits = fits && stride % kPack<T> == 0;
  }
  return fits;
}

void norm(On on, const device::Norm& it) {
  with_type(on, [&](auto zero, void* stream) {
    using T = decltype(zero);
    RLHF_LAUNCH(device::norm<T>, it.rows, threads_for(it.d, 512), stream, it);
  });
}

dim3 column_grid(int64_t d, int64_t parts) { return dim3((d + kWarp - 1) / kWarp, parts); }
dim3 column_threads() { return dim3(kWarp, device::kRowsAtOnce); }

void norm_back(On on, const device::NormBack& it) {
  with_type(on, [&](auto zero, void* stream) {
    using T = decltype(zero);
    RLHF_LAUNCH(device::norm_back<T>, it.rows, threads_for(it.d, 512), stream, it);
    if (it.grad_weight != nullptr || it.grad_bias != nullptr) {
      RLHF_LAUNCH(device::norm_weight_back<T>, column_grid(it.d, it.parts), column_threads(), stream, it);
    }
  });
}

void rotate(On on, const device::Rotation& it) {
  with_type(on, [&](auto zero, void* stream) {
    using T = decltype(zero);
    const unsigned threads = threads_for(it.heads * it.width, 512);
    RLHF_LAUNCH(device::rotate<T>, it.rows * it.columns, threads, stream, it);
  });
}

constexpr int64_t kThreads = 256;

// A kernel of numbers by themselves: several a thread where rows allow it, else one.
template <typename T, typename Kernel, typename Arguments>
void launch_numbers(bool aligned, Kernel packed, Kernel single, int64_t numbers, void* stream,
                    const Arguments& it) {
  const int64_t threads = aligned ? numbers / kPack<T> : numbers;
  Kernel kernel = aligned ? packed : single;
  RLHF_LAUNCH(kernel, blocks_for(threads, kThreads), kThreads, stream, it);
}

void gate(On on, const device::Gate& it) {
  with_type(on, [&](auto zero, void* stream) {
    using T = decltype(zero);
    const bool fits = aligned<T>(it.d, {it.gate, it.up, it.y}, {it.gate_stride, it.up_stride});
    launch_numbers<T>(fits, device::gate<T, kPack<T>>, device::gate<T, 1>, it.rows * it.d, stream, it);
  });
}

void gate_back(On on, const device::GateBack& all) {
  const device::Gate& it = all.forward;
  with_type(on, [&](auto zero, void* stream) {
    using T = decltype(zero);
    const bool fits = aligned<T>(it.d, {it.gate, it.up, all.grad, all.grad_gate, all.grad_up},
                                 {it.gate_stride, it.up_stride});
    launch_numbers<T>(fits, device::gate_back<T, kPack<T>>, device::gate_back<T, 1>, it.rows * it.d,
                      stream, all);
  });
}

void gelu(On on, const device::Gelu& it) {
  with_type(on, [&](auto zero, void* stream) {
    using T = decltype(zero);
    const bool fits = aligned<T>(it.d, {it.x, it.bias, it.y});
    launch_numbers<T>(fits, device::gelu<T, kPack<T>>, device::gelu<T, 1>, it.rows * it.d, stream, it);
  });
}

void gelu_back(On on, const device::GeluBack& it) {
  with_type(on, [&](auto zero, void* stream) {
    using T = decltype(zero);
    const dim3 grid = column_grid(it.forward.d, it.parts);
    RLHF_LAUNCH(device::gelu_back<T>, grid, column_threads(), stream, it);
  });
}

void logprobs(On on, const device::Logprobs& it) {
  with_type(on, [&](auto zero, void* stream) {
    using T = decltype(zero);
    RLHF_LAUNCH(device::logprobs<T>, it.rows, threads_for(it.vocabulary, 1024), stream, it);
  });
}

void logprobs_back(On on, const device::LogprobsBack& it) {
  with_type(on, [&](auto zero, void* stream) {
    using T = decltype(zero);
    RLHF_LAUNCH(device::logprobs_back<T>, it.rows, threads_for(it.vocabulary, 1024), stream, it);
  });
}

void attention(On on, const device::Attention& it) {
  with_type(on, [&](auto zero, void* stream) {
    using T = decltype(zero);
    const dim3 grid(it.tokens, it.key_heads, it.splits);
    const auto launch = [&](auto kernel, int64_t x) {
      RLHF_LAUNCH(device::append<T>, it.tokens, threads_for(it.key_heads * it.width, 256), stream, it, x);
      // No splits: the keys and values are all that is wanted.
      if (it.splits > 0) {
        RLHF_LAUNCH(kernel, grid, device::kWarps * kWarp, stream, it);
      }
    };
    if (aligned<T>(it.width, {it.keys, it.values})) {
      launch(device::attend<T, kPack<T>>, kPack<T>);
    } else {
      launch(device::attend<T, 1>, 1);
    }
    if (it.partial != nullptr) {
      const unsigned threads = threads_for(it.width, 128);
      RLHF_LAUNCH(device::join_splits<T>, it.tokens * it.heads, threads, stream, it);
    }
  });
}

void sample(On on, const device::Sample& it) {
  with_type(on, [&](auto zero, void* stream) {
    using T = decltype(zero);
    RLHF_LAUNCH(device::sample<T>, it.rows, threads_for(it.vocabulary, 1024), stream, it);
  });
}

constexpr device::Kernels kKernels{
    device::kTerms, norm,     norm_back,     rotate,    gate,  gate_back, gelu,
    gelu_back,      logprobs, logprobs_back, attention, sample};

}  // namespace

extern "C" const device::Kernels* rlhf_device_kernels() { return &kKernels; }
