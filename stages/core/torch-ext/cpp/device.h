// The operators that run on a GPU, as librlhf_cuda.so offers them: a table of functions over bare pointers,
// which is installed once it is loaded. Each returns when the work is queued on the device's current stream.
//
// n rows, d width, v vocabulary, b rows, h heads, t positions, e width of a head, m columns of a table.
#pragma once

#include <cstdint>

namespace rlhf::device {

enum class Number : int32_t { kF32, kF64, kBf16 };

// Where, and of what numbers; sums are f32 (f64 for f64).
struct On {
  int32_t device;
  Number number;
};

// y = norm(x + added) weight + bias, over rows of d numbers; the norm subtracts the mean where `centred`.
struct Norm {
  const void* x;
  const void* added;  // or null
  const void* weight;
  const void* bias;  // or null
  void* total;       // x + added, or null where nothing is added
  void* y;
  void* means;   // sums' type [n], or null where the mean is not subtracted
  void* scales;  // sums' type [n]
  int64_t rows, d;
  double eps;
};

// `parts` rows of partial sums [parts, d] of the gradients of weight and bias.
struct NormBack {
  const void* x;  // what was normed
  const void* weight;
  const void* means;   // or null
  const void* scales;
  const void* grad;
  const void* grad_total;  // of x + added beside the norm's, or null
  void* grad_x;
  void* grad_weight;  // sums' type [parts, d], or null
  void* grad_bias;    // the same, or null
  int64_t rows, d, parts;
};

struct Rotation {
  const void* x;
  int64_t row_stride, head_stride, column_stride;  // of x: b, h, t
  const void* cos;
  const void* sin;
  int64_t table_stride;  // between rows of the tables, 0 where all rows share one
  int64_t rows, heads, columns, width, rotated;
  bool interleaved;
  bool back;  // turns the other way
  void* y;    // [b, t, h, e]
};

// y = silu(gate) up
struct Gate {
  const void* gate;
  const void* up;
  int64_t gate_stride, up_stride, rows, d;
  void* y;
};

struct GateBack {
  Gate forward;
  const void* grad;
  void* grad_gate;
  void* grad_up;
};

// y = gelu(x + bias), in its tanh approximation
struct Gelu {
  const void* x;
  const void* bias;  // or null
  int64_t rows, d;
  void* y;
};

struct GeluBack {
  Gelu forward;
  const void* grad;
  void* grad_x;
  void* grad_bias;  // sums' type [parts, d], or null
  int64_t parts;
};

// Of each row of logits, divided by the temperature: the log-probability of its target, and the logarithm
// of the sum of exponentials; both of the sums' type.
struct Logprobs {
  const void* logits;
  const int64_t* targets;
  int64_t rows, vocabulary;
  double temperature;
  void* logprobs;
  void* lse;
};

// Writes the logits' gradient over them: grad (onehot(target) - softmax) / temperature.
struct LogprobsBack {
  void* logits;
  const int64_t* targets;
  const void* lse;
  const void* grad;
  int64_t rows, vocabulary;
  double temperature;
};

// Attention over a cache in blocks of 16 positions, to which the new tokens' keys and values are added first.
// Keys of a block lie as [k, e / x, 16, x], where x numbers are 16 bytes (1 where e is no multiple of that),
// and values as [k, 16, e].
struct Attention {
  const void* q;  // [n, h, e]
  const void* k;  // [n, k, e]
  const void* v;
  int64_t q_token, q_head, k_token, k_head, v_token, v_head;  // strides
  void* keys;
  void* values;
  const int32_t* row_of;    // [n]
  const int32_t* position;  // [n]
  const int32_t* table;     // [b, m]
  int64_t tokens, heads, key_heads, width, columns;
  double scale;
  int64_t window;    // keys that a query sees, at most
  const void* bias;  // sums' type [h, s], added to the products by key position, or null
  int64_t bias_row;
  int64_t splits;  // parts that each row's keys are taken in; 0: none, keys and values are added alone
  void* partial;   // sums' type [n, h, splits, e + 2], or null where there is one
  void* out;       // [n, h, e]
};

// A token of each row, as `sample` in sample.cpp chooses it among logits that are cut already.
struct Sample {
  const void* logits;
  int64_t rows, vocabulary;
  double temperature;
  const double* uniform;  // [rows], or null: the likeliest
  int64_t* ids;
  double* logprobs;
};

constexpr int64_t kWidest = 256;                 // head
constexpr int64_t kLargestVocabulary = 1 << 18;  // to sample from
constexpr int64_t kCacheBlock = 16;              // positions

// What a worker and a library of kernels must have in common; mirrors `Terms` in src/kernels.rs. It leads the table for ever.
struct Terms {
  int64_t version;
  int64_t widest, largest_vocabulary, cache_block;
};

// The version goes up with every change of the structures above and of the table below.
constexpr Terms kTerms{1, kWidest, kLargestVocabulary, kCacheBlock};

struct Kernels {
  Terms terms;
  void (*norm)(On, const Norm&);
  void (*norm_back)(On, const NormBack&);
  void (*rotate)(On, const Rotation&);
  void (*gate)(On, const Gate&);
  void (*gate_back)(On, const GateBack&);
  void (*gelu)(On, const Gelu&);
  void (*gelu_back)(On, const GeluBack&);
  void (*logprobs)(On, const Logprobs&);
  void (*logprobs_back)(On, const LogprobsBack&);
  void (*attention)(On, const Attention&);
  void (*sample)(On, const Sample&);
};

}  // namespace rlhf::device
