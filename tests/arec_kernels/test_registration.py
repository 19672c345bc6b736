"""The ops as PyTorch sees them: schemas, fakes, compilation, derivatives, a missing extension."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from available import needs_cpp, needs_gpu
from correctness import clear_thresholds, make_groups, make_rows
from torch.autograd.forward_ad import dual_level, make_dual

from arec_kernels import (
    adaptive_info_nce,
    alignment_uniformity,
    registration,
    row_similarity_quantile,
)
from arec_kernels.backends import CUDA_AHEAD, choose_backend
from arec_kernels.registration import EXTENSION_ERRORS, EXTENSIONS, IMPLEMENTED, OPS

OPTIONS = (0.5, True, 0.3, "negatives", "label")


@pytest.mark.parametrize(
    ("dtype", "permuted", "grouped"), [(torch.float32, False, True), (torch.bfloat16, True, False)]
)
def test_opcheck(compiled, device, dtype, permuted, grouped) -> None:
    z = make_rows(20, 6, dtype, device=device)
    z = z.T.contiguous().T if permuted else z
    k = clear_thresholds(z)
    groups = make_groups(20, device) if grouped else None
    op = {name: backends[compiled] for name, backends in OPS.items()}
    one = torch.ones((), device=device)
    for reduction, upstream, bins, width in [
        ("none", one.expand(20), 5, 0.1), ("mean", one, 0, 0.0), ("sum", one, 5, 0.1),
    ]:
        options = (*OPTIONS, reduction)
        torch.library.opcheck(op["forward"], (z, k, groups, *options, bins, 0, 10))
        _, log_d, m, s, _ = op["forward"](z, k, groups, *options, bins, 0, 10)
        torch.library.opcheck(
            op["backward"], (upstream, z, k, groups, log_d, m, s, *options, width, 0, 10)
        )
    torch.library.opcheck(op["histogram"], (z, groups, 5))
    torch.library.opcheck(op["quantile"], (z, 0.4, groups))
    torch.library.opcheck(op["uniformity"], (z,))


def test_ops_refuse_other_reductions_and_gradients(compiled, device) -> None:
    if compiled == "triton":
        pytest.skip("the Triton op leaves that to its callers")
    z = make_rows(6, 4, device=device)
    k = clear_thresholds(z)
    forward, backward = (OPS[name][compiled] for name in ("forward", "backward"))
    with pytest.raises(RuntimeError, match="reduction: expected mean, sum or none, got max"):
        forward(z, k, None, *OPTIONS, "max", 0, 0, 3)
    _, *statistics, _ = forward(z, k, None, *OPTIONS, "none", 0, 0, 3)
    for reduction, shape in [("mean", (6,)), ("sum", (1,)), ("none", ()), ("none", (5,))]:
        upstream = torch.ones(shape, device=device)
        with pytest.raises(RuntimeError, match="grad_loss: expected one value"):
            backward(upstream, z, k, None, *statistics, *OPTIONS, reduction, 0.0, 0, 3)


@pytest.mark.parametrize("temperature", [1.0, 0.02])
@pytest.mark.parametrize("n", [6, 140, 5000])
def test_local_rows_are_those_of_all(compiled, device, n, temperature) -> None:
    if n > 140 and (compiled != "cpp" or temperature < 1):
        pytest.skip("of several blocks only where blocks are cut by it")
    z = make_rows(n, 5, device=device)
    k, groups = clear_thresholds(z), make_groups(n, device)
    upstream = torch.rand(n, device=device)
    forward, backward = (OPS[name][compiled] for name in ("forward", "backward"))
    options = (temperature, True, 0.7, "negatives", "label", "none")
    *rows, _ = forward(z, k, groups, *options, 0, 0, n // 2)
    _, *statistics = rows
    gradients = backward(upstream, z, k, groups, *statistics, *options, 0.1, 0, n // 2)
    for begin, end in [(0, 1), (n // 5, n // 3), (n // 8, n // 2 - 1), (n // 2 - 1, n // 2)]:
        local = torch.arange(n, device=device).view(2, -1)[:, begin:end].flatten()
        *some, _ = forward(z, k, groups, *options, 0, begin, end)
        some += backward(upstream, z, k, groups, *statistics, *options, 0.1, begin, end)
        for values, expected in zip(some, (*rows, *gradients), strict=True):
            assert torch.equal(values[local], expected[local])


def differentiate(loss, z, k):
    z, k = z.detach().requires_grad_(), k.detach().requires_grad_()
    rows, stats = loss(z, k)
    return rows, *torch.autograd.grad(rows.sum(), (z, k)), *stats


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_compiled_equals_eager(compiled: str, device: str, temperature: float) -> None:
    def loss(z, k):
        return adaptive_info_nce(z, k, temperature=temperature, threshold_grad=0.1,
                                 groups=groups, histogram_bins=4, reduction="none", backend=compiled)

    groups = make_groups(30, device)
    z = make_rows(30, 5, device=device)
    k = clear_thresholds(z, groups)
    torch.compiler.reset()
    result = differentiate(torch.compile(loss, fullgraph=True), z, k)
    for a, b in zip(result, differentiate(loss, z, k), strict=True):
        assert torch.equal(a, b)


@needs_cpp
def test_fakes_of_statistics_in_float64() -> None:
    z = make_rows(8, 3, torch.float64)
    torch.library.opcheck(OPS["quantile"]["cpp"], (z, 0.4, None))
    torch.library.opcheck(OPS["uniformity"]["cpp"], (z,))


@needs_gpu
def test_default_backend_on_a_gpu() -> None:
    ahead = CUDA_AHEAD.get(torch.cuda.get_device_capability(), {}).get(torch.bfloat16, 0)
    built = ("cuda", "cuda") in IMPLEMENTED
    for n in (8, ahead, ahead + 2):
        z = torch.zeros(n, 4, dtype=torch.bfloat16, device="cuda")
        assert choose_backend(None, z) == ("cuda" if built and n <= ahead else "triton")
    assert choose_backend(None, z.double()) == "reference"


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_compiled_default_backend_and_scalar_threshold(device: str) -> None:
    torch.compiler.reset()

    def loss(z: torch.Tensor, k: float) -> torch.Tensor:
        return adaptive_info_nce(z * 2, k)

    compiled = torch.compile(loss, fullgraph=True)
    # The second compiles for any number of rows, or any threshold: with more than PyTorch has patience for.
    for n, k in [(12, 0.1), (20, 0.1), *((20, 0.05 * step) for step in range(12))]:
        z = make_rows(n, 5, device=device).requires_grad_()
        (grad,) = torch.autograd.grad(compiled(z, k), z)
        (expected,) = torch.autograd.grad(loss(z, k), z)
        torch.testing.assert_close(grad, expected)


def test_compiled_for_any_rows_and_temperature(compiled: str, device: str) -> None:
    torch.compiler.reset()

    def loss(z: torch.Tensor, temperature: float) -> torch.Tensor:
        return adaptive_info_nce(z, 0.1, temperature=temperature, backend=compiled)

    dynamic = torch.compile(loss, fullgraph=True, dynamic=True)
    for n, temperature in ((12, 0.5), (20, 0.2)):
        z = make_rows(n, 5, device=device)
        torch.testing.assert_close(dynamic(z, temperature), loss(z, temperature))


def test_compiled_reference() -> None:
    torch.compiler.reset()
    z = make_rows(12, 5)

    def loss(z, k):
        return adaptive_info_nce(z, k, threshold_grad=0.1, histogram_bins=4, reduction="none",
                                 backend="reference")

    k = clear_thresholds(z)
    result = differentiate(torch.compile(loss, fullgraph=True), z, k)
    torch.testing.assert_close(result, differentiate(loss, z, k), rtol=1e-5, atol=1e-6)


def test_statistics_without_graph_breaks(compiled: str, device: str) -> None:
    torch.compiler.reset()
    x, y = make_rows(24, 5, device=device).chunk(2)

    def statistics(x, y):
        return (row_similarity_quantile(x, 0.5, backend=compiled),
                *alignment_uniformity(x, y, backend=compiled))

    result = torch.compile(statistics, fullgraph=True)(x, y)
    torch.testing.assert_close(result, statistics(x, y))


def test_a_second_derivative_is_refused(compiled: str, device: str) -> None:
    z = make_rows(8, 3, device=device).requires_grad_()
    loss = adaptive_info_nce(z, 0.1, backend=compiled)
    (grad,) = torch.autograd.grad(loss, z, create_graph=True)
    assert grad.isfinite().all()
    with pytest.raises(RuntimeError, match="second derivative; use backend='reference'"):
        grad.sum().backward()


@pytest.mark.parametrize("transform", [
    lambda loss, z: torch.func.grad(loss)(z),
    lambda loss, z: torch.func.jvp(loss, (z,), (z,)),
    lambda loss, z: torch.func.vmap(loss)(z[None]),
], ids=["grad", "jvp", "vmap"])
def test_derivatives_that_would_be_lost_are_refused(compiled: str, device: str, transform) -> None:
    def loss(z: torch.Tensor) -> torch.Tensor:
        return adaptive_info_nce(z, 0.1, backend=compiled)

    z = make_rows(8, 3, device=device)
    with pytest.raises(RuntimeError, match="knows neither torch.func nor forward-mode"):
        transform(loss, z)
    for grad_mode in (torch.enable_grad, torch.no_grad):  # which leaves forward mode on
        with grad_mode(), dual_level(), pytest.raises(RuntimeError, match="nor forward-mode"):
            loss(make_dual(z, z))


def test_a_first_derivative_with_create_graph_is_the_same(compiled: str, device: str) -> None:
    z = make_rows(8, 3, device=device).requires_grad_()
    loss = adaptive_info_nce(z, 0.1, backend=compiled)
    (grad,) = torch.autograd.grad(loss, z, retain_graph=True)
    (again,) = torch.autograd.grad(loss, z, create_graph=True)
    assert torch.equal(grad, again)


def test_extensions_that_were_built_load() -> None:
    folder = Path(registration.__file__).parent
    built = {name for name, file in EXTENSIONS.items() if any(folder.glob(f"{file}.*"))}
    assert not built & EXTENSION_ERRORS.keys(), EXTENSION_ERRORS


@pytest.mark.parametrize("built_for", ["", "SCHEMAS = 1"])
def test_an_extension_of_other_sources_is_not_used(built_for: str) -> None:
    program = f"""
