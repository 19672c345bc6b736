// The kernels for float32.
#include "instances.h"

namespace arec::cuda {

const Kernels kernels_fp32 = kernels_of<Float32>();

}  // namespace arec::cuda
