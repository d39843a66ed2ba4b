// CUDA's threads on the CPU: the threads of a block are fibers that run in turn, each up to a barrier or a
// shuffle. Slow, for tests alone, and for x86-64, whose stacks it exchanges.
#pragma once

#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <vector>

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Saves what a call must keep and the stack's place in `*from`, and goes on where `to` was saved.
extern "C" void rlhf_exchange_stacks(void** from, void* to);
asm(R"(
  .text
  .hidden rlhf_exchange_stacks
  .type rlhf_exchange_stacks, @function
rlhf_exchange_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

namespace rlhf::emulate {

// A barrier of some fibers: those that still run.
struct Barrier {
  int running = 0, arrived = 0;
  long generation = 0;

  void release_if_full() {
    if (arrived > 0 && arrived == running) {
      arrived = 0;
      ++generation;
    }
  }
};

struct Fiber {
  void* place = nullptr;  // of its stack
  std::vector<char> stack;
  bool done = false;
  bool turn = false;  // of its shuffles
};

struct Block {
  dim3 grid, block, index, thread;
  int current = 0;
  std::vector<Fiber> fibers;
  Barrier all;
  std::vector<Barrier> warps;
  // What each thread hands to a shuffle: of two places the next, so that one barrier is enough.
  std::array<std::vector<double>, 2> exchanged;
  void* scheduler = nullptr;
  std::function<void()> body;
  long waits_in_vain = 0;
};

inline Block& block() {
  static Block it;
  return it;
}

inline void wait(Barrier& barrier) {
  Block& b = block();
  const long generation = barrier.generation;
  ++barrier.arrived;
  barrier.release_if_full();
  while (barrier.generation == generation) {
    if (++b.waits_in_vain > 1000 * static_cast<long>(b.fibers.size())) {
      std::fprintf(stderr, "emulated kernel: threads wait at different barriers\n");
      std::abort();
    }
    rlhf_exchange_stacks(&b.fibers[b.current].place, b.scheduler);
  }
  b.waits_in_vain = 0;
}

inline void enter() {
  Block& b = block();
  b.body();
  b.fibers[b.current].done = true;
  Barrier& warp = b.warps[b.current / 32];
  --warp.running;
  warp.release_if_full();
  --b.all.running;
  b.all.release_if_full();
  rlhf_exchange_stacks(&b.fibers[b.current].place, b.scheduler);
}

inline void run_block() {
  Block& b = block();
  const int threads = static_cast<int>(b.block.x * b.block.y);
  b.fibers.resize(threads);
  for (auto& places : b.exchanged) {
    places.resize(threads);
  }
  b.all = {threads};
  b.warps.assign((threads + 31) / 32, Barrier{});
  for (int i = 0; i < threads; ++i) {
    ++b.warps[i / 32].running;
    Fiber& fiber = b.fibers[i];
    fiber.done = fiber.turn = false;
    fiber.stack.resize(64 << 10);
    // As if `enter` had been called, and had then called the exchange: its address behind six registers.
    const auto end = reinterpret_cast<uintptr_t>(fiber.stack.data() + fiber.stack.size());
    void** place = reinterpret_cast<void**>(end / 16 * 16) - 2;
    *place = reinterpret_cast<void*>(&enter);
    fiber.place = place - 6;
  }
  for (int left = threads; left > 0;) {
    for (int i = 0; i < threads; ++i) {
      if (b.fibers[i].done) {
        continue;
      }
      b.current = i;
      b.thread = dim3(i % b.block.x, i / b.block.x, 0);
      rlhf_exchange_stacks(&b.scheduler, b.fibers[i].place);
      left -= b.fibers[i].done;
    }
  }
}

inline void launch(dim3 grid, dim3 threads, const std::function<void()>& body) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  Block& b = block();
  b.grid = grid;
  b.block = threads;
  b.body = body;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        b.index = dim3(x, y, z);
        run_block();
      }
    }
  }
}

template <typename A>
A shuffle(A x, int from) {
  Block& b = block();
  Barrier& warp = b.warps[b.current / 32];
  Fiber& fiber = b.fibers[b.current];
  auto& places = b.exchanged[fiber.turn];
  fiber.turn = !fiber.turn;
  places[b.current] = static_cast<double>(x);
  wait(warp);
  return static_cast<A>(places[b.current / 32 * 32 + from]);
}

}  // namespace rlhf::emulate

#define threadIdx (rlhf::emulate::block().thread)
#define blockIdx (rlhf::emulate::block().index)
#define blockDim (rlhf::emulate::block().block)
#define gridDim (rlhf::emulate::block().grid)

inline void __syncthreads() { rlhf::emulate::wait(rlhf::emulate::block().all); }

inline void __syncwarp() {
  auto& b = rlhf::emulate::block();
  rlhf::emulate::wait(b.warps[b.current / 32]);
}

template <typename A>
A __shfl_xor_sync(unsigned, A x, int step) {
  return rlhf::emulate::shuffle(x, (rlhf::emulate::block().current % 32) ^ step);
}

template <typename A>
A __shfl_sync(unsigned, A x, int from) {
  return rlhf::emulate::shuffle(x, from);
}
