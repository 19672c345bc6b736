"""Builds arec_kernels._C and _C_cuda; everything else about the package is in pyproject.toml.

The CPU kernels are one source compiled once for each instruction set that the compiler knows. Without
a C++ compiler that is new enough (gcc 11, clang 14) the package installs without the extension and runs
on the PyTorch reference. The CUDA kernels are built where torch was built with CUDA and nvcc is there,
for the architectures of TORCH_CUDA_ARCH_LIST or the cards of this machine; AREC_CUDA=0 leaves them out,
and with AREC_CUDA=1 the installation fails where they cannot be built.
"""

from __future__ import annotations

import ast
import os
import platform
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

from setuptools import setup

try:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
except ImportError:
    sys.exit("arec: building needs torch: pip install 'torch>=2.10,<2.14', or leave build isolation on")

TORCH_FLOOR = (2, 10)
TORCH_TARGET = "0x020a000000000000"  # the stable ABI of TORCH_FLOOR
CPU = Path("csrc/cpu")
CUDA = Path("csrc/cuda")
WANT_CUDA = os.environ.get("AREC_CUDA")  # "0": never; "1": or fail; unset: where they can be built
CUDA_ARCHITECTURES = "8.0 9.0+PTX"  # where there is neither a list nor a card: newer ones compile the rest
KERNELS = CPU / "kernels.cpp"
CPU_EXTENSION = "arec_kernels._C"
# Which arguments the kernels take: Python uses no extension that was built for others.
SCHEMAS = next(
    ast.literal_eval(node.value)
    for node in ast.parse(Path("arec_kernels/registration.py").read_text()).body
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SCHEMAS"
)
# Without debugging information, nine tenths of the file, and without the folder of the build in it.
FLAGS = ["-O3", "-std=c++17", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}",
         f"-DAREC_SCHEMAS={zlib.crc32(repr(SCHEMAS).encode()) >> 1}"]
SMALL = ["-g0", f"-ffile-prefix-map={Path.cwd()}=."]
HIDDEN = "-fvisibility=hidden"
CUDA_FLAGS = [*FLAGS, "-DUSE_CUDA"]
COMPILER = os.environ.get("CXX", "c++").split()
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq",
          "-Wno-uninitialized", "-Wno-maybe-uninitialized"]  # gcc 12's own AVX-512 header
INSTRUCTION_SETS = {"portable": []}
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTION_SETS |= {"avx2": AVX2, "avx512": AVX512, "avx512bf16": [*AVX512, "-mavx512bf16"],
                         "amx": [*AVX512, "-mamx-tile", "-mamx-bf16"]}

if tuple(int(part) for part in torch.__version__.split(".")[:2]) < TORCH_FLOOR:
    sys.exit(f"arec: expected torch >= {'.'.join(map(str, TORCH_FLOOR))}, found {torch.__version__}")
if WANT_CUDA not in (None, "", "0", "1"):
    sys.exit(f"arec: AREC_CUDA: expected 0, 1 or nothing, found {WANT_CUDA}")


def headers(folder: Path) -> list[str]:
    """What the sources of an extension include, of this package."""
    return ["csrc/loss.h", *(str(path) for path in sorted(folder.glob("*.h")))]


def refusal(flags: list[str]) -> str:
    """Why the compiler does not compile with these flags what the kernels cannot do without; empty: it does."""
    source = "float value(int bits) { return __builtin_bit_cast(float, bits); }"  # gcc has it from 11 on
    command = [*COMPILER, *flags, "-fsyntax-only", "-x", "c++", "-"]
    try:
        run = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return run.stderr.strip() or f"exit code {run.returncode}" if run.returncode else ""


