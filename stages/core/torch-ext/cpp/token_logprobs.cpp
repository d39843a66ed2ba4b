// Log-probabilities of given tokens under a linear head, without keeping the N x V logits: the rows
// are taken in chunks, and the backward pass computes each chunk's logits anew.
//
// With z = h W^T / T and lse = log sum_v exp z_v:  logprob = z_target - lse,
// d logprob / d z = onehot(target) - softmax(z).
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "border.h"

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

at::ScalarType accumulation_type(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

at::Tensor chunk_logits(const at::Tensor& hidden_cd, const at::Tensor& weight_vd,
                        double temperature) {
  at::Tensor logits_cv = at::matmul(hidden_cd, weight_vd.t()).to(accumulation_type(hidden_cd));
  return temperature == 1.0 ? logits_cv : logits_cv.div_(temperature);
}

struct TokenLogprobs : public torch::autograd::Function<TokenLogprobs> {
  static Variable forward(AutogradContext* context, const Variable& hidden_nd,
                          const Variable& weight_vd, const Variable& targets_n, double temperature,
                          int64_t chunk) {
    const int64_t rows = hidden_nd.size(0);
    const auto options = hidden_nd.options().dtype(accumulation_type(hidden_nd));
    at::Tensor logprobs_n = at::empty({rows}, options);
    at::Tensor lse_n = at::empty({rows}, options);
    for (int64_t start = 0; start < rows; start += chunk) {
      const int64_t length = std::min(chunk, rows - start);
      at::Tensor logits_cv =
          chunk_logits(hidden_nd.narrow(0, start, length), weight_vd, temperature);
      at::Tensor lse_c = at::logsumexp(logits_cv, {-1});
      at::Tensor targets_c1 = targets_n.narrow(0, start, length).unsqueeze(-1);
      logprobs_n.narrow(0, start, length).copy_(logits_cv.gather(-1, targets_c1).squeeze(-1) - lse_c);
      lse_n.narrow(0, start, length).copy_(lse_c);
    }
    context->save_for_backward({hidden_nd, weight_vd, targets_n, lse_n});
    context->saved_data["temperature"] = temperature;
    context->saved_data["chunk"] = chunk;
    return logprobs_n;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor hidden_nd = saved[0], weight_vd = saved[1], targets_n = saved[2];
    const at::Tensor lse_n = saved[3], grad_n = grads[0];
    const double temperature = context->saved_data["temperature"].toDouble();
    const int64_t chunk = context->saved_data["chunk"].toInt();
    const int64_t rows = hidden_nd.size(0);
    at::Tensor grad_hidden_nd = at::empty_like(hidden_nd);
    // A frozen weight needs none.
    at::Tensor grad_weight_vd;
    if (context->needs_input_grad(1)) {
      grad_weight_vd =
          at::zeros(weight_vd.sizes(), weight_vd.options().dtype(accumulation_type(weight_vd)));
    }
    for (int64_t start = 0; start < rows; start += chunk) {
      const int64_t length = std::min(chunk, rows - start);
      const at::Tensor hidden_cd = hidden_nd.narrow(0, start, length);
      const at::Tensor grad_c1 = grad_n.narrow(0, start, length).unsqueeze(-1);
      const at::Tensor lse_c1 = lse_n.narrow(0, start, length).unsqueeze(-1);
      at::Tensor delta_cv = chunk_logits(hidden_cd, weight_vd, temperature);
      delta_cv.sub_(lse_c1).exp_().mul_(grad_c1.neg());
      delta_cv.scatter_add_(-1, targets_n.narrow(0, start, length).unsqueeze(-1), grad_c1);
      if (temperature != 1.0) {
        delta_cv.div_(temperature);
      }
      delta_cv = delta_cv.to(hidden_nd.scalar_type());
      grad_hidden_nd.narrow(0, start, length).copy_(at::matmul(delta_cv, weight_vd));
      if (grad_weight_vd.defined()) {
        grad_weight_vd.add_(at::matmul(delta_cv.t(), hidden_cd));
      }
    }
    if (grad_weight_vd.defined()) {
      grad_weight_vd = grad_weight_vd.to(weight_vd.scalar_type());
    }
    return {grad_hidden_nd, grad_weight_vd, Variable(), Variable(), Variable()};
  }
};

}  // namespace

extern "C" char* rlhf_token_logprobs(at::Tensor* hidden_nd, at::Tensor* weight_vd,
                                     at::Tensor* targets_n, double temperature, int64_t chunk,
                                     at::Tensor** out) {
  return rlhf::guarded([&] {
    *out = new at::Tensor(
        TokenLogprobs::apply(*hidden_nd, *weight_vd, *targets_n, temperature, chunk));
  });
}
