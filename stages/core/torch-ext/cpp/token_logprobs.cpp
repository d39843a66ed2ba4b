// Log-probabilities of given tokens under a linear head, without keeping the N x V logits: the rows
// are taken in chunks, and the backward pass computes each chunk's logits anew.
//
// With z = h W^T / T and lse = log sum_v exp z_v:  logprob = z_target - lse,
// d logprob / d z = onehot(target) - softmax(z).
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "border.h"
#include "logits_rows.h"

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

at::ScalarType accumulation_type(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

struct Options {
  double temperature;
  int64_t chunk;
  bool plain;  // by libtorch's operators
};

// In the type of sums, divided by the temperature.
at::Tensor plain_logits(const at::Tensor& logits_cv, const Options& options) {
  at::Tensor wide_cv = logits_cv.to(accumulation_type(logits_cv));
  return options.temperature == 1.0 ? wide_cv : wide_cv.div_(options.temperature);
}

void logprobs(const at::Tensor& logits_cv, const at::Tensor& targets_c, const Options& options,
              const at::Tensor& logprobs_c, const at::Tensor& lse_c) {
  if (!options.plain) {
    return rlhf::logprobs_of_rows(logits_cv, targets_c, options.temperature, logprobs_c, lse_c);
  }
  const at::Tensor plain_cv = plain_logits(logits_cv, options);
  lse_c.copy_(at::logsumexp(plain_cv, {-1}));
  logprobs_c.copy_(plain_cv.gather(-1, targets_c.unsqueeze(-1)).squeeze(-1) - lse_c);
}

// The gradient of the logits, in their type.
at::Tensor logprobs_back(const at::Tensor& logits_cv, const at::Tensor& targets_c,
                         const at::Tensor& lse_c, const at::Tensor& grad_c, const Options& options) {
  if (!options.plain) {
    rlhf::logprobs_of_rows_back(logits_cv, targets_c, lse_c, grad_c, options.temperature);
    return logits_cv;
  }
  const at::Tensor grad_c1 = grad_c.unsqueeze(-1);
  at::Tensor delta_cv = plain_logits(logits_cv, options);
  delta_cv.sub_(lse_c.unsqueeze(-1)).exp_().mul_(grad_c1.neg());
  delta_cv.scatter_add_(-1, targets_c.unsqueeze(-1), grad_c1);
  if (options.temperature != 1.0) {
    delta_cv.div_(options.temperature);
  }
  return delta_cv.to(logits_cv.scalar_type());
}

struct TokenLogprobs : public torch::autograd::Function<TokenLogprobs> {
  static Variable forward(AutogradContext* context, const Variable& hidden_nd,
                          const Variable& weight_vd, const Variable& targets_n, double temperature,
                          int64_t chunk, bool plain) {
    const Options options{temperature, chunk, plain};
    const int64_t rows = hidden_nd.size(0);
    const auto wide = hidden_nd.options().dtype(accumulation_type(hidden_nd));
    at::Tensor logprobs_n = at::empty({rows}, wide);
    at::Tensor lse_n = at::empty({rows}, wide);
    for (int64_t start = 0; start < rows; start += chunk) {
      const int64_t length = std::min(chunk, rows - start);
      const at::Tensor logits_cv =
          at::matmul(hidden_nd.narrow(0, start, length), weight_vd.t());
      logprobs(logits_cv, targets_n.narrow(0, start, length), options,
               logprobs_n.narrow(0, start, length), lse_n.narrow(0, start, length));
    }
    context->save_for_backward({hidden_nd, weight_vd, targets_n, lse_n});
    context->saved_data["temperature"] = temperature;
    context->saved_data["chunk"] = chunk;
    context->saved_data["plain"] = plain;
    return logprobs_n;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor hidden_nd = saved[0], weight_vd = saved[1], targets_n = saved[2];
    const at::Tensor lse_n = saved[3], grad_n = grads[0].contiguous();
    const Options options{context->saved_data["temperature"].toDouble(),
                          context->saved_data["chunk"].toInt(),
                          context->saved_data["plain"].toBool()};
    const int64_t rows = hidden_nd.size(0);
    at::Tensor grad_hidden_nd = at::empty_like(hidden_nd);
    // A frozen weight needs none.
    at::Tensor grad_weight_vd;
    if (context->needs_input_grad(1)) {
      grad_weight_vd =
          at::zeros(weight_vd.sizes(), weight_vd.options().dtype(accumulation_type(weight_vd)));
    }
    for (int64_t start = 0; start < rows; start += options.chunk) {
      const int64_t length = std::min(options.chunk, rows - start);
      const at::Tensor hidden_cd = hidden_nd.narrow(0, start, length);
      const at::Tensor delta_cv = logprobs_back(
          at::matmul(hidden_cd, weight_vd.t()), targets_n.narrow(0, start, length),
          lse_n.narrow(0, start, length), grad_n.narrow(0, start, length), options);
      grad_hidden_nd.narrow(0, start, length).copy_(at::matmul(delta_cv, weight_vd));
      if (!grad_weight_vd.defined()) {
        continue;
      }
      if (grad_weight_vd.scalar_type() == delta_cv.scalar_type()) {
        grad_weight_vd.addmm_(delta_cv.t(), hidden_cd);
      } else {
        grad_weight_vd.add_(at::matmul(delta_cv.t(), hidden_cd));
      }
    }
    if (grad_weight_vd.defined()) {
      grad_weight_vd = grad_weight_vd.to(weight_vd.scalar_type());
    }
    return {grad_hidden_nd, grad_weight_vd, Variable(), Variable(), Variable(), Variable()};
  }
};

}  // namespace

extern "C" char* rlhf_token_logprobs(at::Tensor* hidden_nd, at::Tensor* weight_vd,
                                     at::Tensor* targets_n, double temperature, int64_t chunk,
                                     bool plain, at::Tensor** out) {
  return rlhf::guarded([&] {
    *out = new at::Tensor(TokenLogprobs::apply(*hidden_nd, *weight_vd, targets_n->contiguous(),
                                               temperature, chunk, plain));
  });
}
