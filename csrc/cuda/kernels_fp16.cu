// The kernels for float16.
#include "instances.h"

namespace arec::cuda {

const Kernels kernels_fp16 = kernels_of<Float16>();

}  // namespace arec::cuda
