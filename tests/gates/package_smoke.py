"""Check of an installed package, which ``tests.gates.package_matrix`` runs in an empty folder.

It needs torch and NumPy only. Every line that it prints is a fact; a failure is an exception.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

import invflow


def compare(dtype: torch.dtype) -> float:
    """Return the largest error of a flow step on the kernels, its inverse and its gradients, against plain PyTorch."""
    torch.manual_seed(0)
    worst = 0.0
    for shape in ((2, 12, 9, 7), (3, 6), (2, 5, 11)):
        channels = shape[1]
        x = torch.randn(shape, dtype=dtype)
        coupling = invflow.AffineCoupling(channels, lambda inputs, outputs: Halves(inputs, outputs))
        layer = invflow.FlowStep(channels, coupling=coupling).to(dtype)
        results = []
        for backend in ("cpu", "reference"):
            with invflow.use_backend(backend):
                given = x.clone().requires_grad_()
                z, log_det = layer(given)
                (z.square().sum() - log_det.sum()).backward()
                back, _ = layer.inverse(z.detach())
                gradients = [parameter.grad for parameter in layer.parameters() if parameter.grad is not None]
                results.append([z.detach(), log_det.detach(), back, given.grad, *(one.clone() for one in gradients)])
                layer.zero_grad()
        assert len(results[0]) > 6
        for one, other in zip(*results, strict=True):
            scale = max(float(other.abs().max()), 1.0)
            worst = max(worst, float((one - other).abs().max()) / scale)
        worst = max(worst, float((results[0][2] - x).abs().max()))
    return worst


class Halves(torch.nn.Module):
    """A network of every number of dimensions."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(0.1 * torch.randn(outputs, inputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tensordot(self.weight, x, ([1], [1])).movedim(0, 1)


def train() -> float:
    """Return by how much a few steps improve the likelihood of a small Glow."""
    torch.manual_seed(0)
    flow = invflow.glow((3, 8, 8), levels=1, steps=2, hidden=8)
    optimizer = torch.optim.Adam(flow.parameters(), lr=3e-3)
    images = torch.rand(16, 3, 8, 8)
    losses = []
    for _ in range(30):
        loss = flow.bits_per_dim(images).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0] - losses[-1]


def main() -> None:
    assert Path(invflow.__file__).parent.parent != Path.cwd()
    kernels = "--without-kernels" not in sys.argv
    if kernels:
        single, double = compare(torch.float32), compare(torch.float64)
        print(f"errors {single:.1e} (float32) {double:.1e} (float64)")
        assert single < 1e-4
        assert double < 1e-12
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        gained = train()
    assert gained > 0.05, gained
    print(f"training gains {gained:.2f} bits per dimension")
    slow = [str(one.message) for one in told if "kernels" in str(one.message)]
    assert len(slow) == (0 if kernels else 1), slow


if __name__ == "__main__":
    main()
