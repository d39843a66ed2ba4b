// Process groups of GPUs.
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "../border.h"

extern "C" char* rlhf_cuda_nccl(c10d::Store* store, int rank, int size, int64_t timeout_ms,
                                c10d::Backend** backend) {
  return rlhf::guarded([&] {
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = std::chrono::milliseconds(timeout_ms);
    auto keys = c10::intrusive_ptr<c10d::Store>::unsafe_reclaim_from_nonowning(store);
    auto group = c10::make_intrusive<c10d::ProcessGroupNCCL>(keys, rank, size, options);
    *backend = group.release();
  });
}
