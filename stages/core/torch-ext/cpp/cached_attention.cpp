// Attention over a cache of keys and values in blocks, on the CPU.
//
// New tokens of all rows lie behind each other, without padding; each row has its own number of new
// tokens and of cached ones. A block holds 16 positions of one key head: keys as [e, 16], so that the
// products with 16 keys are one vector, and values as [16, e].
//
// n new tokens, h query heads, k key heads, e width of a head, B blocks, b rows, m columns of the table.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "border.h"
#include "vectors.h"

namespace {

using rlhf::kLanes;
constexpr int64_t kBlock = kLanes;
// Queries that one task takes together, and heads that share a key's load.
constexpr int64_t kQueries = 16;
constexpr int64_t kTogether = 4;

struct Cache {
  at::Tensor keys;    // [B, k, e, 16]
  at::Tensor values;  // [B, k, 16, e]
  const int32_t* table;  // [b, m]
  int64_t columns;
};

struct Row {
  int64_t first;  // its first new token
  int64_t count;  // how many
  int64_t past;   // tokens that are cached already
};

struct Options {
  double scale;
  int64_t window;  // keys that a query sees, at most
  const at::Tensor* bias_hs;  // added to the products by key position, or null
};

template <typename T>
struct Job {
  using A = typename rlhf::Wide<T>::Scalar;

  const T* q;
  int64_t q_token, q_head;  // strides
  const T* keys;
  const T* values;
  T* out;  // [n, h, e]
  int64_t heads, key_heads, width;
  const int32_t* blocks;  // of the row
  int64_t key_head;
  Row row;
  A scale;
  int64_t window;
  const A* bias;
  int64_t bias_row;

