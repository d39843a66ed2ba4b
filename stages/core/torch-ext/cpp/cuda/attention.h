// Attention over keys and values in blocks of 16 positions. A warp takes a block of keys at a time; warps,
// and parts of the grid where rows are few, keep a running softmax each (Milakov and Gimelshein 2018), and
// are joined at the end.
#pragma once

#include "../device.h"
#include "numbers.h"

namespace rlhf::device {

constexpr int kBlock = kCacheBlock;
constexpr int kWarps = 4;     // of a block of threads
constexpr int kTogether = 4;  // heads that share a key's load, at most
constexpr int kHeld = 8;      // numbers of a head's output that a thread sums

// Adds the new tokens' keys and values to the cache; a block a token.
template <typename T>
RLHF_KERNEL append(Attention it, int64_t x) {
  const int64_t token = blockIdx.x, position = it.position[token], width = it.width;
  const int64_t block = it.table[it.row_of[token] * it.columns + position / kBlock];
  const int64_t place = position % kBlock;
  const T* k = static_cast<const T*>(it.k) + token * it.k_token;
  const T* v = static_cast<const T*>(it.v) + token * it.v_token;
  for (int64_t at = threadIdx.x; at < it.key_heads * width; at += blockDim.x) {
    const int64_t head = at / width, e = at % width;
    const int64_t base = (block * it.key_heads + head) * width * kBlock;
    static_cast<T*>(it.keys)[base + (e / x * kBlock + place) * x + e % x] = k[head * it.k_head + e];
    static_cast<T*>(it.values)[base + place * width + e] = v[head * it.v_head + e];
  }
}

// The softmax of the keys that a warp has seen, for one query.
template <typename A>
struct Running {
  A top, sum;
};

// What a block of threads shares while it attends with H heads.
template <typename A, int H>
struct Shared {
  A q[H][kWidest];
  A out[H][kWidest];
  Running<A> of_warps[kWarps][H];
};

// Products of H queries with the 16 keys of a block: lanes p and p + 16 get that of key p.
template <typename T, int X, int H>
RLHF_DEVICE void products(const T* keys, int64_t width, const Shared<Sum<T>, H>& shared,
                          Sum<T> (&scores)[H]) {
  using A = Sum<T>;
  const int place = lane() % kBlock;
  for (int h = 0; h < H; ++h) {
    scores[h] = 0;
  }
  for (int64_t c = lane() / kBlock; c < width / X; c += 2) {
    const auto key = load<X>(keys + (c * kBlock + place) * X);
    for (int j = 0; j < X; ++j) {
      const A k = A(key.at[j]);
      for (int h = 0; h < H; ++h) {
        scores[h] += k * shared.q[h][c * X + j];
      }
    }
  }
  for (int h = 0; h < H; ++h) {
    scores[h] += __shfl_xor_sync(kAll, scores[h], kBlock);
  }
}

// Which numbers of a value a lane sums: `packs` of X numbers from pack `first` on, a warp apart, of every
// `step`-th position from `position` on.
struct Share {
  int first, packs, position, step;
};

RLHF_DEVICE Share share_of(int64_t width, int x) {
  const int packs = int(width / x);
  if (packs >= kWarp) {
    return {lane(), (packs - lane() + kWarp - 1) / kWarp, 0, 1};
  }
  const int step = kWarp / packs;
  return {lane() % packs, lane() / packs < step ? 1 : 0, lane() / packs, step};
}

// Adds a block's values, weighted; lane p has the weight of position p.
template <typename T, int X, int H>
RLHF_DEVICE void mix(const T* values, int64_t width, const Share& share, const Sum<T> (&weights)[H],
                     int seen, Sum<T> (&held)[H][kHeld]) {
  using A = Sum<T>;
  for (int turn = 0; turn < kBlock; turn += share.step) {
    const int position = turn + share.position;
    A weight[H];
    for (int h = 0; h < H; ++h) {
      weight[h] = __shfl_sync(kAll, weights[h], position % kBlock);
    }
    // Places that no token has filled hold anything.
    if (position >= seen) {
      continue;
    }
    // As many turns for every lane: what they sum stays in registers.
    for (int i = 0; i < kHeld / X; ++i) {
      if (i < share.packs) {
        const auto value = load<X>(values + position * width + (share.first + i * kWarp) * X);
        for (int j = 0; j < X; ++j) {
          for (int h = 0; h < H; ++h) {
            held[h][i * X + j] += weight[h] * A(value.at[j]);
          }
        }
      }
    }
  }
}

// The keys of one query, and the blocks among them that this block of threads reads.
struct Reach {
  int64_t start, end;  // positions
  int64_t from, to;    // blocks
};

RLHF_DEVICE Reach reach_of(const Attention& it, int64_t token) {
  Reach reach;
  reach.end = int64_t(it.position[token]) + 1;
  reach.start = reach.end > it.window ? reach.end - it.window : 0;
  const int64_t first = reach.start / kBlock, last = (reach.end + kBlock - 1) / kBlock;
  const int64_t each = (last - first + it.splits - 1) / it.splits;
  reach.from = first + each * blockIdx.z;
  reach.to = reach.from + each < last ? reach.from + each : last;
  return reach;
}

// A warp's blocks: every fourth.
template <typename T, int X, int H>
RLHF_DEVICE void attend_warp(const Attention& it, int64_t token, int64_t head, const Reach& reach,
                             const Shared<Sum<T>, H>& shared, Running<Sum<T>> (&running)[H],
                             Sum<T> (&held)[H][kHeld]) {
  using A = Sum<T>;
  const int64_t key_head = blockIdx.y, size = it.width * kBlock;
  const int32_t* table = it.table + it.row_of[token] * it.columns;
  const Share share = share_of(it.width, X);
  for (int64_t block = reach.from + warp(); block < reach.to; block += kWarps) {
    const int64_t base = (table[block] * it.key_heads + key_head) * size;
    A scores[H];
    products<T, X, H>(static_cast<const T*>(it.keys) + base, it.width, shared, scores);
    const int64_t position = block * kBlock + lane() % kBlock;
    const bool seen = position >= reach.start && position < reach.end;
    for (int h = 0; h < H; ++h) {
      if (it.bias != nullptr && seen) {
        scores[h] += static_cast<const A*>(it.bias)[(head + h) * it.bias_row + position];
      }
      scores[h] = seen ? scores[h] : kNone<A>;
      // Of each block at least one key is seen, so this is a number.
      const A block_top = warp_max(scores[h], kBlock);
      const A top = block_top > running[h].top ? block_top : running[h].top;
      const A kept = exp(running[h].top - top);
      const A weight = exp(scores[h] - top);
      // Both halves of the warp hold the same 16 weights.
      running[h] = {top, running[h].sum * kept + warp_sum(weight) / 2};
      for (int i = 0; i < kHeld; ++i) {
        held[h][i] *= kept;
      }
      scores[h] = weight;
    }
    const int64_t left = reach.end - block * kBlock;
    mix<T, X, H>(static_cast<const T*>(it.values) + base, it.width, share, scores,
                 int(left < kBlock ? left : kBlock), held);
  }
}

// Joins the warps: afterwards `shared.out` is the weighted sum, and the returned softmax that of all.
template <typename T, int X, int H>
RLHF_DEVICE void join_warps(int64_t width, Shared<Sum<T>, H>& shared,
                            const Running<Sum<T>> (&running)[H], const Sum<T> (&held)[H][kHeld],
                            Running<Sum<T>> (&all)[H]) {
  using A = Sum<T>;
  const Share share = share_of(width, X);
  for (int h = 0; h < H; ++h) {
    if (lane() == 0) {
      shared.of_warps[warp()][h] = running[h];
    }
    for (int64_t e = threadIdx.x; e < width; e += blockDim.x) {
      shared.out[h][e] = 0;
    }
  }
  __syncthreads();
  A kept[H];
  for (int h = 0; h < H; ++h) {
    all[h] = {kNone<A>, 0};
    for (int w = 0; w < kWarps; ++w) {
      const A top = shared.of_warps[w][h].top;
      all[h].top = top > all[h].top ? top : all[h].top;
    }
    for (int w = 0; w < kWarps; ++w) {
      const Running<A> one = shared.of_warps[w][h];
      all[h].sum += one.sum == 0 ? A(0) : one.sum * exp(one.top - all[h].top);
    }
    kept[h] = running[h].sum == 0 ? A(0) : exp(running[h].top - all[h].top);
  }
  // In one order: each warp, and in it each group of lanes that share numbers.
  for (int turn = 0; turn < kWarps * share.step; ++turn) {
    if (warp() == turn / share.step && share.position == turn % share.step) {
      for (int i = 0; i < kHeld / X; ++i) {
        for (int j = 0; j < X && i < share.packs; ++j) {
          for (int h = 0; h < H; ++h) {
            shared.out[h][(share.first + i * kWarp) * X + j] += held[h][i * X + j] * kept[h];
          }
        }
      }
    }
    __syncthreads();
  }
}

// H heads from `head` on, of the block's token.
template <typename T, int X, int H>
RLHF_DEVICE void attend_heads(const Attention& it, int64_t head) {
  using A = Sum<T>;
  RLHF_SHARED Shared<A, H> shared;
  const int64_t token = blockIdx.x, split = blockIdx.z, width = it.width;
  const Reach reach = reach_of(it, token);
  __syncthreads();
  for (int h = 0; h < H; ++h) {
    const T* q = static_cast<const T*>(it.q) + token * it.q_token + (head + h) * it.q_head;
    for (int64_t e = threadIdx.x; e < width; e += blockDim.x) {
      shared.q[h][e] = A(q[e]) * A(it.scale);
    }
  }
  __syncthreads();
  Running<A> running[H], all[H];
  A held[H][kHeld] = {};
  for (int h = 0; h < H; ++h) {
    running[h] = {kNone<A>, 0};
  }
  attend_warp<T, X, H>(it, token, head, reach, shared, running, held);
  join_warps<T, X, H>(width, shared, running, held, all);
  for (int h = 0; h < H; ++h) {
    const int64_t row = token * it.heads + head + h;
    if (it.partial == nullptr) {
      T* out = static_cast<T*>(it.out) + row * width;
      for (int64_t e = threadIdx.x; e < width; e += blockDim.x) {
        out[e] = T(shared.out[h][e] / all[h].sum);
      }
      continue;
    }
    A* partial = static_cast<A*>(it.partial) + (row * it.splits + split) * (width + 2);
    for (int64_t e = threadIdx.x; e < width; e += blockDim.x) {
      partial[e] = shared.out[h][e];
    }
    if (threadIdx.x == 0) {
      partial[width] = all[h].top;
      partial[width + 1] = all[h].sum;
    }
  }
}

// Grid: tokens, key heads, splits.
template <typename T, int X>
RLHF_KERNEL attend(Attention it) {
  const int64_t group = it.heads / it.key_heads, first = blockIdx.y * group;
  int64_t g = 0;
  for (; g + kTogether <= group; g += kTogether) {
    attend_heads<T, X, kTogether>(it, first + g);
  }
  for (; g + 2 <= group; g += 2) {
    attend_heads<T, X, 2>(it, first + g);
  }
  for (; g < group; ++g) {
    attend_heads<T, X, 1>(it, first + g);
  }
}

// The splits of a head of a token, as one; a block each.
template <typename T>
RLHF_KERNEL join_splits(Attention it) {
  using A = Sum<T>;
  const int64_t row = blockIdx.x, width = it.width;
  const A* partial = static_cast<const A*>(it.partial) + row * it.splits * (width + 2);
  A top = kNone<A>;
  for (int64_t s = 0; s < it.splits; ++s) {
    const A other = partial[s * (width + 2) + width];
    top = other > top ? other : top;
  }
  for (int64_t e = threadIdx.x; e < width; e += blockDim.x) {
    A out = 0, sum = 0;
    for (int64_t s = 0; s < it.splits; ++s) {
      const A* of_split = partial + s * (width + 2);
      if (of_split[width + 1] == 0) {
        continue;  // it had no keys
      }
      const A kept = exp(of_split[width] - top);
      out += of_split[e] * kept;
      sum += of_split[width + 1] * kept;
    }
    static_cast<T*>(it.out)[row * width + e] = T(out / sum);
  }
}

}  // namespace rlhf::device