import sys, types, warnings
module = types.ModuleType("arec_kernels._C")
module.__file__ = "_C.abi3.so"
exec({built_for!r}, module.__dict__)
sys.modules[module.__name__] = module
with warnings.catch_warnings(record=True) as warned:
    from arec_kernels import adaptive_info_nce
(warning,) = warned
assert "_C.abi3.so: built from other sources; install the package again" in str(warning.message)
import torch
z = torch.eye(4).repeat(2, 1).requires_grad_()
adaptive_info_nce(z, 0.1).backward()
try:
    adaptive_info_nce(z, 0.1, backend="cpp")
except RuntimeError as error:
    assert "no compiled extension can be used (built from other sources" in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_works_without_extension_and_triton() -> None:
    program = """
import sys
sys.modules["arec_kernels._C"] = None  # importing it raises ImportError
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else found(name, *rest)
import warnings
import torch
with warnings.catch_warnings(record=True) as warned:
    from arec_kernels import adaptive_info_nce
(warning,) = warned
assert "not built with the package, for want of a C++ compiler" in str(warning.message)
z = torch.eye(4).repeat(2, 1).requires_grad_()
adaptive_info_nce(z, 0.1).backward()
for backend, reason in (("cpp", "no compiled extension can be used"),
                        ("triton", "Triton is not installed")):
    try:
        adaptive_info_nce(z, 0.1, backend=backend)
    except RuntimeError as error:
        assert str(error).startswith(f"backend '{backend}' cannot run here: {reason}"), error
    else:
        raise AssertionError(backend)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
