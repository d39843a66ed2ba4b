// From rows of logits: log-probabilities of targets, their way back, and samples.
#pragma once

#include "../device.h"
#include "numbers.h"

namespace rlhf::device {

// The largest of a row and the sum of exponentials below it, in one reading.
template <typename A>
struct Exponentials {
  A top = kNone<A>;
  A sum = 0;

  RLHF_DEVICE void add(A z) {
    if (z > top) {
      sum = sum * exp(top - z) + 1;
      top = z;
    } else if (z == z) {
      // Equal infinities have no difference.
      sum += z == top ? A(1) : exp(z - top);
    } else {
      sum += z;  // not a number: the caller sees it
    }
  }
};

// Over the block; every thread gets it.
template <typename A>
RLHF_DEVICE Exponentials<A> block_exponentials(const Exponentials<A>& own) {
  Exponentials<A> all;
  all.top = block_max(own.top);
  all.sum = block_sum(own.sum == 0 || own.top == all.top ? own.sum : own.sum * exp(own.top - all.top));
  return all;
}

template <typename T>
RLHF_KERNEL logprobs(Logprobs it) {
  using A = Sum<T>;
  const int64_t row = blockIdx.x;
  const T* logits = static_cast<const T*>(it.logits) + row * it.vocabulary;
  const A scale = A(1 / it.temperature);
  Exponentials<A> own;
  for (int64_t i = threadIdx.x; i < it.vocabulary; i += blockDim.x) {
    own.add(A(logits[i]) * scale);
  }
  const Exponentials<A> all = block_exponentials(own);
  if (threadIdx.x == 0) {
    const A lse = all.top + log(all.sum);
    const int64_t target = it.targets[row];
    // A kernel cannot refuse: what is no token is not read, and the caller sees its log-probability.
    const bool is_token = target >= 0 && target < it.vocabulary;
    static_cast<A*>(it.lse)[row] = lse;
    static_cast<A*>(it.logprobs)[row] = is_token ? A(logits[target]) * scale - lse : kNotANumber<A>;
  }
}

template <typename T>
RLHF_KERNEL logprobs_back(LogprobsBack it) {
  using A = Sum<T>;
  const int64_t row = blockIdx.x, target = it.targets[row];
  T* logits = static_cast<T*>(it.logits) + row * it.vocabulary;
  const A scale = A(1 / it.temperature);
  const A lse = static_cast<const A*>(it.lse)[row];
  const A grad = static_cast<const A*>(it.grad)[row];
  for (int64_t i = threadIdx.x; i < it.vocabulary; i += blockDim.x) {
    const A p = exp(A(logits[i]) * scale - lse);
    logits[i] = T(grad * scale * ((i == target ? A(1) : A(0)) - p));
  }
}

// Numbers whose weights are summed together, so that the search for a token reads few of them.
constexpr int kStretch = 256;
constexpr int kStretches = kLargestVocabulary / kStretch;

// The first index of the row's largest number.
template <typename T>
RLHF_DEVICE int64_t first_of_largest(const T* logits, int64_t vocabulary, Sum<T> top) {
  RLHF_SHARED int64_t of_threads[1024];
  int64_t own = vocabulary;
  for (int64_t i = threadIdx.x; i < vocabulary; i += blockDim.x) {
    if (own == vocabulary && Sum<T>(logits[i]) == top) {
      own = i;
    }
  }
  of_threads[threadIdx.x] = own;
  __syncthreads();
  int64_t first = vocabulary;
  for (int i = 0; i < int(blockDim.x); ++i) {
    first = of_threads[i] < first ? of_threads[i] : first;
  }
  return first;
}

// A block a row; its size is a multiple of a warp's.
template <typename T>
RLHF_KERNEL sample(Sample it) {
  using A = Sum<T>;
  RLHF_SHARED double sums[kStretches];
  RLHF_SHARED A weights[kStretch];
  RLHF_SHARED double before, total;  // weights before the chosen stretch, and all
  RLHF_SHARED int chosen;
  const int64_t row = blockIdx.x, vocabulary = it.vocabulary;
  const T* logits = static_cast<const T*>(it.logits) + row * vocabulary;
  const bool greedy = it.uniform == nullptr;
  const A scale = greedy ? A(1) : A(1 / it.temperature);
  A most = kNone<A>;
  for (int64_t i = threadIdx.x; i < vocabulary; i += blockDim.x) {
    const A z = A(logits[i]) * scale;
    most = z > most ? z : most;
  }
  const A top = block_max(most);
  const int stretches = int((vocabulary + kStretch - 1) / kStretch);
  for (int stretch = warp(); stretch < stretches; stretch += blockDim.x / kWarp) {
    const int64_t end = vocabulary < (stretch + 1) * int64_t(kStretch) ? vocabulary
                                                                        : (stretch + 1) * int64_t(kStretch);
    A sum = 0;
    for (int64_t i = stretch * int64_t(kStretch) + lane(); i < end; i += kWarp) {
      sum += exp(A(logits[i]) * scale - top);
    }
    sum = warp_sum(sum);
    if (lane() == 0) {
      sums[stretch] = sum;
    }
  }
  __syncthreads();
  const int64_t likeliest = greedy ? first_of_largest(logits, vocabulary, top) : 0;
  if (threadIdx.x == 0) {
    total = 0;
    for (int i = 0; i < stretches; ++i) {
      total += sums[i];
    }
    int last = stretches - 1;
    while (last > 0 && sums[last] == 0) {
      --last;
    }
    chosen = 0;
    before = 0;
    const double wanted = greedy ? 0 : it.uniform[row] * total;
    while (chosen < last && before + sums[chosen] <= wanted) {
      before += sums[chosen++];
    }
  }
  __syncthreads();
  const int64_t first = chosen * int64_t(kStretch);
  for (int i = threadIdx.x; i < kStretch; i += blockDim.x) {
    weights[i] = first + i < vocabulary ? exp(A(logits[first + i]) * scale - top) : A(0);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int64_t id = greedy ? likeliest : first;
    const double wanted = greedy ? 0 : it.uniform[row] * total;
    double sum = before;
    for (int i = 0; i < kStretch && !greedy && sum <= wanted; ++i) {
      if (weights[i] > 0) {
        sum += weights[i];
        id = first + i;
      }
    }
    // Not a number has no place: its index is kept inside, and the caller sees the log-probability.
    id = id < vocabulary ? id : vocabulary - 1;
    it.ids[row] = id;
    it.logprobs[row] = double(A(logits[id]) * scale - top) - log(total);
  }
}

}  // namespace rlhf::device
