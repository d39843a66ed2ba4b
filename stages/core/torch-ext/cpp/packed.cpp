// Products with a matrix in oneDNN's own order of numbers, which libtorch registers for its compiler: a
// product of few rows need not sort the matrix anew.
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>

#include <optional>
#include <string_view>

#include "border.h"

namespace {

template <typename Signature>
std::optional<c10::TypedOperatorHandle<Signature>> find(const char* name) {
  const auto handle = c10::Dispatcher::singleton().findSchema({name, ""});
  if (!handle.has_value()) {
    return std::nullopt;
  }
  return handle->template typed<Signature>();
}

bool supports(at::ScalarType type) {
  if (type == at::kFloat) {
    return true;
  }
  static const auto bf16 = find<bool()>("mkldnn::_is_mkldnn_bf16_supported");
  return type == at::kBFloat16 && bf16.has_value() && bf16->call();
}

}  // namespace

extern "C" {

// `out` stays null where oneDNN or the processor does not do it.
char* rlhf_pack_matrix(at::Tensor* weight_oi, int64_t rows, at::Tensor** out) {
  return rlhf::guarded([&] {
    at::NoGradGuard no_grad;
    using Reorder = at::Tensor(const at::Tensor&, std::optional<c10::SymInt>);
    static const auto reorder = find<Reorder>("mkldnn::_reorder_linear_weight");
    if (reorder.has_value() && supports(weight_oi->scalar_type())) {
      *out = new at::Tensor(reorder->call(*weight_oi, c10::SymInt(rows)));
    }
  });
}

char* rlhf_packed_linear(at::Tensor* x, at::Tensor* packed, at::Tensor* bias, at::Tensor** out) {
  return rlhf::guarded([&] {
    at::NoGradGuard no_grad;
    using Linear = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                              std::string_view, c10::List<std::optional<at::Scalar>>,
                              std::optional<std::string_view>);
    static const auto linear = find<Linear>("mkldnn::_linear_pointwise");
    TORCH_CHECK(linear.has_value(), "libtorch was built without oneDNN");
    std::optional<at::Tensor> added;
    if (bias != nullptr) {
      added = *bias;
    }
    *out = new at::Tensor(linear->call(*x, *packed, added, "none", c10::List<std::optional<at::Scalar>>(), ""));
  });
}

}  // extern "C"
