"""Where numbers lie in memory: expanded along height and width, or at addresses that are not those of whole vectors."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from op_cases import OPS_GIVEN_H, OpCase
from torch import Tensor
from under_test import Kernels, combined, each_kernels

from invflow import affine_coupling, channel_affine

# Of 12 channels, kernels may read the matrix in vectors too.
TWELVE = OpCase("12 channels", lambda *t, **options: (channel_affine(*t, **options),), ((1, 12, 2, 2), (12, 12), (12,)))

# Sides of which one is 1 let kernels use the expanded memory where it is. 32 pixels are whole vectors of any dtype, so
# that only addresses and strides say whether vectors can be accessed; of 35 pixels and 3 channels, no second sample
# begins where one would.
PLACED = [
    ("expanded along height", (3, 20)),
    ("expanded along height", (33, 1)),
    ("expanded along width", (3, 20)),
    ("expanded along width", (1, 33)),
    ("expanded along both", (3, 20)),
    ("second element of its storage", (4, 8)),
    ("second element of its storage", (5, 7)),
    ("gap after samples", (4, 8)),
    ("gap after channels", (4, 8)),
    ("every second pixel", (4, 8)),
]


def placed(placement: str, tensor: Tensor) -> Tensor:
    """The numbers of ``tensor`` in memory of their own; an expanded one repeats its first row, column or pixel."""
    if placement.startswith("expanded"):
        row = tensor if placement.endswith("width") else tensor[:, :, :1]
        first = row if placement.endswith("height") else row[..., :1]
        return first.contiguous().expand_as(tensor)
    if placement == "second element of its storage":
        return torch.cat([tensor.new_full((1,), torch.nan), tensor.flatten()])[1:].view(tensor.shape)
    if placement == "every second pixel":
        return torch.stack([tensor, torch.full_like(tensor, torch.nan)], 4).flatten(3)[..., ::2]
    if placement == "gap after samples":
        return torch.nn.functional.pad(tensor.flatten(1), (0, 1), value=torch.nan)[:, :-1].view(tensor.shape)
    # half a vector, so that every second channel begins where a vector does, and so does a sample of two channels
    gap = 8 // tensor.element_size()
    return torch.nn.functional.pad(tensor.flatten(2), (0, gap), value=torch.nan)[..., :-gap].view(tensor.shape)


def results_and_gradients(
    case: OpCase, backend: str, tensors: Sequence[Tensor], grads: Sequence[Tensor]
) -> list[Tensor]:
    """Results, and gradients of leaves that keep the strides and the addresses of ``tensors``."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    results = case.on(backend)(*leaves)
    given = [grad.to(result.dtype) for grad, result in zip(grads, results, strict=True)]
    return [*results, *torch.autograd.grad(results, leaves, given)]


@each_kernels
@pytest.mark.parametrize(
    ("dtype", "placed_as", "case"),
    combined([torch.float32, torch.float16], PLACED, [*OPS_GIVEN_H, TWELVE]),
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else getattr(value, "name", str(value)),
)
def test_numbers_are_found_wherever_they_lie(
    case: OpCase, placed_as: tuple[str, tuple[int, int]], dtype: torch.dtype, kernels: Kernels
) -> None:
    """One tensor at a time, then all of them; the gradient of the result is one of the tensors."""
    placement, size = placed_as
    generator = torch.Generator().manual_seed(4)
    shapes = [(*shape[:2], *size) if len(shape) == 4 else shape for shape in case.shapes]
    plain = [torch.randn(shape, generator=generator).to(kernels.device) for shape in (*shapes, shapes[0])]
    # parameters of the channel map stay float32
    plain = [tensor.to(dtype) if tensor.dim() == 4 else tensor for tensor in plain]
    others = len(case.call(*plain[:-1], backend="reference")) - 1
    log_det_grads = [torch.ones(len(plain[0]), device=kernels.device)] * others
    movable = [i for i, tensor in enumerate(plain) if tensor.dim() == 4 or placement.startswith("second")]
    for chosen in (*([i] for i in movable), movable):
        tensors = [placed(placement, tensor) if i in chosen else tensor for i, tensor in enumerate(plain)]
        copies = [tensor.double().contiguous() for tensor in tensors]
        found = results_and_gradients(case, kernels.backend, tensors[:-1], [tensors[-1], *log_det_grads])
        exact = results_and_gradients(case, "reference", copies[:-1], [copies[-1], *log_det_grads])
        for actual, truth in zip(found, exact, strict=True):
            # half a unit for the rounding; the rest for float32 results on the other side of a tie
            rounding = 0.51 * torch.finfo(dtype).eps if actual.dtype == torch.float16 else 1e-5
            atol = 1e-5 * max(1.0, truth.abs().max().item())
            torch.testing.assert_close(actual.double(), truth, rtol=rounding, atol=atol)


def test_results_too_large_for_the_caches_whose_rows_are_not_whole_vectors():
    x, h = torch.randn(2, 3, 601, 601).requires_grad_(), torch.randn(1, 6, 601, 601).requires_grad_()
    found = []
    for backend in ("cpu", "reference"):
        y, log_det = affine_coupling(x, h, backend=backend)
        found.append([y, log_det / h[0].numel(), *torch.autograd.grad(y.sum() + log_det.sum(), [x, h])])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
