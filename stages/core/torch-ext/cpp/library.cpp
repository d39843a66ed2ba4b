// Questions to libtorch itself, and its one switch.
#include <ATen/Context.h>
#include <ATen/Version.h>
#include <dlfcn.h>

#include <string>

#include "border.h"

extern "C" {

void rlhf_free(char* text) { std::free(text); }

// The build configuration of the libtorch that is loaded (not the one compiled against).
char* rlhf_show_config(char** text) {
  return rlhf::guarded([&] { *text = strdup(at::show_config().c_str()); });
}

// The path of the file that libtorch's CPU functions were loaded from.
char* rlhf_libtorch_path(char** path) {
  return rlhf::guarded([&] {
    Dl_info info;
    if (dladdr(reinterpret_cast<void*>(&at::show_config), &info) == 0 || info.dli_fname == nullptr) {
      throw std::runtime_error("the loader does not know where libtorch_cpu.so came from");
    }
    *path = strdup(info.dli_fname);
  });
}

// What `torch.use_deterministic_algorithms(True)` and its two companions for cuDNN set.
char* rlhf_use_deterministic() {
  return rlhf::guarded([&] {
    auto& context = at::globalContext();
    context.setDeterministicAlgorithms(true, /*warn_only=*/false);
    context.setDeterministicCuDNN(true);
    context.setBenchmarkCuDNN(false);
  });
}

char* rlhf_is_deterministic(bool* on) {
  return rlhf::guarded([&] { *on = at::globalContext().deterministicAlgorithms(); });
}

}  // extern "C"
