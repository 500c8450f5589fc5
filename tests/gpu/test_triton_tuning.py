"""Timing of configurations, which only a GPU does: any of them may win."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from invflow import flow_step
from tests.emulator import build

triton = pytest.importorskip("triton")
from invflow.backends import triton as backend  # noqa: E402
from tests.emulator.drivers.triton import triton_on_cpu  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(build.unavailable() is not None, reason=str(build.unavailable())),
    pytest.mark.skipif(triton.knobs.runtime.interpret, reason="TRITON_INTERPRET=1: Triton compiles nothing"),
]


def values_and_gradients(channels: int, name: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    sizes = [channels, 2 * (channels // 2), 2 * channels]
    x, coupling, injector = (torch.randn(2, size, 6, 8) for size in sizes)
    matrix = torch.randn(channels, channels) / channels**0.5
    leaves = [tensor.requires_grad_() for tensor in (x, matrix, torch.randn(channels), coupling, injector)]
    y, log_det = flow_step(*leaves, backend=name)
    return [y, log_det, *torch.autograd.grad(y.sin().sum() + log_det.sum(), leaves)]


@pytest.mark.parametrize("channels", [4, 40], ids=["registers", "tiles"])
def test_the_last_configuration_wins_and_is_remembered(
    channels: int, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    from invflow.backends.triton import tuning

    timed = 0

    def do_bench(call: Callable[[], None], quantiles: object) -> list[float]:
        nonlocal timed
        call()
        timed += 1
        return [1.0 / timed] * 3

    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    monkeypatch.setattr(backend, "why_not", lambda op, x: "")
    for tuned in tuning._TUNED.values():
        monkeypatch.setattr(tuned, "_do_bench", do_bench)
        monkeypatch.setattr(tuned, "cache", {})
    with triton_on_cpu(80):
        found = values_and_gradients(channels, "triton")
        once = timed
        torch.testing.assert_close(found, values_and_gradients(channels, "reference"), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(values_and_gradients(channels, "triton"), found, rtol=0, atol=0)
        for tuned in tuning._TUNED.values():
            tuned.cache.clear()  # as in another process
        torch.testing.assert_close(values_and_gradients(channels, "triton"), found, rtol=0, atol=0)
    choices = [len(tuning.fitting(kernel, arguments)) for kernel, arguments in launches_of(channels)]
    assert once == timed == sum(count for count in choices if count > 1)
    assert sum(bool(tuned.cache) for tuned in tuning._TUNED.values()) == len(choices)


def launches_of(channels: int) -> list[tuple[object, dict[str, object]]]:
    """The kernels that the values and gradients take, with the arguments that decide what is timed."""
    from tests.gates.compile_report import instances

    shape = (2, channels, 6, 8)
    launched = [*instances.flow_step(shape, False), *instances.flow_step_backward(shape, False)]
    return [(instance.kernel, instance.arguments) for instance in launched]
