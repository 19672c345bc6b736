"""Triton kernels for CUDA tensors, and for CPU tensors under TRITON_INTERPRET=1.

Tested on an H100 and an H200 with torch 2.11 and Triton 3.6, but for the newer parts that `forward`, `backward`
and `normalize` name; for 8.0 and 10.0 they have been compiled but not run. They are the default on GPUs, except
where `backends.CUDA_AHEAD` prefers CUDA C++.

The kernels stream tiles of the similarity matrix, which is never stored: memory is O(N D). Every
launch goes to the current stream of the tensor's device, nothing synchronises with the host, and
all can be captured in a CUDA graph. fp32 products follow `torch.set_float32_matmul_precision()` and
`torch.backends.cuda.matmul.fp32_precision`, which forward and backward of one call must find the same:
in TF32 where that is "tf32", else in fp32 on the CUDA cores.
"""

from arec_kernels.triton.backward import backward
from arec_kernels.triton.forward import forward
from arec_kernels.triton.histogram import histogram
from arec_kernels.triton.quantile import quantile
from arec_kernels.triton.uniformity import uniformity

__all__ = ["backward", "forward", "histogram", "quantile", "uniformity"]
