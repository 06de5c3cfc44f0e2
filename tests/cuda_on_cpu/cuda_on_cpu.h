// Runs CUDA source on one CPU thread: each CUDA thread is a fiber that is put aside at
// a barrier. Blocks run one after another, and the fibers of a block in either
// direction, so that a missing barrier shows as a difference between the two.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

struct int2 { int x, y; };
struct float2 { float x, y; };
struct dim3 { int x = 1, y = 1, z = 1; };
inline int2 make_int2(int x, int y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
using std::abs;
using std::max;
using std::min;

static dim3 threadIdx, blockIdx, blockDim, gridDim;

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static

inline void atomicAdd(float* place, float value) { *place += value; }

namespace fibers {

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  dim3 thread;
  bool done = true;
};

constexpr size_t STACK = 1 << 16;
static ucontext_t scheduler;
static Fiber* running = nullptr;
static std::function<void()> body;

static void run_body() {
  body();
  running->done = true;
  swapcontext(&running->context, &scheduler);
}

// Every fiber that is not done goes on to its next barrier: a barrier of the block,
// and for warps that take different ways, of each warp.
static bool pass(std::vector<Fiber>& all, bool backwards) {
  bool any = false;
  for (size_t k = 0; k < all.size(); ++k) {
    Fiber& fiber = all[backwards ? all.size() - 1 - k : k];
    if (fiber.done) continue;
    any = true;
    running = &fiber;
    threadIdx = fiber.thread;
    swapcontext(&scheduler, &fiber.context);
  }
  return any;
}

static void launch(dim3 grid, dim3 block, bool backwards, std::function<void()> f) {
  static std::vector<Fiber> all;
  body = std::move(f);
  gridDim = grid;
  blockDim = block;
  const int n = block.x * block.y * block.z;
  if ((int)all.size() != n) all = std::vector<Fiber>(n);
  const int n_blocks = grid.x * grid.y * grid.z;
  for (int number = 0; number < n_blocks; ++number) {
    const int b = backwards ? n_blocks - 1 - number : number;
    blockIdx = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
    for (int t = 0; t < n; ++t) {
      Fiber& fiber = all[t];
      fiber.thread = {t % block.x, t / block.x % block.y, t / block.x / block.y};
      if (!fiber.stack) fiber.stack.reset(new char[STACK]);
      fiber.done = false;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = STACK;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, run_body, 0);
    }
    while (pass(all, backwards)) {
    }
  }
}

inline void barrier() { swapcontext(&running->context, &scheduler); }

}  // namespace fibers

#define __syncthreads() fibers::barrier()
#define __syncwarp() fibers::barrier()
