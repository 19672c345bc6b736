// The twin of csrc/cuda/machine.h that needs no card: the same names, for a C++ compiler and CPU tensors.
// Blocks run one after another, and the threads of a block take turns on one thread of the CPU: each runs
// until it has to wait for others. What a card leaves undefined is made to go wrong here: shared memory
// starts as NaNs, copies come as late as they may, and a barrier or an instruction of a whole warp that
// some threads do not reach is an error.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <torch/csrc/stable/tensor.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <algorithm>
#include <cmath>
#include <exception>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <type_traits>
#include <vector>

#define AREC_DISPATCH_KEY CPU

// --- CUDA's own names ------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
// Of the thread whose turn it is.
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

inline uint32_t __float_as_uint(float x) { return __builtin_bit_cast(uint32_t, x); }
inline float __uint_as_float(uint32_t x) { return __builtin_bit_cast(float, x); }
inline int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
inline float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
struct float2 {
  float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }

template <class T>
T add_to(T* p, T x) {
  const T before = *p;
  *p = before + x;
  return before;
}
inline int atomicAdd(int* p, int x) { return add_to(p, x); }
inline unsigned long long atomicAdd(unsigned long long* p, unsigned long long x) { return add_to(p, x); }

// --- Threads that take turns -----------------------------------------------------------------------

namespace arec::cuda::emulated {

// switch_context goes on where `to` left off, or at the entry it was prepared for.
#if defined(__x86_64__)
// A stack pointer, with the registers that a call must preserve on the stack. (swapcontext would do, but
// for two system calls each time.)
using Context = void*;
__attribute__((naked, noipa)) inline void switch_context(Context* /*from: rdi*/, Context* /*to: rsi*/) {
  asm("push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15;"
      "mov %rsp, (%rdi); mov (%rsi), %rsp;"
      "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; ret");
}
inline void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
  void** const top = reinterpret_cast<void**>(stack + bytes);  // aligned to 16
  std::fill(top - 8, top, nullptr);
  top[-2] = reinterpret_cast<void*>(entry);
  context = top - 8;
}
#else
using Context = ucontext_t;
inline void switch_context(Context* from, Context* to) { swapcontext(from, to); }
inline void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = bytes;
  makecontext(&context, entry, 0);
}
#endif

constexpr int kMaxThreads = 256, kMaxShared = 227 << 10, kMargin = 1024;
constexpr size_t kStack = 128 << 10;
constexpr unsigned char kGarbage = 0xFF;  // NaN in every format

struct Copy {
  char* to;
  const void* from;
  int commit;
};
struct Thread {
  Context context;
  std::vector<Copy> copies;  // not done yet
  int commits;
};
struct Warp {
  uint32_t alive, ready;  // bits of lanes
  int met;                // how many lanes wait in the instruction `meeting`
  const char* meeting;
  void* lanes[32];  // what it works on
};
inline struct Block {
  Context launcher;
  Thread threads[kMaxThreads];
  Warp warps[kMaxThreads / 32];
  int n_warps, alive, at_barrier;
  const char* barrier_file;  // where the threads at the barrier called it
  int barrier_line;
  bool last_first;  // which of the threads that are ready goes on
  int shared_bytes;
  const std::function<void()>* kernel;
  std::exception_ptr error;
} block;
alignas(128) inline char shared[kMaxShared + kMargin];

inline Warp& warp() { return block.warps[threadIdx.x / 32]; }
inline uint32_t lane_bit() { return 1u << threadIdx.x % 32; }

// Lets another thread go on. Returns when another thread has made the calling one ready again.
__attribute__((noinline)) inline void leave() {
  const int from = threadIdx.x;
  warp().ready &= ~lane_bit();
  const int step = block.last_first ? block.n_warps - 1 : 1;
  for (int n = 0, w = from / 32; n < block.n_warps; ++n, w = (w + step) % block.n_warps)
    if (const uint32_t ready = block.warps[w].ready) {
      threadIdx.x = 32 * w + (block.last_first ? 31 - __builtin_clz(ready) : __builtin_ctz(ready));
      return switch_context(&block.threads[from].context, &block.threads[threadIdx.x].context);
    }
  for (const Warp& w : block.warps)
    STD_TORCH_CHECK(!w.met, "emulated CUDA: deadlock: ", w.met, " of 32 lanes of warp ", &w - block.warps,
                    " of block (", blockIdx.x, ", ", blockIdx.y, ", ", blockIdx.z, ") reached ", w.meeting);
  STD_TORCH_CHECK(false, "emulated CUDA: deadlock");
}