class Build(BuildExtension):
    """Adds the kernels, which torch's BuildExtension could compile with one list of flags only."""

    def build_extensions(self):
        try:
            super().build_extensions()
        # Whatever it is: another CUDA than torch's, a compiler that nvcc does not know, an old card, …
        except Exception as error:
            rest = [extension for extension in self.extensions if extension.name == CPU_EXTENSION]
            if len(rest) == len(self.extensions) or WANT_CUDA == "1":
                raise
            print(f"arec: {error}\narec: installing without the CUDA C++ kernels", file=sys.stderr)
            self.extensions[:] = rest
            super().build_extensions()
        built = {extension.name.rpartition(".")[2] for extension in self.extensions}
        for folder in (Path("arec_kernels"), Path(self.build_lib, "arec_kernels")):
            for library in folder.glob("_C*.*"):
                if library.name.partition(".")[0] not in built:  # of an earlier build
                    library.unlink()

    def build_extension(self, extension):
        if extension.name != CPU_EXTENSION:
            return super().build_extension(extension)
        for name, flags in INSTRUCTION_SETS.items():
            if refusal(flags):
                print(f"arec: {COMPILER[0]} does not compile for {name}: installing without these "
                      "kernels", file=sys.stderr)
                continue
            extension.extra_objects += self.compiler.compile(
                [str(KERNELS)],
                output_dir=str(Path(self.build_temp) / name),
                include_dirs=extension.include_dirs,
                depends=extension.depends,
                extra_postargs=[*extension.extra_compile_args["cxx"], "-fno-math-errno",
                                f"-DAREC_ISA={name}", *flags],
            )
        return super().build_extension(extension)


def cpu_extensions() -> list:
    if lack := refusal([]):
        print(f"arec: {COMPILER[0]} does not compile C++ with __builtin_bit_cast ({lack}): installing without "
              "the compiled kernels; arec_kernels will run on its PyTorch reference. Once there is a compiler, "
              "pip wants --no-cache-dir --force-reinstall", file=sys.stderr)
        return []
    return [
        CppExtension(
            CPU_EXTENSION,
            ["csrc/library.cpp", *(str(path) for path in sorted(CPU.glob("*.cpp")) if path != KERNELS)],
            depends=[*headers(CPU), str(KERNELS), "setup.py"],
            extra_compile_args={"cxx": [*FLAGS, *SMALL, HIDDEN]},
            py_limited_api=True,
        )
    ]


def cuda_libraries() -> list[str]:
    """Where nvcc says that its libraries are. torch looks in CUDA_HOME/lib64, which is elsewhere where
    nvcc is a script or conda's."""
    command = [str(Path(CUDA_HOME) / "bin" / "nvcc"), "--dryrun", str(CUDA / "ops.cu")]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    return [path for path in re.findall(r'"-L([^"]+)"', said) if Path(path).is_dir()]


def cuda_extensions() -> list:
    if WANT_CUDA == "0":
        return []
    lack = None
    if not torch.version.cuda:
        lack = "this build of torch has no CUDA"
    elif not CUDA_HOME or not shutil.which(str(Path(CUDA_HOME) / "bin" / "nvcc")):
        lack = "nvcc is not there"
    if lack and WANT_CUDA == "1":
        sys.exit(f"arec: {lack}: cannot build the CUDA C++ kernels that AREC_CUDA=1 asks for")
    if lack:
        if torch.version.cuda:
            print(f"arec: {lack}: installing without the CUDA C++ kernels", file=sys.stderr)
        return []
    if not torch.cuda.is_available():
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES)
    return [
        CUDAExtension(
            "arec_kernels._C_cuda",
            [str(path) for path in sorted(CUDA.glob("*.cu"))],
            include_dirs=[str(CUDA.resolve())],
            library_dirs=cuda_libraries(),
            depends=[*headers(CUDA), "setup.py"],
            extra_compile_args={"cxx": [*CUDA_FLAGS, *SMALL, HIDDEN],
                                "nvcc": [*CUDA_FLAGS, "-Xcompiler", HIDDEN]},
            py_limited_api=True,
        )
    ]


setup(
    ext_modules=[*cuda_extensions(), *cpu_extensions()],  # the first may fail
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
