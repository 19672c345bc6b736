// The kernels for bfloat16.
#include "instances.h"

namespace arec::cuda {

const Kernels kernels_bf16 = kernels_of<BFloat16>();

}  // namespace arec::cuda
