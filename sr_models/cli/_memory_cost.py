"""Memory that a model's decoding takes, measured on a small image."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sr_models.flow.decoding import single_states
from sr_models.flow.model import SuperResolutionFlow

__all__ = ["DecodingCost"]

#: Side of the small image; memory is proportional to pixels from here on.
_SIDE = 32
#: A level of grey that 8-bit files have.
_GREY = 128 / 255
#: Bytes a pixel at 4x besides tensors: those of images that are read and written, and gaps between blocks.
_BESIDES = 400
#: Level above all of the messages of torch's profiler, which it prints on standard error.
_SILENT = "99"


class DecodingCost:
    """Memory that the decoding of images takes, which depends on the model. It is measured when it is asked for.

    Args:
        model: in evaluation mode.
        options: of :meth:`SuperResolutionFlow.sample`; those that change the memory.
    """

    def __init__(self, model: SuperResolutionFlow, options: Mapping[str, Any]) -> None:
        self._model, self._options = model, options
        self._measured: dict[int, float] = {}

    def of(self, samples: int) -> float:
        """Return the bytes a low-resolution pixel if so many samples of an image are decoded together."""
        if samples == 1:
            return self._pixel(1)
        # a straight line; a single sample may take more, because another layer is the one that takes most
        two, four = self._pixel(2), self._pixel(4)
        return two + (four - two) / 2 * (samples - 2)

    def _pixel(self, samples: int) -> float:
        if samples not in self._measured:
            like = next(self._model.parameters())
            lr = torch.full((1, 3, _SIDE, _SIDE), _GREY, dtype=like.dtype, device=like.device)
            options = {**self._options, "temperature": 0.0, "on_explode": "clamp"}

            def draw() -> Tensor:
                return self._model.sample(lr, samples, **options)

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if not self._measured:
                    draw()  # which prepares what later calls keep
                peak = _peak_on_gpu(draw, lr.device) if lr.is_cuda else _peak(draw)
            self._measured[samples] = peak / _SIDE**2 + (self._model.scale / 4) ** 2 * _BESIDES
        return self._measured[samples]


def _peak(draw: Callable[[], Tensor]) -> int:
    """Return the largest sum of the sizes of tensors during a call on a CPU, in bytes."""
    os.environ.setdefault("KINETO_LOG_LEVEL", _SILENT)
    from torch.profiler import ProfilerActivity, profile

    with single_states(), profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as trace:
        draw()
    # the sums that the profiler's public tables have do not tell what was there at one time
    events = trace.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    total = largest = 0
    for _, change in changes:
        total += change
        largest = max(largest, total)
    return largest


def _peak_on_gpu(draw: Callable[[], Tensor], device: torch.device) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    draw()
    return torch.cuda.max_memory_allocated(device) - before
