// The instruction set that runs: the best one of this machine, or the one that AREC_CPU_ISA names.
#pragma once
#include "kernels.h"

namespace arec::cpu {

// Throws for a name that is unknown or that this machine cannot run. The second: for rows of `element`.
const IsaKernels& instruction_set();
const Kernels<float>& float_kernels(Element element);

extern const Kernels<double> kernels_double;

}  // namespace arec::cpu
