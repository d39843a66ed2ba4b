// One token for each row of logits, on the CPU: temperature, top-k, top-p and the inverse of the CDF in
// one go, without a sort and without a tensor between.
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "border.h"
#include "vectors.h"

namespace {

using rlhf::kLanes;
// Weights whose sum is kept, so that the search for a token reads few of them.
constexpr int64_t kStretch = 256;

struct Options {
  double temperature;
  int64_t top_k;  // 0: all
  double top_p;   // 1: all
};

struct Token {
  int64_t id;
  double logprob;
};

// A row in the making: numbers are padded to whole vectors with -inf.
template <typename A>
struct Row {
  std::vector<A> logits, weights;
  std::vector<double> sums;  // of each stretch of weights
  std::vector<int64_t> order;
  std::vector<A> values;
  A top = 0;
  double total = 0;

  explicit Row(int64_t vocabulary)
      : logits((vocabulary + kStretch - 1) / kStretch * kStretch,
               -std::numeric_limits<A>::infinity()),
        weights(logits.size()),
        sums(logits.size() / kStretch) {}
};

template <typename T, typename A>
RLHF_INLINE void read(const T* from, int64_t vocabulary, A scale, Row<A>& row) {
  using V = typename rlhf::Wide<T>::Vector;
  int64_t i = 0;
  for (; i + kLanes <= vocabulary; i += kLanes) {
    const V x = rlhf::load(from + i) * scale;
    rlhf::store(row.logits.data() + i, x);
  }
  for (; i < vocabulary; ++i) {
    row.logits[i] = A(from[i]) * scale;
  }
}

// Weights e^(z - top), the sums of their stretches, and the sum of all.
template <typename V, typename A>
RLHF_INLINE void weigh(Row<A>& row) {
  const int64_t length = static_cast<int64_t>(row.logits.size());
  V most = rlhf::load(row.logits.data());
  for (int64_t i = kLanes; i < length; i += kLanes) {
    const V x = rlhf::load(row.logits.data() + i);
    most = x > most ? x : most;
  }
  row.top = rlhf::largest(most);
  row.total = 0;
  for (int64_t start = 0; start < length; start += kStretch) {
    V sum = {};
    for (int64_t i = start; i < start + kStretch; i += kLanes) {
      const V weight = rlhf::exp_negative(rlhf::load(row.logits.data() + i) - row.top);
      rlhf::store(row.weights.data() + i, weight);
      sum += weight;
    }
    row.sums[start / kStretch] = rlhf::sum(sum);
    row.total += row.sums[start / kStretch];
  }
}

RLHF_CLONES void read_and_weigh(const float* from, int64_t vocabulary, float scale, Row<float>& row) {
  read(from, vocabulary, scale, row);
  weigh<rlhf::Floats>(row);
}
RLHF_CLONES void read_and_weigh(const c10::BFloat16* from, int64_t vocabulary, float scale,
                                Row<float>& row) {
  read(from, vocabulary, scale, row);
  weigh<rlhf::Floats>(row);
}
RLHF_CLONES void read_and_weigh(const double* from, int64_t vocabulary, double scale,
                                Row<double>& row) {
  read(from, vocabulary, scale, row);
  weigh<rlhf::Doubles>(row);
}

template <typename A>
void sum_anew(Row<A>& row) {
  row.total = 0;
  for (size_t stretch = 0; stretch < row.sums.size(); ++stretch) {
    const auto first = row.weights.begin() + stretch * kStretch;
    row.sums[stretch] = std::accumulate(first, first + kStretch, 0.0);
    row.total += row.sums[stretch];
  }
}

// Excludes what is less likely than the k-th likeliest token.
template <typename A>
void keep_top_k(Row<A>& row, int64_t k, int64_t vocabulary) {
  if (k >= vocabulary) {
    return;
  }
  row.values.assign(row.logits.begin(), row.logits.begin() + vocabulary);
  std::nth_element(row.values.begin(), row.values.begin() + (k - 1), row.values.end(),
                   std::greater<A>());
  const A least = row.values[k - 1];
  for (int64_t i = 0; i < vocabulary; ++i) {
    if (row.logits[i] < least) {
      row.weights[i] = 0;
    }
  }
  sum_anew(row);
}

// Keeps the smallest set of likeliest tokens whose probabilities sum to at least p; of tokens as likely as
// each other, the first ones. The set's end is found by halving, which looks at twice the vocabulary.
template <typename A>
void keep_top_p(Row<A>& row, double p, int64_t vocabulary) {
  row.order.clear();
  for (int64_t i = 0; i < vocabulary; ++i) {
    if (row.weights[i] > 0) {
      row.order.push_back(i);
    }
  }
  const auto likelier = [&row](int64_t a, int64_t b) {
    return row.weights[a] != row.weights[b] ? row.weights[a] > row.weights[b] : a < b;
  };
  const double wanted = p * row.total;
  double mass = 0;  // of what lies before `first`
  auto first = row.order.begin(), last = row.order.end();
  while (last - first > 1) {
    const auto middle = first + (last - first) / 2;
    std::nth_element(first, middle, last, likelier);
    const double half = std::accumulate(first, middle, 0.0, [&row](double sum, int64_t i) {
      return sum + static_cast<double>(row.weights[i]);
    });
    if (mass + half >= wanted) {
      last = middle;
    } else {
      mass += half;
      first = middle;
    }
  }
  for (auto excluded = last; excluded != row.order.end(); ++excluded) {
    row.weights[*excluded] = 0;
  }
  sum_anew(row);
}

// The first token whose cumulative weight passes `uniform` times the sum; never one of weight 0, and the
// last one with a weight where rounding leaves nothing behind it.
template <typename A>
int64_t invert_cdf(const Row<A>& row, double uniform) {
  const double wanted = uniform * row.total;
  size_t end = row.sums.size() - 1;
  while (end > 0 && row.sums[end] == 0) {
    --end;
  }
  size_t stretch = 0;
  double sum = 0;
  while (stretch < end && sum + row.sums[stretch] <= wanted) {
    sum += row.sums[stretch++];
  }
  size_t token = stretch * kStretch;
  for (size_t i = token; i < (stretch + 1) * kStretch && sum <= wanted; ++i) {
    if (row.weights[i] > 0) {
      sum += row.weights[i];
      token = i;
    }
  }
  return static_cast<int64_t>(token);
}

template <typename T>
Token choose(const T* logits, int64_t vocabulary, const double* uniform, const Options& options,
             Row<typename rlhf::Wide<T>::Scalar>& row) {
  using A = typename rlhf::Wide<T>::Scalar;
  const bool greedy = uniform == nullptr;
  read_and_weigh(logits, vocabulary, greedy ? A(1) : A(1 / options.temperature), row);
  int64_t id = 0;
  if (greedy) {
    id = std::find(row.logits.begin(), row.logits.begin() + vocabulary, row.top) -
         row.logits.begin();
  } else {
    if (options.top_k > 0) {
      keep_top_k(row, options.top_k, vocabulary);
    }
    if (options.top_p < 1) {
      keep_top_p(row, options.top_p, vocabulary);
    }
    id = invert_cdf(row, *uniform);
  }
  id = std::min(id, vocabulary - 1);
  return {id, static_cast<double>(row.logits[id] - row.top) - std::log(row.total)};
}

template <typename T>
void run(const at::Tensor& logits_bv, const double* uniform_b, const Options& options,
         int64_t* ids_b, double* logprobs_b) {
  const int64_t rows = logits_bv.size(0), vocabulary = logits_bv.size(1);
  const T* logits = logits_bv.const_data_ptr<T>();
  const int64_t at_once = std::max<int64_t>(1, rows / 16);
  rlhf::for_each_task((rows + at_once - 1) / at_once, [&](int64_t task) {
    Row<typename rlhf::Wide<T>::Scalar> scratch(vocabulary);
    const int64_t end = std::min(rows, (task + 1) * at_once);
    for (int64_t row = task * at_once; row < end; ++row) {
      const Token token = choose(logits + row * vocabulary, vocabulary,
                                 uniform_b == nullptr ? nullptr : uniform_b + row, options, scratch);
      ids_b[row] = token.id;
      logprobs_b[row] = token.logprob;
    }
  });
}

}  // namespace

extern "C" char* rlhf_sample(at::Tensor* logits_bv, const double* uniform_b, double temperature,
                             int64_t top_k, double top_p, int64_t* ids_b, double* logprobs_b) {
  return rlhf::guarded([&] {
    const Options options{temperature, top_k, top_p};
    switch (logits_bv->scalar_type()) {
      case at::kFloat:
        return run<float>(*logits_bv, uniform_b, options, ids_b, logprobs_b);
      case at::kDouble:
        return run<double>(*logits_bv, uniform_b, options, ids_b, logprobs_b);
      case at::kBFloat16:
        return run<c10::BFloat16>(*logits_bv, uniform_b, options, ids_b, logprobs_b);
      default:
        TORCH_CHECK(false, "sampling from logits in ", logits_bv->scalar_type());
    }
  });
}
