// Attention over rows of different lengths that lie one behind the other: libtorch's own kernels for GPUs.
#include <ATen/core/Tensor.h>
#include <ATen/ops/_efficient_attention_forward.h>
#include <ATen/ops/_flash_attention_forward.h>

#include "border.h"

namespace {

// Of its kernel in f32: each query sees the keys up to its own, and the last query all of them.
constexpr int64_t CAUSAL_FROM_BOTTOM_RIGHT = 2;

}  // namespace

extern "C" {

// `q` `[h, m, e]`, `k` and `v` `[g, n, e]`; `starts_q` and `starts_k` int32 `[b + 1]`.
char* rlhf_row_attention(const at::Tensor* q, const at::Tensor* k, const at::Tensor* v,
                         const at::Tensor* starts_q, const at::Tensor* starts_k, int64_t longest_q,
                         int64_t longest_k, double scale, at::Tensor** out) {
  return rlhf::guarded([&] {
    auto tokens_first = [](const at::Tensor& x) { return x.transpose(0, 1); };
    if (q->scalar_type() == at::kFloat) {
      const int64_t group = q->size(0) / k->size(0);
      auto batch = [&](const at::Tensor& x, int64_t repeats) {
        const at::Tensor heads = repeats == 1 ? x : x.repeat_interleave(repeats, 0);
        return tokens_first(heads).unsqueeze(0);
      };
      const auto made = at::_efficient_attention_forward(
          batch(*q, 1), batch(*k, group), batch(*v, group), /*bias=*/{}, *starts_q, *starts_k,
          longest_q, longest_k, /*dropout_p=*/0.0, CAUSAL_FROM_BOTTOM_RIGHT,
          /*compute_log_sumexp=*/true, scale);
      *out = new at::Tensor(tokens_first(std::get<0>(made).squeeze(0)));
    } else {
      const auto made = at::_flash_attention_forward(
          tokens_first(*q), tokens_first(*k), tokens_first(*v), *starts_q, *starts_k, longest_q,
          longest_k, /*dropout_p=*/0.0, /*is_causal=*/true, /*return_debug_mask=*/false, scale);
      *out = new at::Tensor(tokens_first(std::get<0>(made)));
    }
  });
}

}  // extern "C"
