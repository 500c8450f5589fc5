"""Coupling and channel map of vectors and states of few pixels: ours, plain PyTorch, and the kernels of pixels."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

import invflow
from benchmarks.markdown import markdown
from benchmarks.processor_time import repetitions, seconds_of
from invflow.backends import cpu
from invflow.backends.native import Native
from invflow.backends.protocol import Call, Settings
from invflow.ops import AffineForm
from invflow.ops._kernel import NO_MAP
from invflow.ops._pixels import as_image

__all__ = ["measure_vectors"]

_STATES = ((256, 64), (256, 512), (256, 64, 2, 2))
#: Least processor time of a measurement, in seconds: the clock of processor time is coarse.
_LEAST_SECONDS = 0.004


def measure_vectors(rounds: int) -> str:
    """Time all implementations in turn, by processor time, and return a table in Markdown.

    Args:
        rounds: at least 2.
    """
    rows = []
    for shape in _STATES:
        for direction in ("forward", "forward+backward"):
            calls = _calls(shape, backward=direction != "forward")
            counts = {name: repetitions(call, _LEAST_SECONDS) for name, call in calls.items()}
            times: dict[str, list[float]] = {name: [] for name in calls}
            for _ in range(rounds):
                for name, call in calls.items():
                    times[name].append(1e6 * seconds_of(call, counts[name]))
            ratios = [ours / torch for ours, torch in zip(times["ours"], times["PyTorch"], strict=True)]
            medians = (f"{statistics.median(found):.0f}" for found in times.values())
            state = " x ".join(map(str, shape))
            rows.append([state, direction, *medians, f"{statistics.median(ratios):.2f}"])
    return markdown(["state", "", "ours, us", "PyTorch, us", "kernels of pixels, us", "ours / PyTorch"], rows)


def _calls(shape: tuple[int, ...], *, backward: bool) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    form, channels = AffineForm(), shape[1]
    x, h, matrix, shift = torch.randn(shape), torch.randn(shape), torch.randn(channels, channels), torch.randn(channels)
    grad_y, grad_log_det = torch.randn(shape), torch.randn(shape[0])
    leaves = [tensor.requires_grad_(backward) for tensor in (x, matrix, shift, h)]

    def plain(x: Tensor, matrix: Tensor, shift: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        half = channels // 2
        y, log_det = form.transform(x[:, half:], h, False)
        y = torch.cat([x[:, :half], y], 1)
        if y.dim() == 2:
            return torch.addmm(shift, y, matrix.t()), log_det
        return torch.nn.functional.conv2d(y, matrix[:, :, None, None], shift), log_det

    def timed(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[], object]:
        if not backward:
            return lambda: function(*leaves)
        return lambda: torch.autograd.grad(function(*leaves), leaves, (grad_y, grad_log_det))

    settings = Settings(form.for_kernels(), NO_MAP, channels // 2, False)
    call = Call(as_image(x.detach()), matrix.detach(), shift.detach(), as_image(h.detach()), None, settings)

    def pixels() -> None:
        Native.flow_step(cpu, call)
        if backward:
            Native.flow_step_backward(cpu, as_image(grad_y), grad_log_det, call)

    return {"ours": timed(invflow.flow_step), "PyTorch": timed(plain), "pixels": pixels}
