// Everything that only a CUDA card or its compiler knows: instructions without a C++ name, launches,
// streams. The kernels are plain C++ but for this file, so that another one of the same name can run
// them without a card: tests/arec_kernels/emulated_cuda/machine.h does.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

namespace arec::cuda {

// The dispatch key of the ops, and what their tensors must be on.
#define AREC_DISPATCH_KEY CUDA

// --- Device code -----------------------------------------------------------------------------------

// A block's shared memory, as much as its launch asked for.
__device__ inline char* shared_memory() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}

// 16-bit numbers are kept as their bits.
__device__ inline float from_bf16(uint16_t x) { return __uint_as_float(uint32_t(x) << 16); }
__device__ inline uint16_t to_bf16(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
__device__ inline float from_fp16(uint16_t x) { return __half2float(__ushort_as_half(x)); }
__device__ inline uint16_t to_fp16(float x) { return __half_as_ushort(__float2half_rn(x)); }
// The nearest TF32 number, as float32 bits.
__device__ inline uint32_t to_tf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
}

// 2^x on the special-function units, off by 2 ulp at most; what is below float32's smallest is 0.
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 16 bytes from global to shared memory, both aligned to 16, without waiting.
__device__ inline void copy_async(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   uint32_t(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most `pending` of the calling thread's commits are not done.
template <int pending>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Four 8x8 matrices of 16-bit numbers. Lane l gives the address of row l % 8 of matrix l / 8 and gets, of
// matrix m, the numbers 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 in r[m]; with `transposed`, of the
// transposed matrix.
template <bool transposed>
__device__ inline void load_matrices(uint32_t (&r)[4], const void* row) {
  const uint32_t at = uint32_t(__cvta_generic_to_shared(row));
  if constexpr (transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

// c += a b for a warp, fragments as in the PTX manual: a (16, k) row-major, b (k, 8) column-major, c (16, 8)
// float32; k is 16 for 16-bit numbers and 8 for TF32.
__device__ inline void multiply_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void multiply_fp16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void multiply_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// --- Host code -------------------------------------------------------------------------------------

inline void check(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();  // it is reported here, and by no later call
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA: ", cudaGetErrorString(error));
}

// Makes a tensor's device and its current stream those of the launches that follow.
class Launcher {
 public:
  explicit Launcher(const torch::stable::Tensor& z) : guard_(z.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(z.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
    int major = 0;
    const auto attribute = [&](int& value, cudaDeviceAttr which) {
      check(cudaDeviceGetAttribute(&value, which, z.get_device_index()));
    };
    attribute(multiprocessors_, cudaDevAttrMultiProcessorCount);
    attribute(most_shared_bytes_, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    attribute(major, cudaDevAttrComputeCapabilityMajor);
    STD_TORCH_CHECK(major >= 8, "backend 'cuda' cannot run here: expected compute capability 8.0 or newer, got ",
                    major, ".x");
  }
  // Blocks of a kernel that the card runs at once.
  template <class... Args>
  int slots(void (*kernel)(Args...), int threads, int shared_bytes) const {
    int blocks = 0;
    allow(kernel, shared_bytes);
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes));
    return blocks * multiprocessors_;
  }
  void zero(void* memory, int64_t bytes) const { check(cudaMemsetAsync(memory, 0, bytes, stream_)); }
  template <class... Args>
  void operator()(void (*kernel)(Args...), dim3 blocks, int threads, int shared_bytes, Args... args) const {
    allow(kernel, shared_bytes);
    kernel<<<blocks, threads, shared_bytes, stream_>>>(args...);
    check(cudaGetLastError());
  }

 private:
  // More than 48 KiB have to be asked for: as much as there is, so that a launch by another thread, which may
  // need more than this one, still can run.
  template <class... Args>
  void allow(void (*kernel)(Args...), int shared_bytes) const {
    if (shared_bytes > 48 << 10)
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most_shared_bytes_));
  }

  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
  int multiprocessors_;
  int most_shared_bytes_;
};

}  // namespace arec::cuda
