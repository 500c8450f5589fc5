"""Flows of FrEIA's ``AllInOneBlock`` and of ours: training steps, scores and inverses on one thread."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.markdown import markdown
from benchmarks.processor_time import repetitions, seconds_of

__all__ = ["measure_freia"]

#: Batch and state of the feature maps of FastFlow (Yu et al., 2021), and of vectors.
_STATES = ((4, 64, 64, 64), (8, 128, 32, 32), (8, 256, 16, 16), (64, 64), (256, 64))
_BLOCKS, _HIDDEN = 4, 128
#: Least processor time of a measurement, in seconds: the clock of processor time is coarse.
_LEAST_SECONDS = 0.02


def measure_freia(rounds: int, states: tuple[tuple[int, ...], ...] = _STATES) -> str:
    """Time both in turn, by processor time, and return a table in Markdown.

    Ratios are medians of those of the rounds. The column "difference" is the largest one of the outputs.

    Args:
        rounds: at least 2.
        states: batch and shape of every row.

    Raises:
        ModuleNotFoundError: FrEIA is not installed.
    """
    from FrEIA.modules import AllInOneBlock

    from invflow.interop.freia import AllInOneBlock as OurBlock

    rows = []
    for shape in states:
        torch.manual_seed(0)
        theirs, ours = flow_of(AllInOneBlock, shape[1:]), flow_of(OurBlock, shape[1:])
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(shape)
        with torch.no_grad():
            difference = float((theirs(x)[0] - ours(x)[0]).abs().max())
        row = [" x ".join(map(str, shape)), f"{difference:.0e}"]
        for work in (_train, _score, _invert):
            times = _times([functools.partial(work, inn, x) for inn in (theirs, ours)], rounds)
            ratio = statistics.median(slow / fast for slow, fast in zip(*times, strict=True))
            row += [*(f"{1e3 * statistics.median(each):.2f}" for each in times), f"{ratio:.2f}"]
        rows.append(row)
    head = ["state", "difference"]
    for title in ("training", "scores", "inverse"):
        head += [f"{title}: FrEIA, ms", "ours, ms", "ratio"]
    return markdown(head, rows)


def flow_of(block: type[nn.Module], shape: tuple[int, ...]) -> nn.Module:
    """Return a sequence of four blocks. Those of images have FastFlow's subnets, of 3x3 and 1x1 kernels in turn.

    Args:
        block: a class of modules of FrEIA.
        shape: of a state without its batch.
    """
    from FrEIA.framework import SequenceINN

    inn = SequenceINN(*shape)
    for index in range(_BLOCKS):
        inn.append(
            block,
            subnet_constructor=_perceptron if len(shape) == 1 else _convolutions(1 if index % 2 else 3),
            affine_clamping=2.0,
            permute_soft=len(shape) == 1,
        )
    made: nn.Module = inn
    return made


def _convolutions(size: int) -> Callable[[int, int], nn.Module]:
    def net(inputs: int, outputs: int) -> nn.Module:
        layers: list[nn.Module] = []
        for before, after in ((inputs, inputs), (inputs, outputs)):
            layers += [nn.ZeroPad2d(size // 2), nn.Conv2d(before, after, size), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    return net


def _perceptron(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, outputs))


def _train(inn: nn.Module, x: Tensor) -> None:
    inn.zero_grad()
    z, log_det = inn(x)
    (0.5 * z.square().flatten(1).sum(1) - log_det).mean().backward()


def _score(inn: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        inn(x)


def _invert(inn: nn.Module, z: Tensor) -> None:
    with torch.no_grad():
        inn(z, rev=True)


def _times(calls: list[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Return seconds of every call in every round; the calls take turns."""
    count = max(repetitions(call, _LEAST_SECONDS) for call in calls)
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, found in zip(calls, times, strict=True):
            found.append(seconds_of(call, count))
    return times
