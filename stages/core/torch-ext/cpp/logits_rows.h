// Rows of logits: the log-probability of a target, and its way back, each in one pass over memory.
#pragma once

#include <ATen/core/Tensor.h>

namespace rlhf {

// ln softmax(logits / temperature) at the targets, and the logarithm of the sum of exponentials, [c] each in
// f32 (f64 for f64); logits are [c, v], contiguous.
void logprobs_of_rows(const at::Tensor& logits_cv, const at::Tensor& targets_c, double temperature,
                      const at::Tensor& logprobs_c, const at::Tensor& lse_c);

// Writes the logits' gradient over them.
void logprobs_of_rows_back(const at::Tensor& logits_cv, const at::Tensor& targets_c,
                           const at::Tensor& lse_c, const at::Tensor& grad_c, double temperature);

}  // namespace rlhf
