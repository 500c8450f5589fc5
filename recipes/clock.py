"""Training by the clock: learning rates that follow the time, a moving average of the weights, a file once a minute."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic

import torch
from torch import Tensor, nn

from sr_models.checkpoints.files import save_model
from sr_models.flow.model import SuperResolutionFlow
from sr_models.training.device_step import DeviceStep, Part, fused_adam

__all__ = ["Schedule", "train_by_clock"]

_CLIP = 2.0
#: Steps whose launches may wait in the queue of the device: the clock then speaks for the device.
_AHEAD = 25


class Schedule:
    """Learning rate of a phase: a linear warm-up in steps, then a half cosine in time.

    Args:
        peak: largest rate.
        floor: share of it that is left at the end.
        warmup: steps.
        seconds: duration of the phase.
    """

    def __init__(self, peak: float, floor: float, warmup: int, seconds: float) -> None:
        self._peak, self._floor, self._warmup, self.seconds = peak, floor, warmup, seconds

    def __call__(self, step: int, elapsed: float) -> float:
        """Return the rate of a step, counted from 0, that begins so many seconds after the phase."""
        fallen = 0.5 * (1 + math.cos(math.pi * min(elapsed / self.seconds, 1.0)))
        return self._peak * min(1.0, (step + 1) / self._warmup) * (self._floor + (1 - self._floor) * fallen)


def train_by_clock(
    model: SuperResolutionFlow,
    loss: Callable[..., Tensor],
    batches: Callable[[], Part],
    trained: Sequence[nn.Parameter],
    schedule: Schedule,
    file: Path,
    *,
    decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
) -> None:
    """Train for the time of a schedule, and leave the averaged weights in the model and in the file.

    On a GPU a step is one CUDA graph.

    Args:
        model: what is trained.
        loss: ``loss(*batch)``, a scalar.
        batches: returns the batch of a step.
        trained: the parameters that learn.
        schedule: learning rates, and how long.
        file: written once a minute and at the end.
        decay: of the moving average.
        betas: of Adam.
    """
    optimizer = fused_adam([trained])
    for group in optimizer.param_groups:
        group["betas"] = betas
    average = [parameter.detach().clone() for parameter in trained]
    graph = trained[0].is_cuda
    step = DeviceStep(loss, optimizer, average=average, averaged=trained, clip=_CLIP, graph=graph)
    total = trained[0].new_zeros(())
    begin = written = monotonic()
    done = counted = 0
    while (elapsed := monotonic() - begin) < schedule.seconds:
        # the first steps forget faster, as in sr_models.training.average
        total += step([batches()], [schedule(done, elapsed)], 1 - min(decay, (1 + done) / (10 + done))).loss
        done += 1
        if done % _AHEAD == 0 and graph:
            torch.cuda.synchronize()
        if monotonic() - written > 60:
            print(f"{elapsed:.0f} s: step {done}, mean loss {float(total) / (done - counted):.4f}", flush=True)
            total.zero_()
            counted = done
            own = [parameter.detach().clone() for parameter in trained]
            _put(trained, average)
            save_model(model, file)
            _put(trained, own)
            written = monotonic()
    print(f"{done} steps in {schedule.seconds:.0f} s", flush=True)
    _put(trained, average)
    save_model(model, file)


@torch.no_grad()
def _put(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