  RLHF_INLINE const T* keys_of(int64_t block) const {
    return keys + (int64_t{blocks[block]} * key_heads + key_head) * width * kBlock;
  }
  RLHF_INLINE const T* values_of(int64_t block) const {
    return values + (int64_t{blocks[block]} * key_heads + key_head) * width * kBlock;
  }
};

// One query of one head.
struct Lane {
  int64_t token, head;
  int64_t start, end;  // keys it sees
};

// Products of L queries with the keys of U blocks.
template <int L, int U, typename T, typename A>
RLHF_INLINE void products(const Job<T>& job, const A* q, int64_t block, A* scores, int64_t stride) {
  using V = typename rlhf::Wide<T>::Vector;
  V sums[L][U] = {};
  const T* keys[U];
  const T* values[U];
  for (int u = 0; u < U; ++u) {
    keys[u] = job.keys_of(block + u);
    values[u] = job.values_of(block + u);
  }
  for (int64_t i = 0; i < job.width; ++i) {
    V key[U];
    for (int u = 0; u < U; ++u) {
      key[u] = rlhf::load(keys[u] + i * kBlock);
      // Memory is what this waits for; the values are wanted next.
      __builtin_prefetch(values[u] + i * kBlock);
    }
    for (int l = 0; l < L; ++l) {
      for (int u = 0; u < U; ++u) {
        sums[l][u] += key[u] * q[l * job.width + i];
      }
    }
  }
  for (int l = 0; l < L; ++l) {
    for (int u = 0; u < U; ++u) {
      rlhf::store(scores + l * stride + (block + u) * kBlock, sums[l][u]);
    }
  }
}

// Turns the products of one query into weights, 0 for keys that it does not see; returns 1 over their sum.
template <typename T, typename A>
RLHF_INLINE A soften(const Job<T>& job, const Lane& lane, A* scores, int64_t length) {
  using V = typename rlhf::Wide<T>::Vector;
  if (job.bias != nullptr) {
    const A* bias = job.bias + lane.head * job.bias_row;
    for (int64_t s = lane.start; s < lane.end; ++s) {
      scores[s] += bias[s];
    }
  }
  const A none = -std::numeric_limits<A>::infinity();
  std::fill(scores, scores + lane.start, none);
  std::fill(scores + lane.end, scores + length, none);
  V most = rlhf::load(scores);
  for (int64_t s = kLanes; s < length; s += kLanes) {
    const V x = rlhf::load(scores + s);
    most = x > most ? x : most;
  }
  const A top = rlhf::largest(most);
  V total = {};
  for (int64_t s = 0; s < length; s += kLanes) {
    const V weight = rlhf::exp_negative(rlhf::load(scores + s) - top);
    rlhf::store(scores + s, weight);
    total += weight;
  }
  return A(1) / rlhf::sum(total);
}

// The weighted sum of values for L queries, 16 of the head's numbers at a time, in U partial sums.
template <int L, int U, typename T, typename A>
RLHF_INLINE void mix(const Job<T>& job, const Lane* lanes, const A* weights, int64_t stride,
                     const A* scales, int64_t start, int64_t end) {
  using V = typename rlhf::Wide<T>::Vector;
  for (int64_t i = 0; i < job.width; i += kLanes) {
    const int64_t some = std::min(kLanes, job.width - i);
    V sums[L][U] = {};
    for (int64_t block = start / kBlock; block * kBlock < end; ++block) {
      const T* values = job.values_of(block) + i;
      const int64_t first = block * kBlock;
      const int64_t count = std::min(kBlock, end - first);
      int64_t s = 0;
      if (some == kLanes) {
        for (; s + U <= count; s += U) {
          for (int u = 0; u < U; ++u) {
            const V value = rlhf::load(values + (s + u) * job.width);
            for (int l = 0; l < L; ++l) {
              sums[l][u] += value * weights[l * stride + first + s + u];
            }
          }
        }
      }
      for (; s < count; ++s) {
        const V value = rlhf::load_some(values + s * job.width, some);
        for (int l = 0; l < L; ++l) {
          sums[l][0] += value * weights[l * stride + first + s];
        }
      }
    }
    for (int l = 0; l < L; ++l) {
      V all = sums[l][0];
      for (int u = 1; u < U; ++u) {
        all += sums[l][u];
      }
      T* out = job.out + (lanes[l].token * job.heads + lanes[l].head) * job.width + i;
      rlhf::store_some(out, all * scales[l], some);
    }
  }
}

template <int L, typename T, typename A>
RLHF_INLINE void attend_lanes(const Job<T>& job, const Lane* lanes, A* q, A* scores) {
  constexpr int U = kTogether / L;
  int64_t start = lanes[0].start, end = lanes[0].end;
  for (int l = 0; l < L; ++l) {
    const T* from = job.q + lanes[l].token * job.q_token + lanes[l].head * job.q_head;
    for (int64_t i = 0; i < job.width; ++i) {
      q[l * job.width + i] = A(from[i]) * job.scale;
    }
    start = std::min(start, lanes[l].start);
    end = std::max(end, lanes[l].end);
  }
  const int64_t blocks = (end + kBlock - 1) / kBlock;
  const int64_t stride = blocks * kBlock;
  int64_t block = start / kBlock;
  for (; block + U <= blocks; block += U) {
    products<L, U>(job, q, block, scores, stride);
  }
  for (; block < blocks; ++block) {
    products<L, 1>(job, q, block, scores, stride);
  }
  A scales[L];
  for (int l = 0; l < L; ++l) {
    scales[l] = soften(job, lanes[l], scores + l * stride, stride);
  }
  mix<L, U>(job, lanes, scores, stride, scales, start, end);
}

// Queries `from .. to` of a row, for the heads of one key head. `q` and `scores` are scratch.
template <typename T, typename A>
RLHF_INLINE void attend(const Job<T>& job, int64_t from, int64_t to, A* q, A* scores) {
  const int64_t group = job.heads / job.key_heads;
  Lane lanes[kTogether];
  int64_t filled = 0;
  const auto flush = [&]() __attribute__((always_inline)) {
    int64_t l = 0;
    if (filled == kTogether) {
      attend_lanes<kTogether>(job, lanes, q, scores);
      l = kTogether;
    }
    if (l + 2 <= filled) {
      attend_lanes<2>(job, lanes + l, q, scores);
      l += 2;
    }
    if (l < filled) {
      attend_lanes<1>(job, lanes + l, q, scores);
    }
    filled = 0;
  };
  for (int64_t query = from; query < to; ++query) {
    for (int64_t g = 0; g < group; ++g) {
      const int64_t end = job.row.past + query + 1;
      lanes[filled++] = {job.row.first + query, job.key_head * group + g,
                         std::max<int64_t>(0, end - job.window), end};
      if (filled == kTogether) {
        flush();
      }
    }
  }
  flush();
}

RLHF_CLONES void attend_to(const Job<float>& job, int64_t from, int64_t to, float* q, float* s) {
  attend(job, from, to, q, s);
}
RLHF_CLONES void attend_to(const Job<double>& job, int64_t from, int64_t to, double* q, double* s) {
  attend(job, from, to, q, s);
}
RLHF_CLONES void attend_to(const Job<c10::BFloat16>& job, int64_t from, int64_t to, float* q,
                           float* s) {
  attend(job, from, to, q, s);
}

// Adds the new tokens' keys and values to the cache.
template <typename T>
void append(const at::Tensor& k_nke, const at::Tensor& v_nke, const std::vector<Row>& rows,
            const Cache& cache) {
  const int64_t key_heads = k_nke.size(1), width = k_nke.size(2);
  T* keys = cache.keys.data_ptr<T>();
  T* values = cache.values.data_ptr<T>();
  const T* k = k_nke.const_data_ptr<T>();
  const T* v = v_nke.const_data_ptr<T>();
  const auto one_row = [&](int64_t index) {
    const Row& row = rows[index];
    const int32_t* blocks = cache.table + index * cache.columns;
    for (int64_t i = 0; i < row.count; ++i) {
      const int64_t position = row.past + i, token = row.first + i;
      const int64_t block = blocks[position / kBlock], place = position % kBlock;
      for (int64_t head = 0; head < key_heads; ++head) {
        const int64_t base = (block * key_heads + head) * width * kBlock;
        const T* key = k + token * k_nke.stride(0) + head * k_nke.stride(1);
        for (int64_t e = 0; e < width; ++e) {
          keys[base + e * kBlock + place] = key[e];
        }
        const T* value = v + token * v_nke.stride(0) + head * v_nke.stride(1);
        std::memcpy(values + base + place * width, value, width * sizeof(T));
      }
    }
  };
  rlhf::for_each_task(static_cast<int64_t>(rows.size()), one_row);
}

template <typename T>
at::Tensor run(const at::Tensor& q_nhe, const at::Tensor& k_nke, const at::Tensor& v_nke,
               const std::vector<Row>& rows, const Cache& cache, const Options& options) {
  using A = typename rlhf::Wide<T>::Scalar;
  append<T>(k_nke, v_nke, rows, cache);
  at::Tensor out = at::empty(q_nhe.sizes(), q_nhe.options());
  const int64_t key_heads = k_nke.size(1);
  struct Task {
    int64_t row, key_head, from, to;
  };
  std::vector<Task> tasks;
  int64_t longest = 0;
  for (int64_t row = 0; row < static_cast<int64_t>(rows.size()); ++row) {
    longest = std::max(longest, rows[row].past + rows[row].count);
    for (int64_t from = 0; from < rows[row].count; from += kQueries) {
      for (int64_t key_head = 0; key_head < key_heads; ++key_head) {
        tasks.push_back({row, key_head, from, std::min(from + kQueries, rows[row].count)});
      }
    }
  }
  const int64_t width = q_nhe.size(2);
  const int64_t padded = (longest + kBlock - 1) / kBlock * kBlock;
  const at::Tensor* bias = options.bias_hs;
  // Tasks of a few microseconds are handed out several at a time.
  const int64_t at_once = std::max<int64_t>(1, static_cast<int64_t>(tasks.size()) / 64);
  const int64_t num_tasks = static_cast<int64_t>(tasks.size());
  rlhf::for_each_task((num_tasks + at_once - 1) / at_once, [&](int64_t portion) {
    std::vector<A> scratch(kTogether * (width + padded));
    const int64_t end = std::min(num_tasks, (portion + 1) * at_once);
    for (int64_t index = portion * at_once; index < end; ++index) {
      const Task& task = tasks[index];
      const Job<T> job{q_nhe.const_data_ptr<T>(), q_nhe.stride(0), q_nhe.stride(1),
                       cache.keys.const_data_ptr<T>(), cache.values.const_data_ptr<T>(),
                       out.data_ptr<T>(), q_nhe.size(1), key_heads, width,
                       cache.table + task.row * cache.columns, task.key_head, rows[task.row],
                       A(options.scale), options.window,
                       bias == nullptr ? nullptr : bias->const_data_ptr<A>(),
                       bias == nullptr ? 0 : bias->stride(0)};
      attend_to(job, task.from, task.to, scratch.data(), scratch.data() + kTogether * width);
    }
  });
  return out;
}

}  // namespace

