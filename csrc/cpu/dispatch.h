// The instruction set that runs: the best one of this machine, or the one that AREC_CPU_ISA names.
#pragma once
#include "kernels.h"

namespace arec::cpu {

// Throws for a name that is unknown or that this machine cannot run. `pairs`: whether kernels that
// multiply pairs of bfloat16 will do.
const IsaKernels& instruction_set(bool pairs);

extern const Kernels<double> kernels_double;

}  // namespace arec::cpu
