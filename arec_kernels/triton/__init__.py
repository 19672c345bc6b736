"""Triton kernels for CUDA tensors, and for CPU tensors under TRITON_INTERPRET=1.

Nothing here has run on a card yet: the interpreter checks the results, and compiled code is checked
for registers and shared memory. Speed on a card has not been measured, so this backend is never the
default (`registration.DEFAULTS`): it runs where `backend="triton"` asks for it.

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