extern "C" char* rlhf_cached_attention(at::Tensor* q_nhe, at::Tensor* k_nke, at::Tensor* v_nke,
                                       at::Tensor* keys, at::Tensor* values, const int32_t* table,
                                       int64_t columns, const int64_t* counts,
                                       const int64_t* pasts, int64_t num_rows, double scale,
                                       int64_t window, at::Tensor* bias_hs, at::Tensor** out) {
  return rlhf::guarded([&] {
    c10::NoGradGuard no_grad;
    std::vector<Row> rows;
    int64_t first = 0;
    for (int64_t row = 0; row < num_rows; ++row) {
      rows.push_back({first, counts[row], pasts[row]});
      first += counts[row];
    }
    const Cache cache{*keys, *values, table, columns};
    const Options options{scale, window, bias_hs};
    const auto attention = [&](auto zero) {
      return run<decltype(zero)>(*q_nhe, *k_nke, *v_nke, rows, cache, options);
    };
    switch (q_nhe->scalar_type()) {
      case at::kFloat:
        *out = new at::Tensor(attention(float{}));
        break;
      case at::kDouble:
        *out = new at::Tensor(attention(double{}));
        break;
      case at::kBFloat16:
        *out = new at::Tensor(attention(c10::BFloat16{}));
        break;
      default:
        TORCH_CHECK(false, "cached attention in ", q_nhe->scalar_type());
    }
  });
}