inline void open_barrier() {
  block.at_barrier = 0;
  for (Warp& w : block.warps) w.ready = w.alive;
}

// Where each thread begins; nothing returns to where it ends.
inline void enter() {
  try {
    (*block.kernel)();
    warp().alive &= ~lane_bit();
    if (--block.alive) {
      // Threads that have returned count as having reached all barriers.
      if (block.at_barrier == block.alive) open_barrier();
      leave();
    }
  } catch (...) {
    block.error = std::current_exception();
  }
  switch_context(&block.threads[threadIdx.x].context, &block.launcher);
}

// An instruction of the whole warp: work(lanes) runs once, when all lanes have come here, each with its
// operands, which it may change.
template <class Lane, class Work>
void meet(const char* name, Lane& mine, Work work) {
  Warp& w = warp();
  STD_TORCH_CHECK(!w.met || w.meeting == name, "emulated CUDA: a warp diverged: thread ", threadIdx.x,
                  " reached ", name, ", others ", w.meeting);
  w.meeting = name;
  w.lanes[threadIdx.x % 32] = &mine;
  if (++w.met < 32) return leave();
  Lane* lanes[32];
  for (int l = 0; l < 32; ++l) lanes[l] = static_cast<Lane*>(w.lanes[l]);
  work(lanes);
  w.met = 0;
  w.ready = ~0u;
}

template <class T>
T shuffle(const char* name, unsigned mask, T value, int from) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) >= 4);
  STD_TORCH_CHECK(mask == ~0u, "emulated CUDA: expected all lanes in the mask of ", name);
  struct Lane {
    T value;
    int from;
  } mine{value, from};
  meet(name, mine, [](Lane** lanes) {
    T values[32];
    for (int l = 0; l < 32; ++l) values[l] = lanes[l]->value;
    for (int l = 0; l < 32; ++l) lanes[l]->value = values[lanes[l]->from % 32u];
  });
  return mine.value;
}

