// librlhf_cuda.so: what needs the CUDA runtime. Loaded after libtorch_cuda.so, whose libraries
// (libc10_cuda, libcudart) are then already in the process, so it needs no search path of its own.
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>

#include "../border.h"

namespace {

void check(cudaError_t status) {
  if (status != cudaSuccess) {
    cudaGetLastError();  // a failed query must not fail the next launch
    throw std::runtime_error(std::string(cudaGetErrorName(status)) + ": " +
                             cudaGetErrorString(status));
  }
}

struct DeviceGuard {
  int previous = 0;
  explicit DeviceGuard(int index) {
    check(cudaGetDevice(&previous));
    check(cudaSetDevice(index));
  }
  ~DeviceGuard() { cudaSetDevice(previous); }
};

constexpr size_t kAggregate = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);

// One stream of a device for all recordings: libtorch keeps a workspace of cuBLAS for every stream that it has
// seen, until the process ends.
c10::cuda::CUDAStream recording_stream(int32_t index) {
  static std::mutex turn;
  static std::map<int32_t, c10::cuda::CUDAStream> streams;
  const std::lock_guard<std::mutex> guard(turn);
  auto found = streams.find(index);
  if (found == streams.end()) {
    found = streams.emplace(index, c10::cuda::getStreamFromPool(false, index)).first;
  }
  return found->second;
}

template <typename Body>
void quietly(const Body& body) noexcept {
  try {
    body();
  } catch (...) {
  }
}

// Recorded work; its memory is its own, for as long as it lives. However it ends, the stream of before is the
// current one again.
class Recording : public at::cuda::CUDAGraph {
 public:
  explicit Recording(int32_t index)
      : index_(index), before_(c10::cuda::getCurrentCUDAStream(index)) {}

  ~Recording() {
    if (!is_open_) {
      return;
    }
    const DeviceGuard guard(index_);
    if (!capture_ended_) {
      quietly([&] { capture_end(); });
    }
    if (!capture_ended_) {
      // A failed end leaves this undone, and the allocators would go on asking a graph that is gone.
      namespace allocator = c10::cuda::CUDACachingAllocator;
      quietly([&] { allocator::endAllocateToPool(index_, mempool_id_); });
      quietly([&] { allocator::releasePool(index_, mempool_id_); });
      auto* host = at::getHostAllocator(at::kCUDA);
      quietly([&] { host->end_allocate_to_pool(mempool_id_); });
      quietly([&] { host->release_pool(mempool_id_); });
      cudaGetLastError();
    }
    quietly([&] { c10::cuda::setCurrentCUDAStream(before_); });
  }

  void begin() {
    const DeviceGuard guard(index_);
    check(cudaDeviceSynchronize());
    c10::cuda::setCurrentCUDAStream(recording_stream(index_));
    is_open_ = true;
    capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
  }

  void end() {
    const DeviceGuard guard(index_);
    capture_end();
    c10::cuda::setCurrentCUDAStream(before_);
    is_open_ = false;
  }

 private:
  c10::DeviceIndex index_;
  c10::cuda::CUDAStream before_;
  bool is_open_ = false;
};

}  // namespace

namespace rlhf::device {

void* stream_of(int32_t device) {
  return c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(device)).stream();
}

void check_launch() { check(cudaGetLastError()); }

}  // namespace rlhf::device

extern "C" {

// Mirrors `RawProperties` in src/cuda.rs.
struct rlhf_device_properties {
  char name[256];
  int32_t major;
  int32_t minor;
  int32_t multiprocessors;
  int64_t total_bytes;
  int64_t free_bytes;
};

// Mirrors `Memory` in src/cuda.rs.
struct rlhf_memory {
  int64_t current_bytes;
  int64_t peak_bytes;
  int64_t reserved_bytes;
};

void rlhf_cuda_free(char* text) { std::free(text); }

char* rlhf_cuda_device_count(int32_t* count) {
  return rlhf::guarded([&] { check(cudaGetDeviceCount(count)); });
}

char* rlhf_cuda_versions(int32_t* driver, int32_t* runtime) {
  return rlhf::guarded([&] {
    check(cudaDriverGetVersion(driver));
    check(cudaRuntimeGetVersion(runtime));
  });
}

char* rlhf_cuda_properties(int32_t index, rlhf_device_properties* out) {
  return rlhf::guarded([&] {
    DeviceGuard guard(index);
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, index));
    strncpy(out->name, properties.name, sizeof(out->name) - 1);
    out->name[sizeof(out->name) - 1] = 0;
    out->major = properties.major;
    out->minor = properties.minor;
    out->multiprocessors = properties.multiProcessorCount;
    size_t free_bytes = 0, total_bytes = 0;
    check(cudaMemGetInfo(&free_bytes, &total_bytes));
    out->free_bytes = static_cast<int64_t>(free_bytes);
    out->total_bytes = static_cast<int64_t>(total_bytes);
  });
}

// The allocator's statistics; zeros before the first tensor on any device.
char* rlhf_cuda_memory(int32_t index, rlhf_memory* out) {
  return rlhf::guarded([&] {
    *out = {0, 0, 0};
    if (!c10::cuda::CUDACachingAllocator::get()->initialized()) {
      return;
    }
    const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(index);
    out->current_bytes = stats.allocated_bytes[kAggregate].current;
    out->peak_bytes = stats.allocated_bytes[kAggregate].peak;
    out->reserved_bytes = stats.reserved_bytes[kAggregate].current;
  });
}

char* rlhf_cuda_reset_peak(int32_t index) {
  return rlhf::guarded([&] {
    if (c10::cuda::CUDACachingAllocator::get()->initialized()) {
      c10::cuda::CUDACachingAllocator::resetPeakStats(index);
    }
  });
}

char* rlhf_cuda_synchronize(int32_t index) {
  return rlhf::guarded([&] {
    DeviceGuard guard(index);
    check(cudaDeviceSynchronize());
  });
}

char* rlhf_cuda_empty_cache() {
  return rlhf::guarded([&] {
    if (c10::cuda::CUDACachingAllocator::get()->initialized()) {
      c10::cuda::CUDACachingAllocator::emptyCache();
    }
  });
}

char* rlhf_cuda_graph_begin(int32_t index, void** out) {
  return rlhf::guarded([&] {
    auto recording = std::make_unique<Recording>(index);
    recording->begin();
    *out = recording.release();
  });
}

char* rlhf_cuda_graph_end(void* graph) {
  return rlhf::guarded([&] { static_cast<Recording*>(graph)->end(); });
}

char* rlhf_cuda_graph_replay(void* graph) {
  return rlhf::guarded([&] { static_cast<Recording*>(graph)->replay(); });
}

// Also of a recording that was not brought to its end.
char* rlhf_cuda_graph_free(void* graph) {
  return rlhf::guarded([&] { delete static_cast<Recording*>(graph); });
}

}  // extern "C"
