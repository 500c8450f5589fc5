"""Microseconds that a call costs beyond its networks and its arithmetic, on a state of 4 x 4 pixels."""

from __future__ import annotations

from collections.abc import Callable
from time import process_time

import torch
from torch import Tensor, nn

import invflow
from benchmarks.spread import Spread, spreads

__all__ = ["measure_overhead", "overhead_table"]

_CALLS = 50


class _Given(nn.Module):
    """A network that costs next to nothing: its output is a parameter."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.h = nn.Parameter(0.1 * torch.randn(shape))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.h * 1


def measure_overhead(rounds: int) -> list[Spread]:
    """Time calls of operators, one step and a flow of four, all in turn, by processor time.

    The time of the networks, which are next to nothing, is subtracted.

    Args:
        rounds: at least 2.
    """
    calls = _calls()
    for call, networks in calls.values():
        for _ in range(20):
            call()
            networks()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, (call, networks) in calls.items():
            times[name].append(_microseconds(call) - _microseconds(networks))
    return spreads(times)


def overhead_table(rows: list[Spread]) -> str:
    """Format figures as a table for the terminal."""
    width = max(len(row.name) for row in rows)
    head = f"{'':{width}}  microseconds a call (quartiles)"
    return "\n".join([head, *(f"{r.name:{width}}  {r.median:7.1f} ({r.low:.1f} to {r.high:.1f})" for r in rows)])


def _microseconds(call: Callable[[], object]) -> float:
    start = process_time()
    for _ in range(_CALLS):
        call()
    return (process_time() - start) / _CALLS * 1e6


def _calls() -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Return every call, and the part of it that is its networks'."""
    torch.manual_seed(0)
    channels, x, context = 12, torch.randn(1, 12, 4, 4), torch.randn(1, 3, 4, 4)
    h, injector = torch.randn(1, channels, 4, 4), torch.randn(1, 2 * channels, 4, 4)
    matrix, shift, leaf = torch.eye(channels), torch.zeros(channels), x.clone().requires_grad_()
    step, flow = _step(channels), invflow.FlowSequential([_step(channels) for _ in range(4)])

    def networks(steps: int) -> Tensor:
        assert step.injector is not None
        assert step.coupling is not None
        parts = [net(context) for _ in range(steps) for net in (step.injector.net, step.coupling.net)]
        return torch.stack([part.sum() for part in parts]).sum()

    def trained(call: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[], None]:
        def forward_and_backward() -> None:
            z, log_det = call()
            (z.sum() + log_det.sum()).backward()

        return forward_and_backward

    def operator(state: Tensor) -> tuple[Tensor, Tensor]:
        return invflow.flow_step(state, matrix, shift, h, injector)

    def nothing() -> None:
        pass

    no_grad = torch.no_grad()
    return {
        "flow_step, forward": (lambda: operator(x), nothing),
        "flow_step, forward + backward": (trained(lambda: operator(leaf)), nothing),
        "FlowStep, forward": (no_grad(lambda: step(x, context)), no_grad(lambda: networks(1))),
        "FlowStep, inverse": (no_grad(lambda: step.inverse(x, context)), no_grad(lambda: networks(1))),
        "FlowStep, forward + backward": (trained(lambda: step(x, context)), lambda: networks(1).backward()),
        "four FlowSteps, forward": (no_grad(lambda: flow(x, context)), no_grad(lambda: networks(4))),
        "four FlowSteps, forward + backward": (trained(lambda: flow(x, context)), lambda: networks(4).backward()),
    }


def _step(channels: int) -> invflow.FlowStep:
    step = invflow.FlowStep(
        channels,
        injector=invflow.AffineInjector(channels, _Given(1, 2 * channels, 4, 4), context_channels=3),
        coupling=invflow.AffineCoupling(channels, _Given(1, channels, 4, 4), context_channels=3),
    )
    step.actnorm.mark_initialized()
    return step
