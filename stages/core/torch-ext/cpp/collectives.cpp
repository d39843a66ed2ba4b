// Process groups: libtorch's own c10d, with Gloo for the CPU's tensors and NCCL (from librlhf_cuda.so) for a GPU's.
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <chrono>
#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

#include "border.h"

namespace {

using Milliseconds = std::chrono::milliseconds;

struct Group {
  c10::intrusive_ptr<c10d::Store> store;
  c10::intrusive_ptr<c10d::Backend> backend;
};

using Work = c10::intrusive_ptr<c10d::Work>;

// The same choice as torch.distributed's: the named interface, the loopback where the first rank is there, or what this
// machine's own name stands for.
std::shared_ptr<gloo::transport::Device> device_for(const std::string& host) {
  const char* interface = std::getenv("GLOO_SOCKET_IFNAME");
  if (interface != nullptr && *interface != 0) {
    return c10d::ProcessGroupGloo::createDeviceForInterface(interface);
  }
  if (host == "localhost" || host.rfind("127.", 0) == 0) {
    return c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1");
  }
  return c10d::ProcessGroupGloo::createDefaultDevice();
}

// c10d's record of recent operations (its flight recorder) is one for the process, and two threads with a group each break it.
// For Gloo nobody reads it, so there is none unless the user asks.
void leave_out_record() {
  static std::once_flag once;
  std::call_once(once, [] { setenv("TORCH_FR_BUFFER_SIZE", "0", /*overwrite=*/0); });
}

c10::intrusive_ptr<c10d::Backend> gloo_backend(const c10::intrusive_ptr<c10d::Store>& store,
                                               const std::string& host, int rank, int size,
                                               Milliseconds timeout) {
  leave_out_record();
  auto options = c10d::ProcessGroupGloo::Options::create(timeout);
  options->devices.push_back(device_for(host));
  options->threads = 2;
  return c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank, size, options);
}

void hand_out(Work work, Work** out) { *out = new Work(std::move(work)); }

std::vector<uint8_t> bytes(const char* text) {
  const std::string string(text);
  return {string.begin(), string.end()};
}

}  // namespace

extern "C" {

// Makes NCCL's process group over a store; hands out one reference. In librlhf_cuda.so.
using NcclFactory = char* (*)(c10d::Store* store, int rank, int size, int64_t timeout_ms,
                              c10d::Backend** backend);

// The keys by which ranks find each other, on the first rank's machine.
char* rlhf_store_open(const char* host, uint16_t port, bool serves, int64_t timeout_ms,
                      c10::intrusive_ptr<c10d::Store>** out) {
  return rlhf::guarded([&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = serves;
    options.waitWorkers = false;
    options.timeout = Milliseconds(timeout_ms);
    auto store = c10::make_intrusive<c10d::TCPStore>(host, options);
    *out = new c10::intrusive_ptr<c10d::Store>(std::move(store));
  });
}

void rlhf_store_close(c10::intrusive_ptr<c10d::Store>* store) { delete store; }

char* rlhf_store_set(c10::intrusive_ptr<c10d::Store>* store, const char* key, const char* value) {
  return rlhf::guarded([&] { (*store)->set(key, bytes(value)); });
}

// Waits for the key; `value` is null where it does not come in time.
char* rlhf_store_get(c10::intrusive_ptr<c10d::Store>* store, const char* key, int64_t timeout_ms,
                     char** value) {
  return rlhf::guarded([&] {
    *value = nullptr;
    if (timeout_ms == 0 && !(*store)->check({key})) {
      return;
    }
    if (timeout_ms > 0) {
      (*store)->wait({key}, Milliseconds(timeout_ms));
    }
    const std::vector<uint8_t> found = (*store)->get(key);
    *value = strdup(std::string(found.begin(), found.end()).c_str());
  });
}

// `nccl` is null for Gloo.
char* rlhf_group_open(c10::intrusive_ptr<c10d::Store>* store, const char* name, const char* host,
                      int rank, int size, int64_t timeout_ms, NcclFactory nccl, Group** out) {
  return rlhf::guarded([&] {
    auto keys = c10::make_intrusive<c10d::PrefixStore>(name, *store);
    c10::intrusive_ptr<c10d::Backend> backend;
    if (nccl == nullptr) {
      backend = gloo_backend(keys, host, rank, size, Milliseconds(timeout_ms));
    } else {
      c10d::Backend* made = nullptr;
      char* error = nccl(keys.get(), rank, size, timeout_ms, &made);
      if (error != nullptr) {
        const std::string message(error);
        free(error);
        throw std::runtime_error(message);
      }
      backend = c10::intrusive_ptr<c10d::Backend>::reclaim(made);
    }
    *out = new Group{keys, backend};
  });
}

void rlhf_group_close(Group* group) { delete group; }

// `reduction`: 0 the sum, 1 the largest, 2 the smallest.
char* rlhf_all_reduce(Group* group, const at::Tensor* tensor, int reduction, Work** out) {
  return rlhf::guarded([&] {
    constexpr c10d::ReduceOp::RedOpType OPS[] = {c10d::ReduceOp::SUM, c10d::ReduceOp::MAX,
                                                 c10d::ReduceOp::MIN};
    c10d::AllreduceOptions options;
    options.reduceOp = OPS[reduction];
    std::vector<at::Tensor> tensors = {*tensor};
    hand_out(group->backend->allreduce(tensors, options), out);
  });
}

char* rlhf_all_gather(Group* group, const at::Tensor* whole, const at::Tensor* part, Work** out) {
  return rlhf::guarded([&] {
    at::Tensor output = *whole, input = *part;
    hand_out(group->backend->_allgather_base(output, input), out);
  });
}

char* rlhf_reduce_scatter(Group* group, const at::Tensor* part, const at::Tensor* whole,
                          Work** out) {
  return rlhf::guarded([&] {
    at::Tensor output = *part, input = *whole;
    hand_out(group->backend->_reduce_scatter_base(output, input), out);
  });
}

char* rlhf_broadcast(Group* group, const at::Tensor* tensor, int root, Work** out) {
  return rlhf::guarded([&] {
    c10d::BroadcastOptions options;
    options.rootRank = root;
    std::vector<at::Tensor> tensors = {*tensor};
    hand_out(group->backend->broadcast(tensors, options), out);
  });
}

char* rlhf_work_wait(Work* work) {
  return rlhf::guarded([&] { (*work)->wait(); });
}

void rlhf_work_free(Work* work) { delete work; }

}  // extern "C"