inline char* stack(int thread) {
  static char* const memory = [] {
    void* const p = mmap(nullptr, kMaxThreads * kStack, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    STD_TORCH_CHECK(p != MAP_FAILED, "emulated CUDA: no memory for stacks");
    // A stack that grows too far meets a page that cannot be written.
    for (int t = 0; t < kMaxThreads; ++t) mprotect(static_cast<char*>(p) + t * kStack, 4096, PROT_NONE);
    return static_cast<char*>(p);
  }();
  return memory + thread * kStack;
}

inline void run_block(int threads, int shared_bytes) {
  memset(shared, kGarbage, shared_bytes + kMargin);
  block.shared_bytes = shared_bytes;
  block.n_warps = threads / 32;
  block.alive = threads;
  block.at_barrier = 0;
  // Both orders are tried, since a missing barrier does no harm in one of them.
  block.last_first = (blockIdx.x + blockIdx.y + blockIdx.z) % 2;
  block.error = nullptr;
  for (int w = 0; w < kMaxThreads / 32; ++w) {
    const uint32_t lanes = w < block.n_warps ? ~0u : 0;
    block.warps[w] = {lanes, lanes, 0, "", {}};
  }
  for (int t = 0; t < threads; ++t) {
    Thread& thread = block.threads[t];
    thread.copies.clear();
    thread.commits = 0;
    // Tops at different places of a page, for the sake of the CPU's cache.
    prepare(thread.context, stack(t), kStack - t % 32 * 640, enter);
  }
  threadIdx = dim3(block.last_first ? threads - 1 : 0, 0, 0);
  switch_context(&block.launcher, &block.threads[threadIdx.x].context);
  if (block.error) std::rethrow_exception(block.error);
  for (int i = 0; i < kMargin; ++i)
    STD_TORCH_CHECK(static_cast<unsigned char>(shared[shared_bytes + i]) == kGarbage,
                    "emulated CUDA: a block wrote past its ", shared_bytes, " bytes of shared memory");
}

inline void run_grid(dim3 blocks, int threads, int shared_bytes, const std::function<void()>& kernel) {
  static std::mutex mutex;  // there is one set of stacks
  const std::lock_guard<std::mutex> lock(mutex);
  STD_TORCH_CHECK(blocks.x && blocks.y && blocks.z && blocks.x < 1u << 31 && blocks.y < 1 << 16 &&
                      blocks.z < 1 << 16 && threads > 0 && threads <= kMaxThreads && threads % 32 == 0 &&
                      shared_bytes >= 0 && shared_bytes <= kMaxShared,
                  "emulated CUDA: invalid launch: (", blocks.x, ", ", blocks.y, ", ", blocks.z,
                  ") blocks of ", threads, " threads with ", shared_bytes, " bytes of shared memory");
  block.kernel = &kernel;
  gridDim = blocks;
  blockDim = dim3(threads);
  for (blockIdx.z = 0; blockIdx.z < blocks.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < blocks.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < blocks.x; ++blockIdx.x) run_block(threads, shared_bytes);
}

// Whether 16 bytes are in the block's shared memory, and aligned.
inline bool shared_16(const void* p) {
  const ptrdiff_t at = static_cast<const char*>(p) - shared;
  return at >= 0 && at + 16 <= block.shared_bytes && at % 16 == 0;
}

struct Operands {
  float* c;
  const uint32_t* a;
  uint32_t b[2];
};
// The nearest float to x of those not further from zero.
inline float cut_off(double x) {
  const float y = float(x);
  return std::abs(double(y)) > std::abs(x) ? std::nextafter(y, 0.f) : y;
}

// c += a b, where a register holds `per` numbers, number(register, i) being its i-th. All of c is added up
// in the same order, so that what is equal in exact arithmetic for two rows or columns stays equal; the sum
// is not rounded but cut off, as by the hardware.
template <int per, class Number>
void multiply(const char* name, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
              Number number) {
  Operands mine{c, a, {b0, b1}};
  meet(name, mine, [number](Operands** lanes) {
    constexpr int depth = 8 * per;
    float x[16][depth], y[depth][8];
    for (int l = 0; l < 32; ++l)
      for (int i = 0; i < per; ++i) {
        const int group = l / 4, k = l % 4 * per + i;
        for (int r = 0; r < 4; ++r) x[group + r % 2 * 8][k + r / 2 * depth / 2] = number(lanes[l]->a[r], i);
        for (int r = 0; r < 2; ++r) y[k + r * depth / 2][group] = number(lanes[l]->b[r], i);
      }
    for (int row = 0; row < 16; ++row) {
      double sums[8];
      for (int j = 0; j < 8; ++j) sums[j] = lanes[row % 8 * 4 + j / 2]->c[row / 8 * 2 + j % 2];
      for (int k = 0; k < depth; ++k)
        for (int j = 0; j < 8; ++j) sums[j] += double(x[row][k]) * y[k][j];
      for (int j = 0; j < 8; ++j) lanes[row % 8 * 4 + j / 2]->c[row / 8 * 2 + j % 2] = cut_off(sums[j]);
    }
  });
}

}  // namespace arec::cuda::emulated

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return arec::cuda::emulated::shuffle("__shfl_xor_sync", mask, value, threadIdx.x % 32 ^ lanes);
}
// The threads that meet must have called it in the same line: in hardware one barrier is like another, and
// those who miss one would meet the others at the next.
inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  using arec::cuda::emulated::block, arec::cuda::emulated::open_barrier, arec::cuda::emulated::leave;
  if (!block.at_barrier) block.barrier_file = file, block.barrier_line = line;
  STD_TORCH_CHECK(block.barrier_line == line && !strcmp(block.barrier_file, file),
                  "emulated CUDA: divergent barrier: thread ", threadIdx.x, " reached ", file, ":", line,
                  ", others ", block.barrier_file, ":", block.barrier_line);
  if (++block.at_barrier == block.alive) return open_barrier();
  leave();
}

