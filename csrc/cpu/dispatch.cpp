#include "dispatch.h"

#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <cstring>

namespace arec::cpu {

extern const IsaKernels kernels_portable;
#if defined(__x86_64__)
extern const IsaKernels kernels_avx2, kernels_avx512, kernels_avx512bf16;
#endif

namespace {

struct Candidate {
  const char* name;
  const IsaKernels* kernels;
  bool (*supported)();
  bool (*fast)() = [] { return true; };  // else it runs only where it is asked for by name
};

const Candidate kCandidates[] = {  // the fastest first
#if defined(__x86_64__)
    {"avx512bf16", &kernels_avx512bf16,
     [] { return bool(__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512dq")); },
     // Intel's vdpbf16ps does fewer products a second than two float32 FMA ports.
     [] { return !__builtin_cpu_is("intel"); }},
    {"avx512", &kernels_avx512,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
     }},
    {"avx2", &kernels_avx2,
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
    {"portable", &kernels_portable, [] { return true; }},
};

}  // namespace

const IsaKernels& instruction_set(bool pairs) {
  const char* const forced = std::getenv("AREC_CPU_ISA");
  bool below = false;  // at or after the forced one: bfloat16 pairs give way to plain AVX-512
  for (const Candidate& candidate : kCandidates) {
    const bool named = forced && !std::strcmp(forced, candidate.name);
    STD_TORCH_CHECK(!named || candidate.supported(), "AREC_CPU_ISA: this machine has no ", forced);
    below = below || !forced || !*forced || named;
    if (below && candidate.supported() && (named || candidate.fast()) &&
        (pairs || candidate.kernels->kernels.pack == 1))
      return *candidate.kernels;
  }
  STD_TORCH_CHECK(false, "AREC_CPU_ISA: expected avx512bf16, avx512, avx2 or portable, got ", forced);
}

}  // namespace arec::cpu
