#include "logits_rows.h"

#include <algorithm>
#include <cmath>

#include "device_ops.h"
#include "kernels.h"

namespace {

using rlhf::each_vector;
using rlhf::put;
using rlhf::take;
using rlhf::with_type;

// Every place that is read or written is inside the row.
void check_targets(const int64_t* targets, int64_t rows, int64_t vocabulary) {
  for (int64_t row = 0; row < rows; ++row) {
    TORCH_CHECK(targets[row] >= 0 && targets[row] < vocabulary, "target ", targets[row], " of row ", row,
                " of a vocabulary of ", vocabulary);
  }
}

// Numbers whose sum is in their own type; those of such sums are in f64.
constexpr int64_t kStretch = 1024;

// The logarithm of the sum of exponentials of a row; a row is short enough to stay in the cache.
template <typename T, typename A>
RLHF_INLINE A logsumexp(const T* logits, int64_t vocabulary, A scale) {
  using V = typename rlhf::Wide<T>::Vector;
  A top = A(logits[0]) * scale;
  int64_t i = 0;
  if (vocabulary >= rlhf::kLanes) {
    V most = rlhf::load(logits) * scale;
    for (; i + rlhf::kLanes <= vocabulary; i += rlhf::kLanes) {
      const V z = rlhf::load(logits + i) * scale;
      most = z > most ? z : most;
    }
    top = rlhf::largest(most);
  }
  for (; i < vocabulary; ++i) {
    const A z = A(logits[i]) * scale;
    top = z > top ? z : top;
  }
  double total = 0;
  for (i = 0; i + rlhf::kLanes <= vocabulary;) {
    V sum = {};
    const int64_t end = std::min(vocabulary - rlhf::kLanes + 1, i + kStretch);
    for (; i < end; i += rlhf::kLanes) {
      sum += rlhf::exp_negative(rlhf::load(logits + i) * scale - top);
    }
    total += rlhf::sum(sum);
  }
  for (; i < vocabulary; ++i) {
    total += std::exp(A(logits[i]) * scale - top);
  }
  return top + A(std::log(total));
}

// grad (onehot(target) - softmax) / temperature, with softmax = e^(z - lse).
template <typename T, typename A>
RLHF_INLINE void gradient(T* logits, int64_t vocabulary, int64_t target, A scale, A lse, A grad) {
  using V = typename rlhf::Wide<T>::Vector;
  const A factor = -grad * scale;
  const A of_target = std::exp(A(logits[target]) * scale - lse);
  each_vector(vocabulary, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    // Rounding leaves no number above the logarithm of the sum but by its own last place.
    V z = take(logits + i, count) * scale - lse;
    z = z > 0 ? V{} : z;
    put(logits + i, rlhf::exp_negative(z) * factor, count);
  });
  logits[target] = T((of_target - 1) * factor);
}

#define RLHF_KERNELS(T)                                                                           \
  RLHF_CLONES rlhf::Wide<T>::Scalar logsumexp_of(const T* logits, int64_t vocabulary,             \
                                                 rlhf::Wide<T>::Scalar scale) {                   \
    return logsumexp(logits, vocabulary, scale);                                                  \
  }                                                                                               \
  RLHF_CLONES void gradient_of(T* logits, int64_t vocabulary, int64_t target,                     \
                               rlhf::Wide<T>::Scalar scale, rlhf::Wide<T>::Scalar lse,            \
                               rlhf::Wide<T>::Scalar grad) {                                      \
    gradient(logits, vocabulary, target, scale, lse, grad);                                       \
  }

RLHF_KERNELS(float)
RLHF_KERNELS(double)
RLHF_KERNELS(c10::BFloat16)

}  // namespace

namespace rlhf {

void logprobs_of_rows(const at::Tensor& logits_cv, const at::Tensor& targets_c, double temperature,
                      const at::Tensor& logprobs_c, const at::Tensor& lse_c) {
  const int64_t rows = logits_cv.size(0), vocabulary = logits_cv.size(1);
  const int64_t* targets = targets_c.const_data_ptr<int64_t>();
  if (device::kernels_for(logits_cv) != nullptr) {
    return device::call(&device::Kernels::logprobs, logits_cv,
                        device::Logprobs{logits_cv.data_ptr(), targets, rows, vocabulary, temperature,
                                         logprobs_c.data_ptr(), lse_c.data_ptr()});
  }
  check_targets(targets, rows, vocabulary);
  with_type(logits_cv, "token_logprobs", [&](auto zero) {
    using T = decltype(zero);
    using A = typename Wide<T>::Scalar;
    const T* logits = logits_cv.const_data_ptr<T>();
    A* logprobs = logprobs_c.data_ptr<A>();
    A* lse = lse_c.data_ptr<A>();
    const A scale = A(1 / temperature);
    for_each_stretch(rows, vocabulary, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* of_row = logits + row * vocabulary;
        lse[row] = logsumexp_of(of_row, vocabulary, scale);
        logprobs[row] = A(of_row[targets[row]]) * scale - lse[row];
      }
    });
  });
}

void logprobs_of_rows_back(const at::Tensor& logits_cv, const at::Tensor& targets_c,
                           const at::Tensor& lse_c, const at::Tensor& grad_c, double temperature) {
  const int64_t rows = logits_cv.size(0), vocabulary = logits_cv.size(1);
  const int64_t* targets = targets_c.const_data_ptr<int64_t>();
  if (device::kernels_for(logits_cv) != nullptr) {
    return device::call(&device::Kernels::logprobs_back, logits_cv,
                        device::LogprobsBack{logits_cv.data_ptr(), targets, lse_c.data_ptr(),
                                             grad_c.data_ptr(), rows, vocabulary, temperature});
  }
  check_targets(targets, rows, vocabulary);
  with_type(logits_cv, "token_logprobs", [&](auto zero) {
    using T = decltype(zero);
    using A = typename Wide<T>::Scalar;
    T* logits = logits_cv.data_ptr<T>();
    const A* lse = lse_c.const_data_ptr<A>();
    const A* grad = grad_c.const_data_ptr<A>();
    const A scale = A(1 / temperature);
    for_each_stretch(rows, vocabulary, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        gradient_of(logits + row * vocabulary, vocabulary, targets[row], scale, lse[row], grad[row]);
      }
    });
  });
}

}  // namespace rlhf
