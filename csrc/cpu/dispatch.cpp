#include "dispatch.h"

#include <torch/headeronly/util/Exception.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <cstring>

namespace arec::cpu {

extern const IsaKernels kernels_portable;
#if defined(__x86_64__)
// Weak: those that the compiler could not build (setup.py) are null.
extern const IsaKernels kernels_avx2 __attribute__((weak)), kernels_avx512 __attribute__((weak)),
    kernels_avx512bf16 __attribute__((weak)), kernels_amx __attribute__((weak));
#endif

namespace {

#if defined(__x86_64__)
bool avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

// Linux lets a process use the tile registers once it has asked; all its threads may then.
bool amx() {
#if defined(__linux__)
  constexpr unsigned bf16_and_tiles = 1u << 22 | 1u << 24;
  constexpr int request_permission = 0x1023, tile_data = 18;
  static const bool granted = [] {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & bf16_and_tiles) == bf16_and_tiles &&
           syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  }();
  return granted && avx512();
#else
  return false;
#endif
}
#endif

struct Candidate {
  const char* name;
  const IsaKernels* kernels;
  bool (*machine_has)();
  bool (*fast)() = [] { return true; };  // else it runs only where it is asked for by name

  bool supported() const { return kernels && machine_has(); }
};

const Candidate kCandidates[] = {  // the fastest first
#if defined(__x86_64__)
    {"amx", &kernels_amx, amx},
    {"avx512bf16", &kernels_avx512bf16,
     [] { return avx512() && __builtin_cpu_supports("avx512bf16"); },
     // Intel's vdpbf16ps does fewer products a second than two float32 FMA ports.
     [] { return !__builtin_cpu_is("intel"); }},
    {"avx512", &kernels_avx512, avx512},
    {"avx2", &kernels_avx2,
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
    {"portable", &kernels_portable, [] { return true; }},
};

// The first, from the forced one on, that has what is asked for: after avx512bf16 comes avx512.
template <class F>
const IsaKernels& first_that(F has) {
  const char* const forced = std::getenv("AREC_CPU_ISA");
  bool below = !forced || !*forced;
  for (const Candidate& candidate : kCandidates) {
    const bool named = forced && !std::strcmp(forced, candidate.name);
    STD_TORCH_CHECK(!named || candidate.supported(),
                    "AREC_CPU_ISA: this machine or this build has no ", forced);
    below = below || named;
    if (below && candidate.supported() && (named || candidate.fast()) && has(*candidate.kernels))
      return *candidate.kernels;
  }
  STD_TORCH_CHECK(false, "AREC_CPU_ISA: expected amx, avx512bf16, avx512, avx2 or portable, got ",
                  forced);
}

}  // namespace

const IsaKernels& instruction_set() {
  return first_that([](const IsaKernels&) { return true; });
}

const Kernels<float>& float_kernels(Element element) {
  const auto of = [&](const IsaKernels& isa) {
    return element == Element::kBFloat16 ? isa.bfloat16 : isa.float32;
  };
  return *of(first_that(of));
}

}  // namespace arec::cpu
