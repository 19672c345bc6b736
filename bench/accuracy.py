"""How far from float64 a loss and its gradient are: `python bench/accuracy.py [--device cuda]`.

Eager PyTorch in float32 (the oracle) and the kernels, NT-Xent of 1,024 rows, by temperature and by
how alike two views are. The more of a denominator is the partner's, the less is left of loss and
gradient when both logarithms are subtracted. Writes bench/results/accuracy-MACHINE.json and .md.
"""

from __future__ import annotations

import argparse
import itertools

import torch
from provenance import card_name, commit, keep, machine, processor

from arec.tables import markdown_table
from arec_kernels import adaptive_info_nce

N, D, SEEDS = 1024, 64, 5
TEMPERATURES = (1.0, 0.1, 0.05, 0.03, 0.02)
BACKENDS = {"cpu": ("reference", "cpp"), "cuda": ("reference", "triton", "cuda")}
NOISES = (0.5, 0.1, 0.02)  # of one view over the other, in lengths of a row


def views(noise: float, seed: int) -> torch.Tensor:  # (N, D)
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randn(2, N // 2, D, generator=generator)
    return torch.cat((one, one + noise * other))


def loss_and_gradient(z: torch.Tensor, temperature: float, backend: str) -> list[torch.Tensor]:
    z = z.detach().requires_grad_()
    loss = adaptive_info_nce(
        z, float("inf"), positives=False, temperature=temperature, backend=backend
    )
    return [x.double() for x in (loss.detach(), *torch.autograd.grad(loss, z))]


def errors(backend: str, device: str, noise: float, temperature: float) -> list[float]:
    """The error's norm over the norm, of the loss and of the gradient; the largest over the seeds."""
    worst = torch.zeros(2, dtype=torch.float64)
    for seed in range(SEEDS):
        z = views(noise, seed).to(device)
        exact = loss_and_gradient(z.double(), temperature, "reference")
        found = loss_and_gradient(z, temperature, backend)
        relative = [(x - y).norm() / y.norm() for x, y in zip(found, exact, strict=True)]
        worst = torch.maximum(worst, torch.stack(relative).cpu())  # which keeps NaN
    return worst.tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    device = parser.parse_args().device
    where = machine() if device == "cpu" else torch.cuda.get_device_name()
    backends = BACKENDS[device]
    cases = {
        (noise, temperature): {
            backend: errors(backend, device, noise, temperature) for backend in backends
        }
        for noise, temperature in itertools.product(NOISES, TEMPERATURES)
    }
    head = ["noise of a view", "temperature"]
    head += [f"{what}, {name}" for what in ("loss", "gradient") for name in backends]
    rows = [
        [str(noise), str(temperature)]
        + [f"{found[backend][which]:.0e}" for which in (0, 1) for backend in backends]
        for (noise, temperature), found in cases.items()
    ]
    short = processor() if device == "cpu" else card_name(where)
    result = {
        "machine": where, "torch": torch.__version__, "commit": commit(),
        "N": N, "D": D, "seeds": SEEDS,
        "cases": [
            {"noise": noise, "temperature": temperature, "relative_errors": found}
            for (noise, temperature), found in cases.items()
        ],
    }
    note = (
        f"Largest relative error of {SEEDS} draws against float64, N = {N:,}, D = {D}, float32; "
        f"“reference” is eager PyTorch. {where}, torch {torch.__version__}, commit {result['commit']}."
    )
    lines = [*markdown_table(head, rows), "", note]
    keep(f"accuracy-{short}", result, "\n".join(lines))


if __name__ == "__main__":
    main()