namespace arec::cuda {

// --- Device code -----------------------------------------------------------------------------------

inline char* shared_memory() { return emulated::shared; }

inline float from_bf16(uint16_t x) { return __uint_as_float(uint32_t(x) << 16); }
inline uint16_t to_bf16(float x) {
  const uint32_t bits = __float_as_uint(x);
  return x != x ? 0x7FFF : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}
inline float from_fp16(uint16_t x) { return __builtin_bit_cast(_Float16, x); }
inline uint16_t to_fp16(float x) { return __builtin_bit_cast(uint16_t, _Float16(x)); }
inline uint32_t to_tf32(float x) { return x != x ? 0x7FFFFFFF : (__float_as_uint(x) + 0x1000) & ~0x1FFFu; }

inline float exp2_fast(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.f : y;
}

inline void copy_async(void* shared, const void* global) {
  STD_TORCH_CHECK(emulated::shared_16(shared) && reinterpret_cast<uintptr_t>(global) % 16 == 0,
                  "emulated CUDA: copy_async to byte ", static_cast<char*>(shared) - emulated::shared, " of ",
                  emulated::block.shared_bytes, ", from ", global);
  emulated::Thread& thread = emulated::block.threads[threadIdx.x];
  // On a card it may come at any time from now on, so nobody may still need what was here.
  memset(shared, emulated::kGarbage, 16);
  thread.copies.push_back({static_cast<char*>(shared), global, thread.commits});
}
inline void commit_copies() { ++emulated::block.threads[threadIdx.x].commits; }
template <int pending>
inline void wait_for_copies() {
  emulated::Thread& thread = emulated::block.threads[threadIdx.x];
  auto copy = thread.copies.begin();
  for (; copy != thread.copies.end() && copy->commit < thread.commits - pending; ++copy)
    memcpy(copy->to, copy->from, 16);
  thread.copies.erase(thread.copies.begin(), copy);
}

template <bool transposed>
inline void load_matrices(uint32_t (&r)[4], const void* row) {
  STD_TORCH_CHECK(emulated::shared_16(row), "emulated CUDA: load_matrices from byte ",
                  static_cast<const char*>(row) - emulated::shared, " of ", emulated::block.shared_bytes);
  struct Lane {
    const void* row;
    uint32_t* r;
  } mine{row, r};
  emulated::meet("load_matrices", mine, [](Lane** lanes) {
    for (int m = 0; m < 4; ++m) {
      uint16_t x[8][8], y[8][8];
      for (int i = 0; i < 8; ++i) memcpy(x[i], lanes[8 * m + i]->row, 16);
      for (int i = 0; i < 8; ++i)
        for (int j = 0; j < 8; ++j) y[i][j] = transposed ? x[j][i] : x[i][j];
      for (int l = 0; l < 32; ++l) memcpy(&lanes[l]->r[m], &y[l / 4][l % 4 * 2], 4);
    }
  });
}

inline void multiply_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulated::multiply<2>("multiply_bf16", c, a, b0, b1,
                        [](uint32_t x, int i) { return from_bf16(uint16_t(x >> 16 * i)); });
}
inline void multiply_fp16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulated::multiply<2>("multiply_fp16", c, a, b0, b1,
                        [](uint32_t x, int i) { return from_fp16(uint16_t(x >> 16 * i)); });
}
inline void multiply_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  // The hardware does not look at the low bits.
  emulated::multiply<1>("multiply_tf32", c, a, b0, b1,
                        [](uint32_t x, int) { return __uint_as_float(x & ~0x1FFFu); });
}

// --- Host code -------------------------------------------------------------------------------------

class Launcher {
 public:
  explicit Launcher(const torch::stable::Tensor& z) {
    STD_TORCH_CHECK(z.is_cpu(), "emulated CUDA: expected CPU tensors");
  }
  template <class... Args>
  int slots(void (*)(Args...), int, int) const {
    return 6;
  }
  void zero(void* memory, int64_t bytes) const { memset(memory, 0, bytes); }
  template <class... Args>
  void operator()(void (*kernel)(Args...), dim3 blocks, int threads, int shared_bytes, Args... args) const {
    emulated::run_grid(blocks, threads, shared_bytes, [=] { kernel(args...); });
  }
};

}  // namespace arec::cuda
