"""Instruments for a GPU: CUDA graphs, the host's and the device's time, waits, launches. On a CPU they are plain."""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

__all__ = ["Activity", "Replayed", "activity_of", "device_seconds", "host_seconds", "synchronize", "tf32", "waits"]

#: What the profiler calls the launches of kernels and of graphs by the runtime and by the driver.
_LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")


def synchronize(device: str) -> None:
    """Wait for the device to finish what was queued."""
    if device == "cuda":
        torch.cuda.synchronize()


class Replayed:
    """Calls that are captured as one CUDA graph at the first use and replayed from then on.

    On a CPU it makes the calls themselves.

    Args:
        device: "cpu" or "cuda".
        calls: functions without arguments. All but their kernels happens once. Their results are kept, so that each
            has memory of its own.
    """

    def __init__(self, device: str, calls: Sequence[Callable[[], object]]) -> None:
        self._device = device
        self._calls = calls
        self._graph: torch.cuda.CUDAGraph | None = None
        self._kept: list[object] = []

    def __call__(self) -> None:
        if self._device != "cuda":
            for call in self._calls:
                call()
            return
        if self._graph is None:
            self._graph = self._captured()
        self._graph.replay()

    def _captured(self) -> torch.cuda.CUDAGraph:
        # on the side, as a capture will run: libraries prepare themselves in the first calls
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._calls[0]()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._kept = [call() for call in self._calls]
        return graph


def device_seconds(call: Callable[[], object], device: str) -> float:
    """Time a call by two events on the current stream of a GPU; on a CPU by the clock.

    One thread is timed by the seconds of the processor, which other processes disturb least.
    """
    if device != "cuda":
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        start = clock()
        call()
        return clock() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    call()
    end.record()
    end.synchronize()
    return 1e-3 * begin.elapsed_time(end)


def host_seconds(call: Callable[[], object], device: str, number: int = 50, repeats: int = 5) -> float:
    """Time what it takes the host to queue a call: the least of some averages.

    Args:
        call: launches so few kernels that ``number`` calls do not fill the queue, which holds about a thousand.
        device: "cpu" or "cuda".
        number: calls between two waits for the device.
        repeats: number of averages.
    """
    found = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(number):
            call()
        found.append((time.perf_counter() - start) / number)
    synchronize(device)
    return min(found)


@contextmanager
def waits() -> Iterator[Counter[str]]:
    """Count the synchronisations of the host with the GPU in a block, by ``file:line`` of the Python code.

    The counter is filled at the end of the block.
    """
    places: Counter[str] = Counter()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for warning in found:
        if "synchroniz" in str(warning.message):
            places[f"{_short(warning.filename)}:{warning.lineno}"] += 1


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let matrix products and convolutions of float32 numbers on a GPU use TF32, or not."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = allowed
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before


def _short(path: str) -> str:
    return os.sep.join(path.split(os.sep)[-2:])


@dataclass(frozen=True)
class Activity:
    """Work of the GPU in a call.

    Attributes:
        busy: seconds of all kernels and copies together.
        launches: kernels and graphs that the host launched.
        heaviest: names of the kernels that took longest, with their seconds and numbers.
    """

    busy: float
    launches: int
    heaviest: Sequence[tuple[str, float, int]]


def activity_of(call: Callable[[], object], heaviest: int = 10) -> Activity:
    """Profile a call on a GPU, which takes it longer than usual.

    Args:
        call: runs once.
        heaviest: number of kernels to name.
    """
    with torch.profiler.profile() as profile:
        call()
        torch.cuda.synchronize()
    events = profile.key_averages()
    kernels = [event for event in events if str(event.device_type).endswith("CUDA")]
    kernels.sort(key=lambda event: -event.self_device_time_total)
    return Activity(
        busy=1e-6 * sum(event.self_device_time_total for event in kernels),
        launches=sum(event.count for event in events if event.key in _LAUNCHES),
        heaviest=[(event.key[:100], 1e-6 * event.self_device_time_total, event.count) for event in kernels[:heaviest]],
    )
